"""The only place that changes code of libraries below us, each change with its reason and a test of when it may go.

A patch is a function here and a line in `PATCHES`. It acts once however often it is called, leaves what it does not
mean exactly as it was, and is tried on the user's model before it is kept.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from whet.core.sandbox import BoundedEnvironment


@dataclass(frozen=True)
class Patch:
    """A change of another library.

    Attributes:
        name: of the function here.
        library, versions: what it changes, and with which releases it was tried.
        reason: what is wrong or missing there, and what would make the patch unnecessary.
    """

    name: str
    library: str
    versions: str
    reason: str


PATCHES = (
    Patch(
        "replace_rotary",
        "transformers",
        ">=5.17,<6",
        "A family's attention calls the global function apply_rotary_pos_emb of its file; there is no interface for it "
        "as there is for attention. It may go when transformers looks the function up on the module.",
    ),
    Patch(
        "bound_templates",
        "transformers",
        ">=5.17,<6",
        "apply_chat_template renders a stranger's template in Jinja's sandbox, which lets it take all time and memory. "
        "It may go when the sandbox has limits of its own.",
    ),
    Patch(
        "without_gathering",
        "trl",
        ">=1.16,<2",
        "DPOTrainer takes each figure's mean over the ranks through accelerate, as if all had as many pairs. It may go "
        "when TRL sums up what is each rank's own, or weighs the means by pairs.",
    ),
)


def bound_templates() -> None:
    """Let transformers compile chat templates in `whet.core.sandbox`: the same texts, or an end."""
    from transformers.utils import chat_template_utils

    if chat_template_utils.ImmutableSandboxedEnvironment is not BoundedEnvironment:
        chat_template_utils.ImmutableSandboxedEnvironment = BoundedEnvironment
        chat_template_utils._compile_jinja_template.cache_clear()


@contextmanager
def without_gathering(accelerator: Any) -> Iterator[None]:
    """Within it an Accelerator gathers nothing: each rank has its own tensors back."""
    accelerator.gather = accelerator.gather_for_metrics = lambda tensor, *args, **kwargs: tensor
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


Rotary = Callable[..., tuple[torch.Tensor, torch.Tensor]]

_OURS = "whet_original"


def rotary_homes(model: torch.nn.Module) -> list[ModuleType]:
    """The modules of Python whose global ``apply_rotary_pos_emb`` the model's attention calls."""
    names = {type(module).__module__ for module in model.modules()}
    homes = [sys.modules[name] for name in sorted(names) if name.startswith("transformers.models.")]
    return [home for home in homes if callable(getattr(home, "apply_rotary_pos_emb", None))]


def original_rotary(home: ModuleType) -> Rotary:
    """The family's own function, patched or not."""
    current: Any = home.apply_rotary_pos_emb
    return getattr(current, _OURS, current)  # type: ignore[no-any-return]


def restore_rotary(home: ModuleType) -> None:
    """Undo `replace_rotary`, for every model of the family in this process."""
    home.apply_rotary_pos_emb = original_rotary(home)  # type: ignore[attr-defined]


def replace_rotary(home: ModuleType, fast: Rotary, applies: Callable[[torch.Tensor, torch.Tensor], bool]) -> None:
    """Let ``fast`` do what ``apply_rotary_pos_emb`` of ``home`` does, for queries and cosines that it ``applies`` to.

    A call in any other form (further arguments, another device) goes to the original.
    """
    original = original_rotary(home)

    def apply_rotary_pos_emb(q: torch.Tensor, k: torch.Tensor, cos: Any, sin: Any, *args: Any, **kwargs: Any) -> Any:
        if not args and kwargs.keys() <= {"unsqueeze_dim"} and applies(q, cos):
            return fast(q, k, cos, sin, **kwargs)
        return original(q, k, cos, sin, *args, **kwargs)

    setattr(apply_rotary_pos_emb, _OURS, original)
    home.apply_rotary_pos_emb = apply_rotary_pos_emb  # type: ignore[attr-defined]
