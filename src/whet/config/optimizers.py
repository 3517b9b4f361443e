"""What an optimizer needs of the machine: a package, a device. Known without importing torch."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

ANYWHERE = frozenset({"cpu", "cuda", "mps"})
_NOT_MPS = frozenset({"cpu", "cuda"})
_CUDA = frozenset({"cuda"})


@dataclass(frozen=True, slots=True)
class Package:
    """An optional package that brings an optimizer.

    Attributes:
        module: its import name.
        pip: what to give to ``pip install``.
        devices: where its optimizer runs.
    """

    module: str
    pip: str
    devices: frozenset[str] = ANYWHERE


_BITSANDBYTES = Package("bitsandbytes", "bitsandbytes", _NOT_MPS)
_TORCHAO = Package("torchao", "torchao")
_SCHEDULEFREE = Package("schedulefree", "schedulefree")
_OPTIMI = Package("optimi", "torch-optimi")
_PYTORCH_OPTIMIZER = Package("pytorch_optimizer", "pytorch-optimizer")
_FLASHOPTIM = Package("flashoptim", "flashoptim", _CUDA)
_GALORE = Package("galore_torch", "galore-torch")
_LOMO = Package("lomo_optim", "lomo-optim")

PACKAGES: dict[str, Package] = {
    **dict.fromkeys(
        (
            "adamw_8bit",
            "adamw_bnb_8bit",
            "ademamix",
            "ademamix_8bit",
            "lion_32bit",
            "lion_8bit",
            "paged_adamw_32bit",
            "paged_adamw_8bit",
            "paged_ademamix_32bit",
            "paged_ademamix_8bit",
            "paged_lion_32bit",
            "paged_lion_8bit",
            "rmsprop_bnb",
            "rmsprop_bnb_32bit",
            "rmsprop_bnb_8bit",
        ),
        _BITSANDBYTES,
    ),
    **dict.fromkeys(
        ("adamw_torch_4bit", "adamw_torch_8bit", "ao_adamw_4bit", "ao_adamw_8bit", "ao_adamw_fp8"), _TORCHAO
    ),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"), _SCHEDULEFREE),
    **dict.fromkeys(("optimi_adamw", "stable_adamw"), _OPTIMI),
    **dict.fromkeys(("adan", "adopt_adamw", "apollo_adamw", "lion", "mars", "soap"), _PYTORCH_OPTIMIZER),
    **dict.fromkeys(("flash_adam", "flash_adamw", "flash_lion", "flash_sgd", "flash_sgdw"), _FLASHOPTIM),
    **dict.fromkeys(("galore_adafactor", "galore_adamw"), _GALORE),
    "galore_adamw_8bit": Package("galore_torch", "galore-torch", _CUDA),
    "lomo": _LOMO,
    "adalomo": Package("lomo_optim", "lomo-optim", _CUDA),  # the package puts its state on CUDA
    "came_pytorch": Package("came_pytorch", "came-pytorch"),
    "grokadamw": Package("grokadamw", "grokadamw"),
}
"""Optimizer -> the package it comes from. The others come with PyTorch and transformers, or are whet's own."""

LOW_RANK = frozenset({"apollo_adamw", "galore_adafactor", "galore_adamw", "galore_adamw_8bit"})
"""Optimizers that see the gradients of some matrices (`optim_target_modules`) in a space of lower rank."""

IN_BACKWARD = frozenset({"adalomo", "lomo"})
"""Optimizers that change each weight in the backward pass, as soon as its gradient is there."""

SCHEDULE_FREE = frozenset({"schedule_free_adamw", "schedule_free_radam", "schedule_free_sgd"})
"""Optimizers whose weights for use are an average of those that are trained."""

ADAM_STATES = frozenset({"adamw_torch", "adamw_torch_fused", "adopt_adamw", "optimi_adamw", "stable_adamw"})
"""Optimizers whose state of a weight is Adam's two running means, in the weight's own type."""


ROUNDED = frozenset({"adafactor", "adagrad", "adamw_torch", "adamw_torch_fused", "rmsprop", "sgd"})
"""Optimizers for `stochastic_rounding`: PyTorch's own, which compute in the type of what they are given."""

ONE_BY_ONE = ROUNDED | {name for name, package in PACKAGES.items() if package is _BITSANDBYTES}
"""Optimizers in which no parameter needs another, and that may step in the backward pass (`optimizer_in_backward`)."""


def missing(name: str) -> str | None:
    """Why an optimizer is not installed, with the command that installs it; None when it is."""
    package = PACKAGES.get(name)
    if package is None or find_spec(package.module) is not None:
        return None
    return f"it comes from the package {package.pip}, which is not installed (pip install {package.pip})"


def unavailable(name: str, device: str) -> str | None:
    """Why an optimizer cannot be used here, or None when it can.

    Args:
        device: "cpu", "cuda" or "mps".
    """
    package = PACKAGES.get(name)
    if package is None or device in package.devices:
        return missing(name)
    where = " and ".join(sorted(each.upper() for each in package.devices))
    return f"it runs on {where} alone, and this run is on {device.upper()}"
