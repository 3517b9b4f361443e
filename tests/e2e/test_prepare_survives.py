"""Preparing survives: kills, company, workers that die, full and read-only disks, broken files. Real processes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import chat, write_rows

from whet.distributed.launch import torchrun_command

ROOT = Path(__file__).parents[2]
PATIENCE = 60.0
"""Seconds that anything may take before a test gives up on it."""


class Driver:
    """The warm process of `prepare_driver`."""

    def __init__(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "TOKENIZERS_PARALLELISM": "false",  # its threads are not there after a fork, and are waited for
        }
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("prepare_driver.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.alive: set[int] = set()

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def start(self, **order: Any) -> int:
        pid: int = self.ask(**order)["pid"]
        self.alive.add(pid)
        return pid

    def wait(self, pid: int) -> int:
        """The exit code of a process that ends."""
        code: int = self.ask(wait=pid)["code"]
        self.alive.discard(pid)
        return code

    def close(self) -> None:
        for pid in self.alive:
            os.killpg(pid, signal.SIGKILL)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


@dataclass
class Events:
    """What the processes of a folder tell, line by line."""

    descriptor: int
    text: str = ""

    def until(self, begin: str) -> str:
        """The rest of the next line that begins so; those before it are passed over."""
        seen, deadline = [], time.monotonic() + PATIENCE
        while True:
            line, feed, rest = self.text.partition("\n")
            if feed:
                self.text = rest
                seen.append(line)
                if line.startswith(begin):
                    return line.removeprefix(begin)
                assert line != "failed", f"a process failed (see stderr.txt) after {seen}"
            elif select.select([self.descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self.text += os.read(self.descriptor, 1 << 16).decode()
            else:
                raise AssertionError(f"waited for '{begin}', heard {seen}")


class Place:
    """A folder with rows, in which processes prepare."""

    def __init__(self, driver: Driver, folder: Path, rows: int = 200) -> None:
        self.driver, self.folder = driver, folder
        folder.mkdir()
        write_rows(folder / "rows.jsonl", [chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(rows)])
        status = (folder / "rows.jsonl").stat()  # a file just written has no stamp: it may be written to again
        os.utime(folder / "rows.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns - 10**11))
        os.mkfifo(folder / "events")
        self.events = Events(os.open(folder / "events", os.O_RDWR))
        self.prepared = folder / "last_run_prepared"

    def start(self, **order: Any) -> int:
        return self.driver.start(folder=str(self.folder), **order)

    def run(self, **order: Any) -> dict[str, Any]:
        """What came of one process from begin to end."""
        pid = self.start(**order)
        found = json.loads(self.events.until("done "))
        assert self.driver.wait(pid) == 0
        return found

    def encoded(self) -> Counter[str]:
        """How often each chunk was encoded, begun ones included, by all processes so far."""
        log = self.folder / "encoded.log"
        return Counter(log.read_text().split()) if log.exists() else Counter()

    def in_pool(self) -> set[str]:
        return {path.stem for path in self.prepared.glob("chunks/*/[!.]*.json") if path.with_suffix(".arrow").exists()}

    def sets(self) -> list[Path]:
        return [path.parent for path in self.prepared.glob("[!.]*/manifest.json")]

    def unfinished(self) -> list[Path]:
        return [*self.prepared.glob(".*"), *self.prepared.glob("chunks/*/.*"), *self.prepared.glob("scans/.*")]

    def shut_gate(self) -> None:
        """Chunks wait before they are encoded."""
        os.mkfifo(self.folder / "gate")
        self.gate = os.open(self.folder / "gate", os.O_RDWR)

    def open_gate(self) -> None:
        os.write(self.gate, b"." * 10_000)


@pytest.fixture
def place(driver: Driver, tmp_path: Path) -> Place:
    return Place(driver, tmp_path / "place")


def content(prepared: str | Path, place: Place) -> dict[str, str]:
    """File of a set -> hash; the manifest without its history: when it and its files were made, and by which engines.

    A process looks for a fast engine when it has encoded for a while, so that depends on who did how much.
    """
    folder = place.folder / prepared
    hashes = {str(path.relative_to(folder)): path.read_bytes() for path in folder.glob("**/*") if path.is_file()}
    manifest = json.loads(hashes["manifest.json"])
    assert manifest.pop("created")
    assert manifest.pop("modified_ns")
    assert manifest.pop("engines")["rows"]
    hashes["manifest.json"] = json.dumps(manifest).encode()
    return {name: hashlib.sha256(value).hexdigest() for name, value in hashes.items()}


@pytest.fixture(scope="module")
def undisturbed(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a preparation makes that nothing happens to."""
    place = Place(driver, tmp_path_factory.mktemp("undisturbed") / "place")
    found = place.run()
    assert len(place.encoded()) >= 12
    assert set(place.encoded().values()) == {1}
    assert place.unfinished() == []
    return {**found, "content": content(found["path"], place), "chunks": set(place.encoded())}


