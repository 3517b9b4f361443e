"""What PyTorch's `load_state_dict` loses of an optimizer's state, given back after it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch


def after_loading(optimizer: torch.optim.Optimizer, then: Callable[[dict[str, Any]], None]) -> None:
    """Call ``then`` with what was loaded, each time this optimizer has loaded it.

    PyTorch's hooks would do, were there no optimizers whose `load_state_dict` calls none (bitsandbytes 0.50).
    """
    load = optimizer.load_state_dict

    def load_and_then(state_dict: dict[str, Any]) -> None:
        load(state_dict)
        then(state_dict)

    optimizer.load_state_dict = load_and_then  # type: ignore[method-assign]  # of this instance alone


def keep_types(optimizer: torch.optim.Optimizer) -> None:
    """Let state come back in the type it was saved in.

    PyTorch casts all state to its parameter's type. Dion's momentum and Adafactor's second moments are float32 beside
    bfloat16 weights: cast, a resumed run would be another one, or fail.
    """

    def cast_back(state_dict: dict[str, Any]) -> None:
        names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for name, parameter in zip(names, parameters, strict=True):
            saved = state_dict["state"].get(name)
            if saved is not None:
                optimizer.state[parameter] = _as_saved(optimizer.state[parameter], saved)

    after_loading(optimizer, cast_back)


def _as_saved(loaded: Any, saved: Any) -> Any:
    """``loaded``, with those of its tensors as in ``saved`` whose type is another; tensors of subclasses stay."""
    if type(loaded) is torch.Tensor and type(saved) is torch.Tensor:
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device, copy=True)
    if isinstance(loaded, dict) and isinstance(saved, dict):
        return {key: _as_saved(value, saved.get(key)) for key, value in loaded.items()}
    if type(loaded) in (list, tuple) and type(saved) is type(loaded):
        return type(loaded)(_as_saved(*pair) for pair in zip(loaded, saved, strict=True))
    return loaded
