"""What every benchmark shares: child processes run in turn, medians, and one JSON line at the end.

A contestant is a command run in a process of its own that prints one JSON object on its last line. Contestants are run
alternately (ours, peer, ours, peer ...), so that a slow spell of the machine falls on both; the figure is the median.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.record import installed_versions

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Contestant:
    """A name and the command whose last printed line is its measurements as JSON."""

    name: str
    command: Sequence[str]


def alternate(contestants: Sequence[Contestant], rounds: int, workdir: Path) -> dict[str, list[dict[str, Any]]]:
    """Run every contestant ``rounds`` times in turn and return its measurements, in order."""
    measured: dict[str, list[dict[str, Any]]] = {contestant.name: [] for contestant in contestants}
    for number in range(rounds):
        for contestant in contestants:
            measurement = run(contestant, workdir)
            measured[contestant.name].append(measurement)
            print(f"round {number + 1}/{rounds} {contestant.name}: {json.dumps(measurement)}", file=sys.stderr)
    return measured


def run(contestant: Contestant, workdir: Path) -> dict[str, Any]:
    """Run one contestant in a child process, with the hub and trackers switched off.

    Raises:
        RuntimeError: it failed; the end of what it printed is in the message.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true", "WANDB_MODE": "disabled"}
    # Nothing else runs beside a benchmark, so waiting threads may spin; `whet` lets them sleep unless told otherwise.
    environment.setdefault("OMP_WAIT_POLICY", "ACTIVE")
    done = subprocess.run(contestant.command, cwd=workdir, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"{contestant.name} failed with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        )
    measurement: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return measurement


def median(measurements: Sequence[Mapping[str, Any]], key: str) -> float:
    """Median of one figure over the rounds."""
    return statistics.median(float(measurement[key]) for measurement in measurements)


def machine() -> str:
    """The processor as the system names it, and how many cores this process may use."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"


def report(
    name: str,
    *,
    ours: float,
    peer: float | None,
    goal: str,
    ratio: float | None,
    limit: float | None = None,
    **more: Any,
) -> None:
    """Print the benchmark's one JSON line and keep it in benchmarks/results/<name>.json.

    Args:
        ours, peer: the figure compared, in the unit that ``more['unit']`` names.
        limit: the bound that cannot be beaten, where there is one.
        ratio: how many times better ours is (above 1 is better).
        goal: what was asked for, in words.
        more: any further figures.
    """
    line = {
        "name": name,
        "machine": machine(),
        "versions": installed_versions(),
        "ours": ours,
        "peer": peer,
        "limit": limit,
        "ratio": ratio,
        "goal": goal,
        **more,
    }
    results = REPOSITORY / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / f"{name}.json").write_text(json.dumps(line, indent=1) + "\n")
    print(json.dumps(line))
