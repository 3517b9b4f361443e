"""Who computes the output head and the loss: what the keys of the reference ask for, and what serves them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal

Head = Literal["whet", "liger", "cut_cross_entropy"]
CHUNKED: Head = "whet"
LIGER: Head = "liger"
CUT: Head = "cut_cross_entropy"

PACKAGES: dict[Head, tuple[str, str]] = {
    LIGER: ("liger_kernel", "pip install liger-kernel"),
    CUT: ("cut_cross_entropy", "pip install cut-cross-entropy"),
}
"""Head -> the module that it is in, and what installs it."""

PLUGINS: dict[str, str] = {
    "axolotl.integrations.liger.LigerPlugin": "its keys are read without it",
    "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin": (
        "few positions' logits exist at a time as it is; `cut_cross_entropy: true` asks for the package, on CUDA"
    ),
    "axolotl.integrations.kernels.KernelsPlugin": "its keys are read without it",
}
"""Plugins of Axolotl with nothing left to do here -> why."""


def installed(head: Head) -> bool:
    """Whether the package of a head is there."""
    return head not in PACKAGES or find_spec(PACKAGES[head][0]) is not None
