"""A warm server, a folder with a run in it, the run that nothing happens to, and the account of what was tried."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import chat, write_rows
from tests.models import CHAT_TEMPLATE, save_tiny_model
from tests.survive.faults import Fault
from tests.survive.left import left_of
from tests.tiny_tokenizers import byte_level_tokenizer

ROOT = Path(__file__).parents[2]
PATIENCE = 240.0
"""Seconds that a process may take before a test gives up on it."""
SECONDS_FOR_OTHERS = 60.0
"""In which processes that a command started have ended, once it has itself; those that load rows look every 5 s."""
EVERYTHING = os.environ.get("SURVIVE") == "all"
"""Every case (`make survive`), or the share that `make test` runs."""
SEED = int(os.environ.get("SURVIVE_SEED", "5"))
"""Of the moments; named in each test's id and in the report."""

PREPARING, LOADING = "whet.data.prepare:prepare", "whet.model.load:load_model"
TRAINING, SAVING, MERGING = "whet.training.fit:fit", "whet.stages:save", "whet.export_stages:merge_adapter"
EVALUATING = "whet.training.trainer:WhetTrainer.evaluate"
PHASES = (PREPARING, LOADING, TRAINING, EVALUATING, SAVING, MERGING)

CONFIG = """\
base_model: model
datasets:
  - path: rows.jsonl
    type: chat_template
sequence_len: 128
sample_packing: true
micro_batch_size: 1
gradient_accumulation_steps: 2
val_set_size: 4
learning_rate: 0.01
warmup_steps: 1
save_steps: 3
eval_steps: 4
auto_resume_from_checkpoints: true
parity: false
output_dir: out
"""
LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_dropout: 0.1\nlora_target_linear: true\nmerge_adapters: true\n"


def cases(few: int, many: int) -> range:
    """Numbers of cases: many under `make survive`, few under `make test`."""
    return range(many if EVERYTHING else few)


def moment(number: int, of: int, counts: dict[str, int], clock: str) -> int:
    """A tick drawn from the ``number``-th of ``of`` equal parts of all ticks of a clock, from 1.

    Of calls the last hundredth is left out: how many there are depends a little on the time that things take.
    """
    ticks = counts[clock] - (counts[clock] // 100 if clock == "calls" else 0)
    share = (number + random.Random(f"{SEED} {number} {of}").random()) / of
    return 1 + int(share * (ticks - 1))


@dataclass
class Ended:
    """How a process ended.

    Attributes:
        code: exit code, negative for a signal; None if it did not end.
        counts: phase -> clock -> ticks; empty if it was killed.
    """

    code: int | None
    out: str
    err: str
    counts: dict[str, Any] = field(default_factory=dict)

    @property
    def errors(self) -> list[str]:
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


class Server:
    """The warm process of `tests.survive.server`."""

    def __init__(self, logs: Path) -> None:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("WHET_")},
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "TOKENIZERS_PARALLELISM": "false",  # threads are not there after a fork, and are waited for
            "OMP_NUM_THREADS": "1",
        }
        with (logs / "server.txt").open("w") as chatter:  # of libraries that are imported
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("server.py"))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=chatter,
                text=True,
                env=environment,
            )

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@dataclass
class Place:
    """A folder with a model, rows and a YAML, in which commands are run; what they print is kept outside of it."""

    server: Server
    folder: Path
    logs: Path
    tally: Tally

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def prepared(self) -> Path:
        return self.folder / "last_run_prepared"

    def configure(self, text: str) -> None:
        (self.folder / "my.yaml").write_text(text)

    def start(self, *command: str, fault: Fault | None = None, name: str = "", **order: Any) -> int:
        """Begin a command; returns the process's id, which is its group's too. ``name`` tells logs apart."""
        logs = self.logs / name
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True)
        order = {"folder": str(self.folder), "logs": str(logs), "command": command, "phases": PHASES, **order}
        pid: int = self.server.ask(fault=asdict(fault or Fault()), **order)["pid"]
        return pid

    def end(self, pid: int, name: str = "", seconds: float = PATIENCE) -> Ended:
        code = self.server.ask(wait=pid, seconds=seconds)["code"]
        left = left_of(pid, SECONDS_FOR_OTHERS)
        assert not left, f"the command has ended ({code}), and these that it started have not: {left}"
        logs = self.logs / name
        counts = logs / "counts.json"
        return Ended(
            code,
            _text(logs / "out.txt"),
            _text(logs / "err.txt"),
            json.loads(counts.read_text()) if counts.exists() else {},
        )

    def run(self, *command: str, fault: Fault | None = None, **order: Any) -> Ended:
        return self.end(self.start(*command, fault=fault, **order))


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.is_file() else ""


