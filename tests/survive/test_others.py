"""Processes that die, or do not answer, and clocks that jump: the run ends in words, or goes on as if nothing was."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.ports import free_port
from tests.survive.conftest import (
    CONFIG,
    EVALUATING,
    EVERYTHING,
    LORA,
    TRAINING,
    Ended,
    Place,
    Undisturbed,
    artefacts,
    goes_on,
    steps,
)
from tests.survive.faults import Fault
from tests.survive.left import left_of
from whet.distributed.lost_rank import ended_ranks, lost_rank
from whet.training.checkpoint import newest_complete

# -- ranks --------------------------------------------------------------------------------------------------------

RANKS = CONFIG.replace("gradient_accumulation_steps: 2", "gradient_accumulation_steps: 1") + LORA
"""On two ranks the steps of `CONFIG` on one."""
GRACE = 60.0
"""Seconds in which the others have ended."""


def on_two_ranks(place: Place, faults: dict[int, Fault], waited: tuple[int, ...] = (0, 1)) -> dict[int, Ended]:
    """How the ranks of a run end, started as torchrun starts them."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    pids = {
        rank: place.start(
            "train",
            "my.yaml",
            fault=faults.get(rank),
            name=f"rank{rank}",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    }
    ended = {rank: place.end(pids[rank], f"rank{rank}", GRACE) for rank in waited}
    for rank in set(pids) - set(waited):  # it hangs, and the launcher would end it
        place.end(pids[rank], f"rank{rank}", 0.0)
    return ended


def in_the_middle(undisturbed: Undisturbed, action: str, within: str = TRAINING, share: float = 0.5) -> Fault:
    return Fault(action, "calls", within, int(undisturbed.counts[within]["calls"] * share))


HALF_WAY = (0.6, 0.3)
"""Of the calls that a run alone makes, by rank: the second one writes nothing, and makes about half of them."""

DEATHS = [
    pytest.param(1, "kill", TRAINING, id="rank 1 killed in training"),
    pytest.param(0, "kill", TRAINING, id="rank 0 killed in training"),
    *(
        [
            pytest.param(1, "kill", EVALUATING, id="rank 1 killed in evaluation"),
            pytest.param(1, "raise", TRAINING, id="rank 1 raises"),
            pytest.param(0, "raise", TRAINING, id="rank 0 raises"),
        ]
        if EVERYTHING
        else []
    ),
]


@pytest.mark.parametrize(("victim", "action", "within"), DEATHS)
def test_a_rank_that_dies_ends_the_other_in_words_and_the_run_goes_on(
    victim: int, action: str, within: str, place: Place, undisturbed: Undisturbed
) -> None:
    place.configure(RANKS)
    ended = on_two_ranks(place, {victim: in_the_middle(undisturbed, action, within, HALF_WAY[victim])})
    assert ended[victim].code == (-signal.SIGKILL if action == "kill" else 1), ended[victim].err
    other = ended[1 - victim]
    assert other.code == 1, f"it ends within {GRACE} seconds: {other.err}"
    assert "Traceback" not in other.err, other.err
    (error,) = [line for line in other.err.splitlines() if "error:" in line]
    assert f"rank {1 - victim} on {socket.gethostname()}: another rank" in error
    assert "has ended, and with it the run; out/checkpoint-" in error or "there is no checkpoint yet" in error
    assert "go on with the same command and --resume-from-checkpoint" in error
    again = on_two_ranks(place, {})
    assert [again[rank].code for rank in (0, 1)] == [0, 0], again[0].err + again[1].err
    assert [line["step"] for line in steps(place.out)] == [line["step"] for line in undisturbed.steps]
    place.tally.tried(f"a rank is {'killed' if action == 'kill' else 'ended by an exception'}",
                      when="training, 2 ranks (gloo)")  # fmt: skip


@pytest.mark.skipif(not EVERYTHING, reason="make survive runs it: it waits for ddp_timeout, some seconds")
def test_a_rank_that_hangs_ends_the_other_after_ddp_timeout(place: Place, undisturbed: Undisturbed) -> None:
    place.configure(RANKS + "ddp_timeout: 5\n")
    ended = on_two_ranks(place, {1: in_the_middle(undisturbed, "SIGSTOP", share=HALF_WAY[1])}, waited=(0,))
    assert ended[0].code == 1, ended[0].err
    assert "Traceback" not in ended[0].err, ended[0].err
    assert "another rank has not answered for 5 seconds (ddp_timeout)" in ended[0].err
    place.tally.tried("a rank hangs (SIGSTOP)", when="training, 2 ranks (gloo)")


