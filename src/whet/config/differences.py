"""What is different between a run and the one that it goes on from, or repeats: key by key, and beyond the keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from whet.config.changes import Change, spelt
from whet.config.compared import (
    IDENTITY_OF,
    ORDER,
    OTHER_ORDER,
    batch,
    coupled_pairs,
    precision,
    rows,
    with_identity,
)
from whet.config.effects import Effect, effect_of
from whet.config.facts import RunFacts
from whet.config.names import FOLLOW_EVALUATIONS
from whet.config.schema import fields

_LENGTH = ("num_epochs", "max_steps")
_DRAWN = "dropout and noise draw other random numbers with it"
_DRAWS = frozenset(
    {"lora_qkv_kernel", "lora_mlp_kernel", "lora_o_kernel", "attn_implementation", "tiled_mlp", "tiled_mlp_num_shards"}
    | {"pad_to_sequence_len", "pad_to_multiple_of", "device_map", "max_memory", "experts_implementation"}
    | {"expert_backend", "use_scattermoe", "use_sonicmoe", "moe_grouped_backend", "torch_compile"}
    | {"torch_compile_backend", "torch_compile_mode", "torch_compile_options"}
)
"""Keys that change only the last digits, but where random numbers are drawn: then also which."""
_SAVES = frozenset({"save_steps", "saves_per_epoch", "save_strategy"})
_EVALUATIONS = frozenset({"eval_steps", "evals_per_epoch", "eval_strategy", "eval_on_start"})
_SAID_OF_RESUMING = frozenset({"allow_change", "resume_from_checkpoint", "auto_resume_from_checkpoints"})
_SETS = frozenset({"lora_target_modules", "lora_modules_to_save", "lora_exclude_modules", "peft_layers_to_transform"})
"""Lists that say which modules of the model are meant, in whatever order."""


def differences(then: RunFacts, now: RunFacts) -> list[Change]:
    """Every key and identity that is not as it was.

    What only one of them knows is not compared: ``now`` may be asked before the data is prepared, with its keys alone.
    """
    found = list(_keys(then, now))
    found += batch(then, now, found)
    found = coupled_pairs(then, now, found)
    found += precision(then, now, found)
    for effect, name in reversed(IDENTITY_OF.items()):  # the data last: it follows from the others
        found = with_identity(found, effect, name, then, now)
    return rows(then, now, found)


def _keys(then: RunFacts, now: RunFacts) -> Iterator[Change]:
    follows, keeps_best = _follows_evaluations(now), bool(now.values.get("load_best_model_at_end"))
    drops = now.values.get("adapter") and now.values.get("lora_dropout")  # without an adapter nothing is dropped
    draws = bool(drops or now.values.get("neftune_noise_alpha"))
    for key in fields():
        if key in _SAID_OF_RESUMING or (key not in then.values and key not in now.where):
            continue  # the latter came after that run, and has its default
        was, value = then.values.get(key), now.values.get(key)
        if was == value or _names_the_same(key, was, value):
            continue
        for place, old, new in _inside(key, was, value):
            answer = effect_of(place)
            decides = (follows and key in _EVALUATIONS) or (keeps_best and key in _SAVES)
            draws_anew = answer.effect is Effect.ROUNDING and place in _DRAWS and draws
            effect = Effect.CHANGES if decides or draws_anew else answer.effect
            if effect is Effect.ADAPTER and not (old and new):
                effect = Effect.FIXED  # an adapter made anew has another rank, or other targets, than one that is named
            if effect is Effect.BATCH and draws:
                yield Change(place, spelt(old), spelt(new), now.where.get(key, "the default"), effect, _DRAWN)
                continue
            note = (answer.why if effect is not Effect.ADAPTER else "") or _note(key, effect, now)
            yield Change(place, spelt(old), spelt(new), now.where.get(key, "the default"), effect, note)


def _names_the_same(key: str, was: Any, value: Any) -> bool:
    return key in _SETS and isinstance(was, list) and isinstance(value, list) and set(was) == set(value)


def _inside(key: str, was: Any, value: Any) -> Iterator[tuple[str, Any, Any]]:
    """Rows of datasets by their own keys; anything else whole."""
    is_rows = key in ("datasets", "test_datasets") and isinstance(was, list) and isinstance(value, list)
    if not is_rows or len(was) != len(value):
        yield key, was, value
        return
    for number, (old, new) in enumerate(zip(was, value, strict=True)):
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                yield f"{key}.{number}.{name}", old.get(name), new.get(name)


def _note(key: str, effect: Effect, now: RunFacts) -> str:
    if key in _LENGTH:
        if str(now.values.get("lr_scheduler", "")).startswith("constant"):
            return "the learning rate stays; only the end moves"
        return "the schedule is computed anew for the new number of steps: the learning rate jumps where it goes on"
    if key in ORDER and effect is Effect.CHANGES and not now.values.get("streaming"):
        return OTHER_ORDER
    if key in _DRAWS and effect is Effect.CHANGES:
        return _DRAWN
    if key in _SAVES and effect is Effect.CHANGES:
        return "this run ends with the best of its checkpoints"
    return "this run follows its evaluations" if key in _EVALUATIONS and effect is Effect.CHANGES else ""


def _follows_evaluations(facts: RunFacts) -> bool:
    values = facts.values
    return (
        values.get("lr_scheduler") in FOLLOW_EVALUATIONS
        or values.get("early_stopping_patience") is not None
        or bool(values.get("load_best_model_at_end"))
        or values.get("save_strategy") == "best"
    )
