"""What is different beyond single keys: the rows of a step and of an epoch, pairs, precision, what keys name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from whet.config.changes import ADAPTER, BASE, DATA, PRECISION, ROWS, TEMPLATE, TOKENIZER, Change
from whet.config.effects import Effect
from whet.config.facts import RunFacts

IDENTITY_OF = {
    Effect.DATA: DATA,
    Effect.TOKENIZER: TOKENIZER,
    Effect.TEMPLATE: TEMPLATE,
    Effect.BASE: BASE,
    Effect.ADAPTER: ADAPTER,
}
BY_CONTENT = frozenset(IDENTITY_OF)
"""Effects of keys that do not count by themselves: what they name is compared by its content."""
_PRECISION = ("dtype", "autocast_dtype", "tf32")
ORDER = frozenset(
    {"seed", "shuffle_merged_datasets", "curriculum_sampling", "order", "mixing_by", "mixing_temperature", "phases"}
    | {"sample_packing", "sample_packing_sequentially", "sample_packing_balance", "datasets"}
)
"""Keys by which an epoch's samples stand in their rows; of `datasets`, how often each is shown."""
OTHER_ORDER = "the samples of the rest come in another order: some twice, some never, in this epoch"
_BEFORE = "TRL's order"
"""Of pairs, in checkpoints of before whet computed it."""
_COUPLED = frozenset({"aot", "aot_unpaired", "sft"})
"""Losses of DPO that look at the pairs of a micro-batch together."""


def batch(then: RunFacts, now: RunFacts, found: Sequence[Change]) -> Iterator[Change]:
    """The rows of a step, where they differ; keys and processes that leave them alone do not matter.

    The place in a prepared set is counted in steps of so many rows, so there they are fixed: with others the run would
    go on somewhere else in its epoch, see some samples twice and others never. A stream knows its row.
    """
    was, value = then.resolved.get("global_batch_size"), now.resolved.get("global_batch_size")
    if was is None or value is None or was == value:
        return
    keys = [change.key for change in found if change.effect is Effect.BATCH]
    processes = then.resolved.get("world_size"), now.resolved.get("world_size")
    note = "rows of an optimiser step"
    per_pass = (now.resolved.get("micro_batch_size") or 1) * (processes[1] or 1)
    if processes[0] != processes[1]:
        note += f", as {processes[0]} processes became {processes[1]}"
    if was % per_pass == 0:
        note += f"; gradient_accumulation_steps: {was // per_pass} keeps them"
    key = keys[0] if keys else "batch_size"
    effect = Effect.CHANGES if now.values.get("streaming") else Effect.FIXED
    yield Change(key, f"{was} rows", f"{value} rows", now.where.get(key, "this machine"), effect, note)


def coupled_pairs(then: RunFacts, now: RunFacts, found: Sequence[Change]) -> list[Change]:
    """Losses that compare the pairs of a micro-batch with each other mean something else in one of another size."""
    was, value = then.resolved.get("micro_batch_size"), now.resolved.get("micro_batch_size")
    losses = [name for name in now.values.get("dpo_loss_type") or () if name in _COUPLED]
    if not losses or was is None or value is None or was == value:
        return [*found]
    key = "micro_batch_size"
    note = f"dpo_loss_type {', '.join(losses)} is computed over the pairs of a micro-batch together"
    change = Change(key, str(was), str(value), now.where.get(key, "derived"), Effect.CHANGES, note)
    return [*(each for each in found if each.key != key or each.is_other_run), change]


def rows(then: RunFacts, now: RunFacts, found: list[Change]) -> list[Change]:
    """The changes, and that an epoch's samples stand in other rows, or in another order, where no change said so yet.

    The samples may be the same to the last bit and packs of another capacity, or packed by another version of whet.
    """
    was, value = then.identities.get(ROWS), now.identities.get(ROWS)
    if was is None and value is not None and DATA in then.identities and then.values.get("rl"):
        was = _BEFORE
    if was is None or value is None or was == value:
        return found
    if any(each.is_other_run and each.names & (ORDER | {DATA}) for each in found):
        return found
    lengths = [each for each in found if each.key == "sequence_len"]
    if lengths:
        changes = [replace(each, effect=Effect.CHANGES, note=OTHER_ORDER) for each in lengths]
        return [*(each for each in found if each not in lengths), *changes]
    note = f"this version of whet orders them otherwise; {OTHER_ORDER}"
    before = was if was == _BEFORE else _identity(was)
    return [*found, Change(ROWS, before, _identity(value), "", Effect.CHANGES, note)]


def precision(then: RunFacts, now: RunFacts, found: Sequence[Change]) -> Iterator[Change]:
    pair = [{name: facts.resolved[name] for name in _PRECISION if facts.resolved.get(name)} for facts in (then, now)]
    if not then.resolved or not now.resolved or pair[0] == pair[1]:
        return
    keys = [change for change in found if change.effect is Effect.PRECISION]
    where = keys[0].where if keys else "another machine"
    was, value = (", ".join(f"{name} {number}" for name, number in each.items()) for each in pair)
    yield Change(PRECISION, was, value, where, Effect.CHANGES)


def with_identity(found: Sequence[Change], effect: Effect, name: str, then: RunFacts, now: RunFacts) -> list[Change]:
    """The changes, with the keys that bear on an identity judged by it."""
    was, value = then.identities.get(name), now.identities.get(name)
    keys = [change for change in found if change.effect is effect]
    rest = [change for change in found if change.effect is not effect]
    if was is None or value is None:
        # Of a stream nothing is known beforehand, so there the keys themselves must be the same.
        is_stream = effect is Effect.DATA and bool(now.values.get("streaming"))
        return [*rest, *(replace(change, effect=Effect.CHANGES) if is_stream else change for change in keys)]
    if same_identity(was, value):
        return [*rest, *(replace(change, effect=Effect.NONE) for change in keys)]
    note = "of other content" if keys else "the same name, and other content"
    elsewhere = (change for change in rest if change.key not in (BASE, ADAPTER))  # no weights are in prepared rows
    if effect is Effect.DATA and not keys and any(change.effect is Effect.CHANGES for change in elsewhere):
        note = "of other content, through what else has changed"
    where = keys[0].where if keys else _place_of(name, now)
    named = Change(name, _identity(was), _identity(value), where, Effect.CHANGES, note)
    others = [replace(change, effect=Effect.CHANGES) for change in keys if change.key != name]
    return [*rest, named, *others]


def same_identity(one: Any, other: Any) -> bool:
    """Whether two identities are of the same thing: by all bytes where both know them, else by their sample."""
    if not isinstance(one, Mapping) or not isinstance(other, Mapping):
        return bool(one == other)
    if one.get("weights") and other.get("weights"):
        return bool(one["weights"] == other["weights"])
    return bool(one.get("sample") == other.get("sample"))


def _place_of(name: str, now: RunFacts) -> str:
    keys = {DATA: "datasets", TOKENIZER: "tokenizer_config"}
    return now.where.get(keys.get(name, name)) or now.where.get("base_model", "")


def _identity(value: Any) -> str:
    if isinstance(value, Mapping):
        value = value.get("weights") or value.get("sample") or ""
    return f"sha256 {str(value)[:12]}"
