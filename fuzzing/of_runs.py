"""What runs leave behind, when it comes from somebody else: checkpoints, records, queues, prepared sets."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fuzzing.target import Target, judged

BASE = "base_model: org/m\nlearning_rate: 1e-4\ndatasets: [{path: org/d, type: alpaca}]\noutput_dir: out\n"


def manifest(folder: Path, data: bytes) -> None:
    """Of a checkpoint: it is whole, or there is a reason."""
    from whet.training.checkpoint import MANIFEST, checkpoint_to_resume, newest_complete

    checkpoint = folder / "out" / "checkpoint-1"
    checkpoint.mkdir(parents=True, exist_ok=True)
    for name in ("a", "trainer_state.json", "optimizer.pt"):
        (checkpoint / name).write_bytes(b"{}")
    (checkpoint / MANIFEST).write_bytes(data)
    with judged():
        newest_complete(folder / "out", with_optimizer=True)
        checkpoint_to_resume(str(checkpoint), str(folder / "out"), "my.yaml:1:1")


def _manifest() -> Mapping[str, bytes]:
    import hashlib

    digest = hashlib.sha256(b"{}").hexdigest()
    files = {name: {"bytes": 2, "sha256": digest} for name in ("a", "trainer_state.json", "optimizer.pt")}
    return {"right": json.dumps({"step": 1, "files": files}).encode()}


def trainer_state(folder: Path, data: bytes) -> None:
    from whet.training.checkpoint import checkpoint_to_resume, steps_done

    checkpoint = folder / "out" / "checkpoint-1"
    checkpoint.mkdir(parents=True, exist_ok=True)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    (checkpoint / "trainer_state.json").write_bytes(data)
    with judged():
        steps_done(checkpoint)
        checkpoint_to_resume(str(checkpoint), str(folder / "out"), "my.yaml:1:1")


def facts(folder: Path, data: bytes) -> None:
    """What a checkpoint says its run was, held against the run that goes on from it."""
    from whet.config import load_config
    from whet.config.facts import FACTS_NAME, facts_of
    from whet.config.resolve import resolve
    from whet.core.types import Hardware
    from whet.earlier import hold_against
    from whet.record import RunRecord

    (folder / "my.yaml").write_text(BASE)
    (folder / FACTS_NAME).write_bytes(data)
    config = load_config(folder / "my.yaml", environ={})
    resolved = resolve(config, _hardware(Hardware))
    with judged():
        hold_against(resolved, folder, facts_of(resolved, {"data": "x", "base_model": None}, 7), RunRecord(None))


def _hardware(kind: Any) -> Any:
    return kind(
        *("cpu", "a CPU", 1, 1, 0, 0),
        bf16=True,
        num_cpus=2,
        memory_bytes=1 << 33,
        compute_capability=None,
    )


def _facts() -> Mapping[str, bytes]:
    import tempfile
    from dataclasses import asdict

    from whet.config import load_config
    from whet.config.facts import facts_of
    from whet.config.resolve import resolve
    from whet.core.types import Hardware

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "my.yaml"
        path.write_text(BASE)
        resolved = resolve(load_config(path, environ={}), _hardware(Hardware))
        now = asdict(facts_of(resolved, {"data": "y", "base_model": {"name": "m", "sample": "s", "num_bytes": 7}}, 9))
    return {"right": json.dumps({"schema": 1, **now}).encode()}


def record(folder: Path, data: bytes) -> None:
    """run.json, for `whet rerun`: through to the config that it says, and what is told of the differences."""
    from whet import earlier
    from whet.config.facts import facts_of
    from whet.config.recorded import config_of_record
    from whet.config.resolve import resolve
    from whet.core.types import Hardware
    from whet.record import RunRecord

    place = folder / "out"
    place.mkdir(exist_ok=True)
    (place / "run.json").write_bytes(data)
    with judged():
        file, read = earlier.read_run(place)
        earlier.num_processes(file, read)
        config, _ = config_of_record(read, str(file), earlier.place_of_rerun(file))
        resolved = resolve(config, _hardware(Hardware))
        repeated = earlier.Repeated(file, read, strict=False)
        more = earlier.surroundings(repeated, RunRecord(None))
        for known in ({}, {"data": "x", "base_model": None}):
            earlier.tell_of_repeated(resolved, repeated, facts_of(resolved, known), more)


def record_in_folder(folder: Path, data: bytes) -> None:
    """run.json of an earlier run in the folder of a new one, and of a model that is converted."""
    from whet.record import RunRecord

    place = folder / "out"
    place.mkdir(exist_ok=True)
    shutil.rmtree(place / "_earlier-runs", ignore_errors=True)
    (place / "run.json").write_bytes(data)
    with judged():
        made = RunRecord(place)
        made.finish("refused: x")
        made = RunRecord(place)
        made.begin()
        made.finish("finished")
    json.loads((place / "run.json").read_text())


def _record() -> Mapping[str, bytes]:
    (right,) = _facts().values()
    read = json.loads(right)
    written = {name: read["values"][name] for name in ("base_model", "learning_rate", "datasets", "output_dir")}
    whole = {
        **read,
        "kind": "train",
        "written": written,
        "versions": {"whet": "0.1.0"},
        "hardware": {"device": "cpu", "world_size": 1},
        "git": {"commit": "abc", "dirty": False},
        "working_folder": "/",
        "config_file": "my.yaml",
        "outcome": "finished",
        "sessions": [{"outcome": "running", "changes": [{"key": "seed", "effect": "changes"}]}],
    }
    whole["values"] = {**written, "seed": 7}
    return {"right": json.dumps(whole).encode()}


def card(folder: Path, data: bytes) -> None:
    """run.json of a stranger's adapter, of which the card of what is made of it tells."""
    from whet.artefacts.card import write_card
    from whet.core.secrets import redacted

    place = folder / "card"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    with suppress(ValueError, RecursionError):
        run = json.loads(data)
        if isinstance(run, dict):
            noted = redacted({"folder": "x", "run": run})
            write_card(place, {"kind": "merge", "made_of": noted, "versions": {}}, None)


