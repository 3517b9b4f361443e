"""What is different between a run and the one that it goes on from, or repeats; and what of it may be."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from whet.config.effects import Effect, effect_of
from whet.config.facts import RunFacts
from whet.config.names import FOLLOW_EVALUATIONS
from whet.config.schema import fields

DATA, TOKENIZER, TEMPLATE, BASE, PRECISION = "data", "tokenizer", "chat_template", "base_model", "precision"
ADAPTER, ROWS = "lora_model_dir", "order_of_rows"
NAMES = (DATA, TOKENIZER, PRECISION, ROWS)
"""What may be named in `allow_change` beside keys."""

_IDENTITY_OF = {
    Effect.DATA: DATA,
    Effect.TOKENIZER: TOKENIZER,
    Effect.TEMPLATE: TEMPLATE,
    Effect.BASE: BASE,
    Effect.ADAPTER: ADAPTER,
}
BY_CONTENT = frozenset(_IDENTITY_OF)
"""Effects of keys that do not count by themselves: what they name is compared by its content."""
_PRECISION = ("dtype", "autocast_dtype", "tf32")
_LENGTH = ("num_epochs", "max_steps")
_ORDER = frozenset(
    {"seed", "shuffle_merged_datasets", "curriculum_sampling", "order", "mixing_by", "mixing_temperature", "phases"}
    | {"sample_packing", "sample_packing_sequentially", "sample_packing_balance", "datasets"}
)
"""Keys by which an epoch's samples stand in their rows; of `datasets`, how often each is shown."""
_OTHER_ORDER = "the samples of the rest come in another order: some twice, some never, in this epoch"
_BEFORE = "TRL's order"
"""Of pairs, in checkpoints of before whet computed it."""
_COUPLED = frozenset({"aot", "aot_unpaired", "sft"})
"""Losses of DPO that look at the pairs of a micro-batch together."""
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
_LONGEST_VALUE = 40


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        key: what a person names to allow it.
        was, now: its values as YAML spells them.
        where: the place of the new value.
        effect: what it does to the rest of the run.
        note: a sentence about it; for what is fixed, why.
    """

    key: str
    was: str
    now: str
    where: str
    effect: Effect
    note: str = ""

    @property
    def names(self) -> set[str]:
        """Each of them allows it."""
        return {self.key, self.key.partition(".")[0], *([DATA] if self.key.startswith("datasets") else [])}

    @property
    def is_other_run(self) -> bool:
        return self.effect in (Effect.CHANGES, Effect.FIXED)


@dataclass(frozen=True)
class Verdict:
    """Differences, judged by what the user allows.

    Attributes:
        refused: would make it another run.
        allowed: would too, and were named.
        harmless: leave the numbers as they are, but for the last digits.
        unseen: do not touch what is computed.
    """

    refused: Sequence[Change] = ()
    allowed: Sequence[Change] = ()
    harmless: Sequence[Change] = ()
    unseen: Sequence[Change] = ()


def names_in(written: str | Sequence[str] | None) -> tuple[str, ...]:
    """What `allow_change` names: a list, or a text with commas; hyphens are underscores, as in options.

    >>> names_in("seed, data"), names_in(["learning-rate"])
    (('seed', 'data'), ('learning_rate',))
    """
    listed = written.split(",") if isinstance(written, str) else written or ()
    return tuple(name.strip().replace("-", "_") for name in listed if name.strip())


def judged(changes: Iterable[Change], allowed: Iterable[str]) -> Verdict:
    """Sort differences by what may become of them. What is fixed cannot be allowed."""
    names = set(allowed)
    sorted_out: dict[str, list[Change]] = {"refused": [], "allowed": [], "harmless": [], "unseen": []}
    for change in changes:
        if change.is_other_run:
            is_allowed = change.effect is Effect.CHANGES and bool(change.names & names)
            sorted_out["allowed" if is_allowed else "refused"].append(change)
        else:
            sorted_out["unseen" if change.effect is Effect.NONE else "harmless"].append(change)
    return Verdict(**sorted_out)


def differences(then: RunFacts, now: RunFacts) -> list[Change]:
    """Every key and identity that is not as it was.

    What only one of them knows is not compared: ``now`` may be asked before the data is prepared, with its keys alone.
    """
    found = list(_keys(then, now))
    found += _batch(then, now, found)
    found = _coupled_pairs(then, now, found)
    found += _precision(then, now, found)
    for effect, name in reversed(_IDENTITY_OF.items()):  # the data last: it follows from the others
        found = _with_identity(found, effect, name, then, now)
    return _rows(then, now, found)


def table(changes: Sequence[Change]) -> str:
    """The differences in columns: key, old value, new value, where the new one is written, and what is to be said."""
    rows = [("key", "was", "is", "where", "")]
    rows += [(each.key, _shortened(each.was), _shortened(each.now), each.where, each.note) for each in changes]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)


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
    if key in _ORDER and effect is Effect.CHANGES and not now.values.get("streaming"):
        return _OTHER_ORDER
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


def _batch(then: RunFacts, now: RunFacts, found: Sequence[Change]) -> Iterator[Change]:
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


def _coupled_pairs(then: RunFacts, now: RunFacts, found: Sequence[Change]) -> list[Change]:
    """Losses that compare the pairs of a micro-batch with each other mean something else in one of another size."""
    was, value = then.resolved.get("micro_batch_size"), now.resolved.get("micro_batch_size")
    losses = [name for name in now.values.get("dpo_loss_type") or () if name in _COUPLED]
    if not losses or was is None or value is None or was == value:
        return [*found]
    key = "micro_batch_size"
    note = f"dpo_loss_type {', '.join(losses)} is computed over the pairs of a micro-batch together"
    change = Change(key, str(was), str(value), now.where.get(key, "derived"), Effect.CHANGES, note)
    return [*(each for each in found if each.key != key or each.is_other_run), change]


def _rows(then: RunFacts, now: RunFacts, found: list[Change]) -> list[Change]:
    """The changes, and that an epoch's samples stand in other rows, or in another order, where no change said so yet.

    The samples may be the same to the last bit and packs of another capacity, or packed by another version of whet.
    """
    was, value = then.identities.get(ROWS), now.identities.get(ROWS)
    if was is None and value is not None and DATA in then.identities and then.values.get("rl"):
        was = _BEFORE
    if was is None or value is None or was == value:
        return found
    if any(each.is_other_run and each.names & (_ORDER | {DATA}) for each in found):
        return found
    lengths = [each for each in found if each.key == "sequence_len"]
    if lengths:
        changes = [replace(each, effect=Effect.CHANGES, note=_OTHER_ORDER) for each in lengths]
        return [*(each for each in found if each not in lengths), *changes]
    note = f"this version of whet orders them otherwise; {_OTHER_ORDER}"
    before = was if was == _BEFORE else _identity(was)
    return [*found, Change(ROWS, before, _identity(value), "", Effect.CHANGES, note)]


def _precision(then: RunFacts, now: RunFacts, found: Sequence[Change]) -> Iterator[Change]:
    pair = [{name: facts.resolved[name] for name in _PRECISION if facts.resolved.get(name)} for facts in (then, now)]
    if not then.resolved or not now.resolved or pair[0] == pair[1]:
        return
    keys = [change for change in found if change.effect is Effect.PRECISION]
    where = keys[0].where if keys else "another machine"
    was, value = (", ".join(f"{name} {number}" for name, number in each.items()) for each in pair)
    yield Change(PRECISION, was, value, where, Effect.CHANGES)


def _with_identity(found: Sequence[Change], effect: Effect, name: str, then: RunFacts, now: RunFacts) -> list[Change]:
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


def spelt(value: Any) -> str:
    """A value as YAML has it."""
    if value is None:
        return "(empty)"
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def _shortened(text: str) -> str:
    text = text.replace("\n", "\\n")
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."
