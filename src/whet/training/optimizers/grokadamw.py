"""GrokAdamW (Lee and others' Grokfast filter, arXiv:2405.20233, inside AdamW), by the package grokadamw."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any


@contextmanager
def _logging_untouched() -> Iterator[None]:
    """The package configures Python's root logger when it is imported."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:], root.level = handlers, level


with _logging_untouched():
    from grokadamw import grokadamw as package

# `torch.cuda.amp.autocast`, deprecated and without meaning for arithmetic in place, warns at every step.
package.autocast = nullcontext


class ResumableGrokAdamW(package.GrokAdamW):
    """As in the package (0.1.2), with its state where a checkpoint finds it again.

    The package keeps the state of each parameter in the parameter groups, keyed by the parameter object: a resumed
    run would begin with an empty state. Here the groups' entry is the optimizer's own state.
    """

    def __init__(self, params: Any, **arguments: Any) -> None:
        super().__init__(params, **arguments)
        self._share_state()

    def _share_state(self) -> None:
        for group in self.param_groups:
            group["state"] = self.state

    def state_dict(self) -> dict[str, Any]:
        saved: dict[str, Any] = super().state_dict()
        for group in saved["param_groups"]:
            group.pop("state", None)
        return saved

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share_state()
