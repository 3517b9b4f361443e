"""What a kernel is, and how one form of it is chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kernel:
    """One computation in two forms.

    Attributes:
        name: for announcements ("lora_mlp").
        reference: the eager twin: plain PyTorch, on every device and in every dtype. It defines the result.
        fused: the fast form, with the same arguments and results.
        refuses: ``(**facts) -> str | None``: why ``fused`` cannot run in this place, in words that follow "because";
            None where it can. Which facts it asks for (device, dtype, a module) is the kernel's own business.
        tolerance: largest relative error of ``fused`` against ``reference`` in float32, in values and in gradients;
            what the kernel's test holds it to.
    """

    name: str
    reference: Callable[..., Any]
    fused: Callable[..., Any]
    refuses: Callable[..., str | None]
    tolerance: float


@dataclass(frozen=True)
class Choice:
    """The form of a kernel that runs, and the sentence why."""

    function: Callable[..., Any]
    is_fused: bool
    why: str


def select(kernel: Kernel, **facts: Any) -> Choice:
    """The fast form where it can run, else the plain one.

    >>> double = Kernel(
    ...     "double",
    ...     lambda x: x + x,
    ...     lambda x: 2 * x,
    ...     lambda device: None if device == "cpu" else f"there is none for {device}",
    ...     0.0,
    ... )
    >>> select(double, device="cpu").why
    'double: fused'
    >>> select(double, device="mps").why
    'double: plain, because there is none for mps'
    """
    reason = kernel.refuses(**facts)
    if reason is None:
        return Choice(kernel.fused, True, f"{kernel.name}: fused")
    return Choice(kernel.reference, False, f"{kernel.name}: plain, because {reason}")