def uploads(folder: Path, data: bytes) -> None:
    """What waits for `whet push`; nothing outside of the output folder is ever handed to anybody."""
    from whet.artefacts import hub, push
    from whet.config import load_config

    place = folder / "out"
    (place / "checkpoint-1").mkdir(parents=True, exist_ok=True)
    (place / "checkpoint-1" / "whet-checkpoint.json").write_text("{}")
    (place / "metrics.jsonl").write_text('{"kind": "train", "step": 1, "loss": 1.0}\n')
    (place / "uploads.json").write_bytes(data)

    class Hub:
        def create_repo(self, name: str, **_: Any) -> Any:
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, folder_path: Path, **_: Any) -> None:
            assert Path(folder_path).resolve().is_relative_to(place.resolve()), f"{folder_path} would be sent"

    def tracker(upload: Any, where: Path, config: Any) -> str:
        return f"{upload} {where}"

    (folder / "my.yaml").write_text(BASE + "hub_model_id: me/x\n")
    config = load_config(folder / "my.yaml", ["--output-dir", str(place)], environ={})
    kept = hub.HfApi, push._TRACKERS
    hub.HfApi, push._TRACKERS = Hub, {"mlflow": tracker, "wandb": tracker}  # type: ignore[misc, assignment]
    try:
        with judged():
            push.push_waiting(config)
    finally:
        hub.HfApi, push._TRACKERS = kept  # type: ignore[misc]


def _uploads() -> Mapping[str, bytes]:
    each = {"source": "checkpoint-1", "place": "", "step": 1, "reason": ""}
    waiting = [{"to": "hub", **each}, {"to": "mlflow", **each, "source": "abc"}, {"to": "wandb", **each}]
    return {"right": json.dumps({"waiting": waiting}).encode()}


def metrics(folder: Path, data: bytes) -> None:
    """metrics.jsonl of an earlier session, or of a stranger's folder."""
    from whet.history import _evaluation
    from whet.training.callbacks.metrics_log import METRICS, keep_until

    path = folder / METRICS
    path.write_bytes(data)
    _evaluation(folder, None)
    _evaluation(folder, "out/checkpoint-2")
    keep_until(path, 2)
    keep_until(path, 0)


METRICS = b'{"kind": "train", "step": 1, "loss": 1.0}\n{"kind": "eval", "step": 2, "eval_loss": null}\n{"kind": "summ'


