"""Optional packages: those that this config needs are installed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from whet.checks.base import Subject
from whet.core.errors import Problem

_TRACKERS = ("tensorboard", "wandb", "mlflow")


def check(subject: Subject) -> Iterator[str | Problem]:
    """Each package that the config needs and that whet does not always install."""
    config, resolved = subject.config, subject.resolved
    wanted: list[tuple[str, str]] = []
    if resolved.quantization != "none":
        key = "load_in_4bit" if config.quant.load_in_4bit else "load_in_8bit"
        wanted.append(("bitsandbytes", key))
    few_bits = {"qat": config.quant.qat, "quantization": config.quant.quantization, "fp8": config.precision.fp8}
    wanted += [("torchao", key) for key, asked in few_bits.items() if asked]
    if resolved.method != "sft":
        wanted.append(("trl", "rl"))
    wanted += [(name, f"use_{name}") for name in resolved.report_to if name in _TRACKERS]
    for package, key in wanted:
        if find_spec(package) is None:
            found = f"{key} needs the package {package}, which is not installed"
            yield Problem(config.where(key), found, f"pip install {package}", key)
