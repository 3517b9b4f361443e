"""What kind of rows a config trains on; each kind has a table of types of its own."""

from __future__ import annotations

from typing import Literal

from whet.config.config import Config

Task = Literal["supervised", "preference", "unpaired", "odds", "reward", "steps", "prompts", "features"]
"""Kinds of rows.

supervised: an answer (no `rl`). preference: two answers to a prompt, one preferred (dpo, ipo, simpo). unpaired: one
answer, wanted or not (kto). odds: as preference, in ORPO's types. reward: as preference, for a reward model. steps: a
solution, right or wrong step by step (process reward). prompts: a prompt that the model answers (grpo, gdpo).
features: a prompt and a reference answer (ebft).
"""

_OF_METHOD: dict[str, Task] = {
    "dpo": "preference",
    "ipo": "preference",
    "simpo": "preference",
    "kto": "unpaired",
    "orpo": "odds",
    "grpo": "prompts",
    "gdpo": "prompts",
    "ebft": "features",
}


def task_of(config: Config) -> Task:
    """The kind of rows that the config's method trains on; pairs for a method that another package brings."""
    if config.method.reward_model:
        return "reward"
    if config.method.process_reward_model:
        return "steps"
    return "supervised" if config.method.rl is None else _OF_METHOD.get(config.method.rl, "preference")


def method_key(config: Config) -> str | None:
    """How the method is written in the YAML: ``rl: kto``, ``reward_model: true``; None for supervised fine-tuning."""
    for key in ("reward_model", "process_reward_model"):
        if getattr(config.method, key):
            return f"{key}: true"
    return None if config.method.rl is None else f"rl: {config.method.rl}"


def dotted_task_prefixes(task: Task) -> tuple[str, ...]:
    """Where Axolotl keeps the types of a kind of rows; a name that begins so is the type behind it."""
    folder = {"preference": "dpo.", "unpaired": "kto.", "odds": "orpo.", "features": "ebft."}.get(task, "")
    return (f"axolotl.prompt_strategies.{folder}", "axolotl.prompt_strategies.")


def bare_type(name: str, task: Task) -> str:
    """A type without the path of Axolotl's modules before it.

    >>> bare_type("axolotl.prompt_strategies.dpo.chatml.intel", "preference"), bare_type("alpaca", "supervised")
    ('chatml.intel', 'alpaca')
    """
    for prefix in dotted_task_prefixes(task):
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    return name