def identity(folder: Path, data: bytes) -> None:
    from whet.config import load_config
    from whet.model.base_check import check_base
    from whet.model.identity import IDENTITY_NAME, read_identity

    (folder / "my.yaml").write_text(BASE)
    (folder / IDENTITY_NAME).write_bytes(data)
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"\2\0\0\0\0\0\0\0{}")
    with judged():
        read_identity(folder)
        check_base(folder, load_config(folder / "my.yaml", ["--base-model", str(model)], environ={}))


IDENTITY = {"schema": 1, "name": "m", "sample": "s", "weights": "w", "num_bytes": 7, "revision": None}


def progress(folder: Path, data: bytes) -> None:
    from whet.training.carried import FILE, read

    (folder / FILE).write_bytes(data)
    with judged():
        read(folder)


def prepared(folder: Path, data: bytes) -> None:
    """The manifest of a prepared set."""
    from whet.data.store import MANIFEST, open_prepared

    (folder / MANIFEST).write_bytes(data)
    with judged():
        open_prepared(folder)


def _prepared() -> Mapping[str, bytes]:
    from whet.data.store import FORMAT_VERSION

    one = {"name": "a", "bytes": 1, "sha256": "x"}
    right = {"format": FORMAT_VERSION, "hashes": {"train.npy": one}, "chunks": [one], "datasets": ["a"]}
    return {"right": json.dumps(right).encode()}


def triggers(folder: Path, data: bytes) -> None:
    """Files that ask a running training for something: of any size and kind, by any name that somebody's YAML gives."""
    from whet.training.callbacks.triggers import TriggerFiles

    name = os.fsdecode(data.partition(b"\n")[0]).replace("\0", "")[:300] or "a"
    place = folder / "asked"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    path = place / name.replace("/", "_")
    with suppress(OSError):
        path.write_bytes(data)
    files = TriggerFiles(path, place / "whet_stop", 1, clock=iter(range(99)).__next__)
    files.clear()
    files.asked(1)


def secrets(folder: Path, data: bytes) -> None:
    """Any text may pass by what hides secrets: it takes a moment, and hiding twice hides no more."""
    from whet.core.secrets import redact, redacted, secrets_of_url

    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "replace")
    hidden = redact(text)
    assert redact(hidden) == hidden
    list(secrets_of_url(text))
    redacted({text: text, "a": [text]})


URLS = (
    b"https://me:pw@host/a?sig=12ab&x=1 Authorization: Bearer abcdefghijklmnop api_key='abcdef' hf_abcdefghijklmnopqrst"
)


def shown(folder: Path, data: bytes) -> None:
    """A word that a stranger chose, on its way to the terminal."""
    from whet.core.log import indented

    told = indented(data.decode("utf-8", "replace"))
    assert "\x1b" not in told
    assert "\r" not in told


def _seed(text: bytes) -> Callable[[], Mapping[str, bytes]]:
    return lambda: {"right": text}


TARGETS: Mapping[str, Target] = {
    "checkpoint-manifest": Target(manifest, _manifest, "json", has_models=True),
    "trainer-state": Target(trainer_state, _seed(b'{"global_step": 1, "epoch": 0.5}'), "json", has_models=True),
    "run-facts": Target(facts, _facts, "json", has_models=True, runs=10_000),
    "run-record": Target(record, _record, "json", has_models=True, runs=10_000),
    "earlier-record": Target(record_in_folder, _record, "json", has_models=True),
    "card": Target(card, _record, "json", has_models=True),
    "uploads": Target(uploads, _uploads, "json", has_models=True, runs=10_000),
    "metrics": Target(metrics, _seed(METRICS), "json lines", has_models=True),
    "identity": Target(identity, _seed(json.dumps(IDENTITY).encode()), "json", has_models=True),
    "progress": Target(progress, _seed(b'{"format": 1, "ranks": [{"a": 1}]}'), "json", has_models=True),
    "prepared": Target(prepared, _prepared, "json", has_models=True),
    "triggers": Target(triggers, _seed(b""), "bytes"),
    "secrets": Target(secrets, _seed(URLS), "bytes"),
    "shown": Target(shown, _seed(b"\x1b[31mred"), "bytes"),
}