def goes_on(place: Place, undisturbed: dict[str, Any], **order: Any) -> None:
    """The next preparation encodes what is missing, each chunk once, and makes what an undisturbed one makes."""
    before, there = place.encoded(), place.in_pool()
    found = place.run(**order)
    assert place.encoded() - before == Counter(undisturbed["chunks"] - there)
    assert content(found["path"], place) == undisturbed["content"]
    assert not list(place.prepared.glob(".*"))


# -- SIGKILL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(14))
def test_a_killed_preparation_is_gone_on_with(number: int, place: Place, undisturbed: dict[str, Any]) -> None:
    """Killed before a call of Python's that is drawn from all of them, one from each fourteenth of the work."""
    share = (number + random.Random(number).random()) / 14
    pid = place.start(die_at=1 + int(share * undisturbed["calls"]))
    assert place.driver.wait(pid) == -signal.SIGKILL
    begun = place.encoded()
    assert max(begun.values(), default=1) == 1
    assert len(begun) - len(place.in_pool()) in (0, 1)
    assert len(place.sets()) <= 1
    goes_on(place, undisturbed)


def test_a_preparation_that_is_killed_again_and_again_ends(place: Place, undisturbed: dict[str, Any]) -> None:
    random_share = random.Random(7)
    for _ in range(6):
        pid = place.start(die_at=1 + int(random_share.random() * undisturbed["calls"] / 3))
        place.driver.wait(pid)
    goes_on(place, undisturbed)
    assert sum(place.encoded().values()) <= len(undisturbed["chunks"]) + 6


def test_a_set_that_is_killed_while_it_is_made_anew_is_whole_or_gone(place: Place, undisturbed: dict[str, Any]) -> None:
    place.run()
    calls = place.run(refresh=True)["calls"]
    for share in (0.3, 0.97, 0.98, 0.99, 0.995, 0.999):
        assert place.driver.wait(place.start(refresh=True, die_at=int(share * calls))) == -signal.SIGKILL
        for folder in place.sets():
            assert content(folder, place) == undisturbed["content"]
    goes_on(place, undisturbed)


# -- company ------------------------------------------------------------------------------------------------------


def test_of_two_that_want_one_set_one_encodes_and_the_other_waits(place: Place, undisturbed: dict[str, Any]) -> None:
    place.shut_gate()
    pids = [place.start()]
    place.events.until("encoding")
    pids.append(place.start())
    place.events.until("say another process prepares this data; waiting for it")
    place.open_gate()
    first, second = (json.loads(place.events.until("done ")) for _ in pids)
    assert first["path"] == second["path"]
    assert [place.driver.wait(pid) for pid in pids] == [0, 0]
    assert place.encoded() == Counter(undisturbed["chunks"])
    assert content(first["path"], place) == undisturbed["content"]


def test_two_lengths_of_the_same_rows_are_encoded_once(place: Place, undisturbed: dict[str, Any]) -> None:
    place.shut_gate()
    pids = [place.start()]
    place.events.until("encoding")
    pids.append(place.start(keys={"sequence_len": 128}))
    place.events.until("say another process prepares this data; waiting for it")
    place.open_gate()
    found = [json.loads(place.events.until("done ")) for _ in pids]
    assert [place.driver.wait(pid) for pid in pids] == [0, 0]
    assert place.encoded() == Counter(undisturbed["chunks"])
    assert len({one["path"] for one in found}) == 2
    (whole,) = [one for one in found if one["path"] == undisturbed["path"]]
    assert content(whole["path"], place) == undisturbed["content"]


def test_one_that_waits_goes_on_when_the_other_is_killed(place: Place, undisturbed: dict[str, Any]) -> None:
    place.shut_gate()
    first = place.start()
    os.write(place.gate, b"...")
    for _ in range(4):
        place.events.until("encoding")
    second = place.start()
    place.events.until("say another process prepares this data; waiting for it")
    os.kill(first, signal.SIGKILL)
    place.driver.wait(first)
    place.open_gate()
    found = json.loads(place.events.until("done "))
    assert place.driver.wait(second) == 0
    assert sum(place.encoded().values()) == len(undisturbed["chunks"]) + 1
    assert content(found["path"], place) == undisturbed["content"]


# -- workers ------------------------------------------------------------------------------------------------------


def test_workers_make_the_same_bytes(place: Place, undisturbed: dict[str, Any]) -> None:
    found = place.run(keys={"dataset_num_proc": 2})
    assert content(found["path"], place) == undisturbed["content"]
    assert place.encoded() == Counter(undisturbed["chunks"])