@dataclass
class Tally:
    """The account of one test: what was tried, and what of the run's work was lost; see `docs/reliability.md`."""

    test: str
    entries: list[dict[str, Any]] = field(default_factory=list)

    def tried(self, fault: str, *, when: str, lost: str = "nothing") -> None:
        """A case whose laws have held: said at the end of a test."""
        self.entries.append({"fault": fault, "when": when, "lost": lost, "test": self.test, "seed": SEED})


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    kept = Tally(request.node.nodeid.partition("[")[0])
    yield kept
    report = os.environ.get("SURVIVE_REPORT")
    if report:
        with Path(report).open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in kept.entries)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def survive_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama; its tokenizer has one merge, because GGUF knows none without."""
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"], vocab_size=257)
    tokenizer.chat_template = CHAT_TEMPLATE
    return save_tiny_model(tmp_path_factory.mktemp("survive") / "model", tokenizer=tokenizer)


def furnish(folder: Path, model: Path, text: str = CONFIG + LORA, rows: int = 40) -> None:
    """Model, rows and YAML."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model").symlink_to(model)
    write_rows(folder / "rows.jsonl", [chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(rows)])
    status = (folder / "rows.jsonl").stat()  # a file just written has no stamp: it may be written to again
    os.utime(folder / "rows.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns - 10**11))
    (folder / "my.yaml").write_text(text)


@pytest.fixture
def place(server: Server, survive_model: Path, tmp_path: Path, tally: Tally) -> Place:
    furnish(tmp_path / "place", survive_model)
    return Place(server, tmp_path / "place", tmp_path / "logs", tally)


@dataclass(frozen=True)
class Undisturbed:
    """What a run leaves that nothing happens to.

    Attributes:
        counts: phase -> clock -> ticks.
        artefacts: file -> hash, of the result, its merge, and the weights in each checkpoint.
        steps: what metrics.jsonl says, times left out.
        prepared: file -> hash of the prepared set.
    """

    folder: Path
    counts: dict[str, Any]
    artefacts: dict[str, str]
    steps: list[dict[str, Any]]
    prepared: dict[str, str]


@pytest.fixture(scope="session")
def undisturbed(server: Server, survive_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run of `CONFIG` with an adapter, which is merged; the server is warm for its like afterwards."""
    return undisturbed_run(server, survive_model, tmp_path_factory.mktemp("undisturbed"), CONFIG + LORA)


def undisturbed_run(server: Server, model: Path, folder: Path, text: str) -> Undisturbed:
    counts: dict[str, Any] = {}
    for name in ("cold", "warm"):  # the first imports what the server has not
        place = Place(server, folder / name, folder / f"{name}-logs", Tally(""))
        furnish(place.folder, model, text)
        clock = "" if name == "cold" else "calls"
        ended = place.run("train", "my.yaml", fault=Fault(clock=clock))
        assert ended.code == 0, ended.err
        server.ask(warm=(place.logs / "modules.txt").read_text().split())
        counts = ended.counts
    return Undisturbed(place.folder, counts, artefacts(place.out), steps(place.out), prepared_set(place.prepared))


WEIGHTS = ("adapter_model.safetensors", "model.safetensors")


def artefacts(out: Path) -> dict[str, str]:
    """File -> hash of what the run made: result, merged model, and the weights of checkpoints."""
    files = [out / name for name in WEIGHTS]
    files += [path for folder in out.glob("checkpoint-*") for path in folder.glob("*.safetensors")]
    files += [path for path in out.glob("merged/*") if path.suffix in (".safetensors", ".json", ".jinja")]
    files = [path for path in files if path.name not in ("run.json", "parity.json")]  # they say when they were written
    return {str(path.relative_to(out)): _hash(path.read_bytes()) for path in files if path.is_file()}


def hashed(folder: Path) -> dict[str, str]:
    """File -> hash of everything below a folder; links are not followed."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return {path.relative_to(folder).as_posix(): _hash(path.read_bytes()) for path in files}


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def steps(out: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of each step and evaluation, times left out."""
    names = ("kind", "step", "loss", "grad_norm", "learning_rate", "epoch", "eval_loss", "tokens_seen")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: line[name] for name in names if name in line} for line in lines if line["kind"] != "summary"]


def prepared_set(prepared: Path) -> dict[str, str]:
    """File -> hash of the one prepared set; the manifest without its history."""
    (manifest,) = prepared.glob("[!.]*/manifest.json")
    hashes = {path.relative_to(prepared).as_posix(): path.read_bytes() for path in manifest.parent.rglob("*.arrow")}
    facts = {
        name: value
        for name, value in json.loads(manifest.read_text()).items()
        if name not in ("created", "modified_ns", "engines")
    }
    hashes["manifest"] = json.dumps(facts, sort_keys=True).encode()
    return {name: _hash(content) for name, content in hashes.items()}


def nothing_half_written(place: Place, undisturbed: Undisturbed) -> None:
    """What a command would take for whole is what the undisturbed run has there."""
    from whet.training.checkpoint import newest_complete

    there = artefacts(place.out)
    chosen = newest_complete(place.out).path if place.out.is_dir() else None
    for name, digest in there.items():
        is_checkpoint = name.startswith("checkpoint-")
        if not is_checkpoint or (chosen is not None and name.startswith(f"{chosen.name}/")):
            assert digest == undisturbed.artefacts.get(name, digest), f"{name} is half-written, and would be chosen"
    if list(place.prepared.glob("[!.]*/manifest.json")):
        assert prepared_set(place.prepared) == undisturbed.prepared


def goes_on(place: Place, undisturbed: Undisturbed, *command: str) -> Ended:
    """The same command again ends as if nothing had happened."""
    ended = place.run(*(command or ("train", "my.yaml")))
    assert ended.code == 0, ended.err
    made = artefacts(place.out)  # and the checkpoint of a step at which it was stopped, perhaps
    assert {name: made.get(name) for name in undisturbed.artefacts} == undisturbed.artefacts
    assert steps(place.out) == undisturbed.steps
    assert prepared_set(place.prepared) == undisturbed.prepared
    assert json.loads((place.out / "run.json").read_text())["outcome"] == "finished"
    leftovers = [path for path in [*place.out.glob(".*"), *place.prepared.glob(".*")] if path.is_dir()]
    assert not leftovers, "what a killed process left half-written is removed by the next one"
    return ended
