"""An adapter belongs to one base model: to the bytes that it was trained beside, whatever they are called."""

from __future__ import annotations

from pathlib import Path

from whet.config import Config
from whet.core.errors import ModelError, Problem
from whet.core.log import warn
from whet.model.identity import identify, read_identity, same_weights

KEY = "allow_other_base"


def check_base(adapter: Path, config: Config) -> None:
    """Refuse an adapter that was trained beside other weights than those of ``base_model``.

    Where the adapter does not say (it was not trained by whet), or the base is not on this machine, that is said.

    Raises:
        ModelError: the weights are others, and `allow_other_base` does not allow it.
    """
    trained = read_identity(adapter)
    base = config.model.base_model
    if trained is None:
        warn(f"'{adapter}' does not say which base model it was trained on; whether it was '{base}' is not known")
        return
    present = identify(config)
    if present is None or same_weights(trained, present):
        return
    found = f"the adapter in '{adapter}' was trained on {trained}, and base_model is {present}: other weights"
    if config.adapter.allow_other_base:
        warn(f"{found}; taken all the same ({KEY})")
        return
    fix = f"name the base it was trained on, or write {KEY}: true if the difference is wanted"
    raise ModelError(Problem(config.where("base_model"), found, fix, "base_model"))