def test_a_worker_that_is_killed_is_an_error_and_the_pool_stays_sound(
    place: Place, undisturbed: dict[str, Any]
) -> None:
    place.shut_gate()
    os.write(place.gate, b".")  # the first chunk, which the main process encodes
    pid = place.start(keys={"dataset_num_proc": 2})
    assert int(place.events.until("encoding ")) == pid
    worker = int(place.events.until("encoding "))
    assert worker != pid
    os.kill(worker, signal.SIGKILL)
    place.open_gate()
    found = json.loads(place.events.until("done "))
    assert found["error"] == "DataError"
    assert (
        "a process that encodes rows has died -> look above for its traceback; if there is none memory ran out: "
        in (found["message"])
    )
    place.driver.wait(pid)
    assert place.sets() == []
    goes_on(place, undisturbed)


def test_ctrl_c_ends_all_processes_with_130_and_what_was_encoded_is_kept(place: Place, model_folder: Path) -> None:
    keys = {"base_model": str(model_folder), "datasets": [{"path": "rows.jsonl", "type": "chat_template"}]}
    more = {"sequence_len": 128, "learning_rate": 1e-3, "dataset_num_proc": 2}
    (place.folder / "my.yaml").write_text(json.dumps({**keys, **more}))
    place.shut_gate()
    os.write(place.gate, b"....")
    pid = place.start(command=["preprocess", "my.yaml"])
    for _ in range(5):  # the last of which waits in a worker
        place.events.until("encoding ")
    os.killpg(pid, signal.SIGINT)
    place.open_gate()
    assert place.driver.wait(pid) == 130
    said = (place.folder / "stderr.txt").read_text()
    assert "Interrupted. What was published before (checkpoints, prepared data) is kept." in said
    assert "Traceback" not in said
    assert place.sets() == place.unfinished() == []
    there, begun = place.in_pool(), place.encoded()
    assert set(begun) == there
    assert place.driver.wait(place.start(command=["preprocess", "my.yaml"])) == 0
    assert set(place.encoded().values()) == {1}
    assert len(place.sets()) == 1


# -- disks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(place: Place) -> Iterator[Any]:
    """The prepared folder on a disk of its own; gives what changes the disk's options."""
    place.prepared.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place.prepared)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted here ({done.stderr.strip()}): not tried on a real one")

    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk: not tried on a real one")
    mount("size=128k")
    yield lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "--lazy", str(place.prepared)], check=True)


def test_a_full_disk_is_named_and_gone_on_with_when_there_is_room(
    disk: Any, place: Place, undisturbed: dict[str, Any]
) -> None:
    found = place.run()
    assert found["error"] == "DataError"
    assert (
        "the prepared set cannot be written to 'last_run_prepared' (No space left on device) -> set "
        "`dataset_prepared_path` to a folder with room that you may write to"
    ) in found["message"]
    assert place.sets() == place.unfinished() == []
    assert len(place.in_pool()) >= 3
    disk("size=16m")
    goes_on(place, undisturbed)


def test_a_disk_that_is_only_for_reading_is_named_and_a_set_on_it_is_used(
    disk: Any, place: Place, undisturbed: dict[str, Any]
) -> None:
    disk("size=16m")
    made = place.run()
    disk("ro")
    assert place.run()["path"] == made["path"]
    found = place.run(keys={"sequence_len": 128})
    assert (
        "the prepared set cannot be written to 'last_run_prepared' (Read-only file system) -> set" in found["message"]
    )
    disk("rw")
    assert "path" in place.run(keys={"sequence_len": 128})


# -- the ranks of a run ---------------------------------------------------------------------------------------------

ASKS = """
import os
import torch

def of_row(row):
    with open("transformed.log", "a") as log:
        log.write(f"{os.environ.get('RANK', 'launcher')} {torch.distributed.is_initialized()}\\n")
    return row
"""


def test_ranks_prepare_once_and_before_they_connect_to_each_other(workspace: Path) -> None:
    """Started by torchrun itself: ``--launcher torchrun`` prepares before there are ranks."""
    (workspace / "mine.py").write_text(ASKS)
    config = workspace / "my.yaml"
    rows = "type: messages.chat\n    input_transform: mine.py:of_row\n"
    config.write_text(config.read_text().replace("type: chat_template\n", rows).replace("max_steps: 2", "max_steps: 1"))
    done = subprocess.run(
        torchrun_command(["train", "my.yaml"], num_processes=2),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    said = [line.split() for line in (workspace / "transformed.log").read_text().splitlines()]
    assert {initialised for _, initialised in said} == {"False"}
    assert len({rank for rank, _ in said}) == 1
    assert len(said) == 12
    assert len(list(workspace.glob("last_run_prepared/*/manifest.json"))) == 1
