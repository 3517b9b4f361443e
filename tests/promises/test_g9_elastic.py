"""G9 elastic, and G7 on several ranks: each rank goes on as it was, and a run goes on with another number of ranks.

Real processes over gloo. With the same number of ranks everything is bit for bit; with another number and the same
rows a step, the documents of every step are the same and losses agree to 1e-5 (sums are added up in another order).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.ranks import run_ranks, written
from tests.resume_cases import CASES
from tests.resuming import Bench, Outcome, same
from tests.tiny_streams import small_chunks

SAVING: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
TWO_RANKS = ("packed", "logged every 3 steps", "streamed", "LoRA with dropout", "DPO with LoRA")
ELASTIC: dict[str, dict[str, Any]] = {
    "packed": {},
    "mixed": {"data": "mixed", "datasets": CASES["mixed by weights"]["datasets"], "sample_packing_balance": True},
    "streamed": {"data": "stream"},
    # Nine pairs: in the last step of an epoch one rank has none.
    "DPO": {"data": "pairs", "rl": "dpo", "sample_packing": False, "micro_batch_size": 2, "logging_steps": 3},
}
AGAIN = {name: 3 if name == "DPO" else 4 for name in ELASTIC}
"""The step after which one rank's run becomes one of two again: also right after a line of the log."""


def of_two(case: dict[str, Any]) -> dict[str, Any]:
    """A case with the steps of one rank, on two."""
    return {**case, "gradient_accumulation_steps": 1}


def exact_on_two_ranks(rank: int, folder: Path) -> None:
    """Each case, and its resumption from the middle of an epoch, by one of two ranks."""
    small_chunks()
    bench, found = Bench(folder / "bench"), {}
    for name in TWO_RANKS:
        case = {**of_two(CASES[name]), **SAVING, "ranks": (rank, 2)}
        place = folder / name.replace(" ", "-")
        saved = bench.run(place, **case)
        step = max(saved.seen) // 2
        torch.distributed.barrier()
        again = place.with_name(f"{place.name}-again")
        if rank == 0:
            shutil.copytree(place, again)
        torch.distributed.barrier()
        resumed = bench.run(again, resume=again / f"checkpoint-{step}", **case)
        expected = {number: saved.seen[number] for number in range(step + 1, max(saved.seen) + 1)}
        # What is told is in the first rank's file.
        skip = () if rank == 0 else ("told",)
        found[name] = (resumed.seen == expected, same(saved, resumed, skip=skip))
    torch.save(found, folder / f"rank-{rank}.pt")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    bench = Bench(tmp_path_factory.mktemp("ranks") / "bench")
    for case in (*(CASES[name] for name in TWO_RANKS), *ELASTIC.values()):
        bench.make(**case)
    return bench


def test_each_of_two_ranks_goes_on_as_it_was(bench: Bench) -> None:
    folder = bench.folder.parent
    run_ranks(exact_on_two_ranks, folder)
    for rank, found in enumerate(written(folder)):
        assert found == dict.fromkeys(TWO_RANKS, (True, None)), f"rank {rank}"


def elastic_part(rank: int, folder: Path, part: str, steps: dict[str, int]) -> None:
    """A run of each case on two ranks: whole, or from a checkpoint of one rank's run."""
    small_chunks()
    bench, found = Bench(folder / "bench"), {}
    for name, case in ELASTIC.items():
        place = folder / f"{part}-{name}"
        resume = place / f"checkpoint-{steps[name]}" if steps else None
        found[name] = bench.run(place, resume=resume, **of_two(case), **SAVING, ranks=(rank, 2))
    torch.save(found, folder / f"rank-{rank}.pt")


def together(ranks: list[Any], name: str) -> dict[int, list[int]]:
    """The documents of each step over all ranks."""
    each = [rank[name].seen for rank in ranks]
    return {step: sorted(document for seen in each for document in seen[step]) for step in each[0]}


def told(outcome: Outcome, until: int | None = None) -> list[dict[str, Any]]:
    """The lines of training steps, up to one of them.

    Without the epoch, which is told in micro-batches of a rank, and the last of an epoch may not be full.
    """
    lines = [line for line in outcome.told if line["kind"] == "train" and (until is None or line["step"] <= until)]
    return [{name: value for name, value in line.items() if name != "epoch"} for line in lines]


def about(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose loss is right to 1e-5; what is counted is exact, other figures are right to a thousandth."""
    near = {"loss": pytest.approx(line["loss"], abs=1e-5)}
    figures = {name: value for name, value in line.items() if isinstance(value, float) and name != "loss"}
    return line | near | {name: pytest.approx(value, rel=1e-3, abs=1e-5) for name, value in figures.items()}


def test_two_ranks_become_one_and_two_again(bench: Bench) -> None:
    folder = bench.folder.parent
    run_ranks(elastic_part, folder, "two", {})
    whole = written(folder)
    small_chunks()
    alone: dict[str, Outcome] = {}
    for name, case in ELASTIC.items():
        shutil.copytree(folder / f"two-{name}", folder / f"one-{name}")
        start = folder / f"one-{name}" / "checkpoint-2"
        alone[name] = bench.run(folder / f"one-{name}", resume=start, **case, **SAVING)
        shutil.copytree(folder / f"one-{name}", folder / f"again-{name}")
    run_ranks(elastic_part, folder, "again", AGAIN)
    again = written(folder)
    for name in ELASTIC:
        ids = together(whole, name)
        assert alone[name].seen == {step: ids[step] for step in range(3, max(ids) + 1)}, name
        assert together(again, name) == {step: ids[step] for step in range(AGAIN[name] + 1, max(ids) + 1)}, name
        for each in (again[0][name], alone[name]):
            assert told(each) == [about(line) for line in told(whole[0][name])], name
        until = AGAIN[name]
        assert told(again[0][name], until) == told(alone[name], until), "what was told before stays"