@pytest.mark.skipif(not EVERYTHING, reason="make survive runs it: the launcher and its ranks import everything anew")
def test_the_launcher_names_the_rank_that_was_killed(place: Place) -> None:
    """The real command; a rank's own process is killed as the system does it when memory runs out."""
    place.configure(RANKS + "max_steps: 400\n")
    launched = subprocess.Popen(
        [sys.executable, "-m", "whet", "train", "my.yaml", "--launcher", "torchrun", "--num-processes", "2"],
        cwd=place.folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert launched.stderr is not None
    said = []
    for line in launched.stderr:
        said.append(line)
        if line.startswith("step 4/"):
            kill_rank(1, place.folder)
            break
    said += launched.stderr.readlines()
    launched.stderr.close()
    assert launched.wait() == 128 + signal.SIGKILL, "".join(said)
    text = "".join(said)
    assert "Traceback" not in text, text
    assert f"error: rank 1 on {socket.gethostname()}: it was killed by SIGKILL, and the other ranks were ended" in text
    assert "lower micro_batch_size or sequence_len; then go on with the same command" in text
    place.tally.tried("a rank is killed", when="training, --launcher torchrun")


@pytest.mark.skipif(not EVERYTHING, reason="make survive runs it: the launcher and its ranks import everything anew")
def test_ranks_end_with_a_launcher_that_is_killed_and_with_a_checkpoint(place: Place) -> None:
    """Else they would train on, seen by nobody, and keep the next run out of the folder."""
    place.configure(RANKS + "max_steps: 400\n")
    launched = subprocess.Popen(
        [sys.executable, "-m", "whet", "train", "my.yaml", "--launcher", "torchrun", "--num-processes", "2"],
        cwd=place.folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert launched.stderr is not None
    for line in launched.stderr:
        if line.startswith("step 4/"):
            launched.kill()
            break
    text = launched.stderr.read()  # until the last rank has ended
    launched.stderr.close()
    assert launched.wait() == -signal.SIGKILL, text
    assert not left_of(launched.pid, GRACE)
    assert "stopped by SIGTERM; out/checkpoint-" in text, text
    assert newest_complete(place.out).path is not None
    place.tally.tried("the launcher is killed", when="training, --launcher torchrun")


def kill_rank(rank: int, folder: Path) -> None:
    """The process of this rank that works in this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            is_here = (process / "cwd").resolve() == folder.resolve()
        except OSError:
            continue
        if is_here and f"RANK={rank}".encode() in variables:
            os.kill(int(process.name), signal.SIGKILL)


def test_what_the_launcher_says_of_failed_ranks() -> None:
    def failure(code: int, timestamp: int = 0) -> Any:
        return SimpleNamespace(exitcode=code, timestamp=timestamp)

    host = socket.gethostname()
    (killed,) = ended_ranks({0: failure(1), 3: failure(-9), 2: failure(-15)})
    assert str(killed).startswith(f"rank 3 on {host}: it was killed by SIGKILL, and the other ranks were ended -> ")
    (failed,) = ended_ranks({0: failure(1, timestamp=9), 1: failure(2, timestamp=5)})
    assert str(failed) == (
        f"rank 1 on {host}: it ended with exit code 2, and the other ranks with it -> what it said stands above"
    )


def test_errors_that_are_not_about_other_ranks_stay_as_they_are() -> None:
    assert lost_rank(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), 5.0) is None
    assert lost_rank(ValueError("Connection closed by peer"), 5.0) is None
    told = lost_rank(
        RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:554] Connection closed by peer [10.0.0.2]:3"), 5.0
    )
    assert "another rank at 10.0.0.2 has ended" in str(told)


# -- processes that load rows ---------------------------------------------------------------------------------------


def test_a_killed_process_that_loads_rows_is_told_with_a_cure(place: Place, undisturbed: Undisturbed) -> None:
    place.configure(CONFIG + LORA + "dataloader_num_workers: 1\n")
    ended = place.run("train", "my.yaml", before="tests.survive.fakes:watched_workers", options={"die_at": 15})
    assert ended.code == 1, ended.err
    assert "Traceback" not in ended.err, ended.err
    told = ended.errors[0]
    # PyTorch tells the signal where it is asked for it before it notices that no rows come.
    assert "dataloader_num_workers: 1: a process that loads rows was ended by the system (Killed)" in told or (
        "dataloader_num_workers: 1: a process that loads rows has ended" in told
    )
    assert "-> memory ran out, as a rule (or /dev/shm): write dataloader_num_workers: 0" in ended.errors[0]
    goes_on(place, undisturbed)
    place.tally.tried("a process that loads rows is killed", when="training")


def test_ctrl_c_is_answered_once_with_processes_that_load_rows(place: Place, undisturbed: Undisturbed) -> None:
    place.configure(CONFIG + LORA + "dataloader_num_workers: 1\n")
    ended = place.run("train", "my.yaml", fault=in_the_middle(undisturbed, "SIGINT"))
    assert ended.code == 130, ended.err
    assert ended.err.count("stopping after this step") == 1, ended.err
    assert "Traceback" not in ended.err, ended.err
    goes_on(place, undisturbed)
    place.tally.tried("SIGINT", when="training with processes that load rows")


@pytest.mark.skipif(not EVERYTHING, reason="make survive runs it: they look every five seconds who has started them")
def test_processes_that_load_rows_end_with_a_run_that_is_killed(place: Place, undisturbed: Undisturbed) -> None:
    """`Place.end` waits for them, as after every case."""
    place.configure(CONFIG + LORA + "dataloader_num_workers: 2\n")
    ended = place.run("train", "my.yaml", fault=in_the_middle(undisturbed, "kill"))
    assert ended.code == -signal.SIGKILL, ended.err
    goes_on(place, undisturbed)
    place.tally.tried("SIGKILL", when="training with processes that load rows")


# -- clocks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [3600.0, 10 * 86400.0] if EVERYTHING else [10 * 86400.0])
def test_a_clock_that_jumps_changes_nothing(seconds: float, place: Place, undisturbed: Undisturbed) -> None:
    ended = place.run("train", "my.yaml", before="tests.survive.fakes:jumping_clock", options={"seconds": seconds})
    assert ended.code == 0, ended.err
    assert artefacts(place.out) == undisturbed.artefacts
    assert steps(place.out) == undisturbed.steps
    lines = [json.loads(line) for line in (place.out / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines][-1] == "summary"
    for line in lines:
        for name, value in line.items():
            is_figure = isinstance(value, int | float)
            assert not is_figure or (math.isfinite(value) and value >= 0), f"{name}: {value}"
    assert " -" not in "".join(text for text in ended.err.splitlines() if text.startswith("step ")), ended.err
    record = json.loads((place.out / "run.json").read_text())
    assert all(value >= 0 for value in record.get("times", {}).values() if isinstance(value, int | float))
    place.tally.tried("the clock jumps back and forth", when="a whole run")
