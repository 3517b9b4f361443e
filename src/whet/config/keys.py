"""Which of the written keys are keys of ours, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from whet.config.fitting import shape_of
from whet.config.known_keys import (
    ALIASES,
    ATTENTION_SWITCHES,
    ELSEWHERE,
    ELSEWHERE_OTHERWISE,
    INTERNAL,
    NO_EFFECT,
    READ_BY_TRAINING,
    REFUSED,
    RENAMED,
    ROW_NO_EFFECT,
    ROW_REFUSED,
    asks_for_nothing,
    every_name,
)
from whet.config.names import ATTENTION_REFUSED
from whet.config.origins import Origin
from whet.config.schema import DatasetConfig, fields
from whet.config.source import Node
from whet.core.errors import Problem
from whet.core.nearest import nearest

PRETRAINING = "pretraining_dataset"
"""Axolotl's name of datasets of raw text that are read as a stream."""


@dataclass
class Findings:
    """What was found while reading a config.

    Attributes:
        problems: what stops it.
        warnings: what does not.
        spoilt: keys whose value cannot be judged; rules about them stay silent.
    """

    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)


def canonical(root: Node, findings: Findings) -> Node:
    """The tree with every key under our own spelling of it."""
    entries: dict[str, Node] = {}
    written: dict[str, str] = {}
    for name, node in (root.entries or {}).items():
        key = ALIASES.get(name) or RENAMED.get(name) or name
        where = node.origin.where
        if key in entries:
            found = f"'{name}' is the same key as '{written[key]}' ({entries[key].origin.where})"
            findings.problems.append(Problem(where, found, "keep one of them", key))
            continue
        if name in RENAMED:
            findings.warnings.append(Problem(where, f"'{name}' is the old name of '{key}'", f"write '{key}'", key))
        entries[key] = _without_prefix(node) if key == "fsdp_config" else node
        written[key] = name
    if written.get("datasets") == PRETRAINING:
        entries["datasets"] = _pretrain(entries["datasets"])
        origin = Origin("derived", f"{entries['datasets'].origin.where} ({PRETRAINING})")
        entries.setdefault("streaming", Node(True, origin, key="streaming"))
    return replace(root, value=entries)


def _pretrain(rows: Node) -> Node:
    """Rows of `pretraining_dataset`, whose type is `pretrain` where none is written; a row may stand alone."""
    items = rows.items if rows.items is not None else (replace(rows, key=None),) if rows.value is not None else ()
    return replace(rows, value=tuple(map(_pretrain_row, items)), plain=None)


def _pretrain_row(row: Node) -> Node:
    entries = {"path": replace(row, key="path")} if isinstance(row.value, str) else row.entries
    if entries is None or "type" in entries:
        return row
    kind = Node("pretrain", Origin("derived", f"{row.origin.where} ({PRETRAINING})"), key="type")
    return replace(row, value={**entries, "type": kind}, plain=None)


def _without_prefix(node: Node) -> Node:
    """`fsdp_config` with Axolotl's optional prefix `fsdp_` taken off its keys."""
    if node.entries is None:
        return node
    entries: dict[str, Node] = {}
    for name, inner in node.entries.items():
        short = "fsdp_version" if name == "version" else name if name == "fsdp_version" else name.removeprefix("fsdp_")
        entries[name if short in entries else short] = inner
    return replace(node, value=entries)


def ours(root: Node, findings: Findings) -> dict[str, Node]:
    """The entries whose keys are ours; of every other one, a problem or a warning."""
    kept: dict[str, Node] = {}
    entries = root.entries or {}
    for name, node in entries.items():
        if name in fields():
            kept[name] = _known_inside(node, fields()[name].annotation, name, findings)
        elif name not in ATTENTION_SWITCHES:
            _judge(name, node, findings, _methods(entries))
    _attention(entries, kept, findings)
    return kept


def _methods(entries: Mapping[str, Node]) -> set[str]:
    """The methods that the file names, as a person writes them: ``rl: kto``."""
    keys = ("rl", "reward_model", "process_reward_model")
    return {f"{key}: {str(entries[key].raw()).lower()}" for key in keys if key in entries}


def _judge(name: str, node: Node, findings: Findings, methods: Collection[str]) -> None:
    where, value = node.origin.where, node.raw()
    if name in NO_EFFECT:
        if not asks_for_nothing(name, value):
            findings.warnings.append(
                Problem(where, f"'{name}' changes nothing here: {NO_EFFECT[name]}", "remove it", name)
            )
    elif name in REFUSED:
        waits = next((method for method in READ_BY_TRAINING.get(name, ()) if method in methods), None)
        if waits and not asks_for_nothing(name, value):
            found = f"'{name}' is read by training with {waits}, which is not built: the data alone can be prepared"
            findings.warnings.append(Problem(where, found, "keep it for later, or remove it", name))
        elif not asks_for_nothing(name, value):
            findings.problems.append(Problem(where, f"'{name}' is not supported yet", REFUSED[name], name))
    elif name in INTERNAL:
        if not asks_for_nothing(name, value):
            findings.problems.append(
                Problem(
                    where, f"'{name}' is found out by the run itself and is no key to write", "remove the line", name
                )
            )
    elif name.startswith("unsloth_"):
        findings.problems.append(
            Problem(where, f"'{name}' is not supported", "remove the line: only speed and memory differ", name)
        )
    else:
        _unknown(name, f"'{name}'", where, fields(), every_name(), findings)


MOST_COMPARED = 100
"""Problems after which an unknown key is compared with no known one: it takes milliseconds, and nobody reads on."""

_WHERE_ALL_ARE = {
    False: "`whet config schema` lists every key",
    True: "`--help` lists the command's own options, `whet config schema` the keys, each of which is one too",
}

LIKENESS_OF_OTHERS = 0.8
"""How like a key that is only known (refused, as a rule) a word must be to be taken for it."""


def _unknown(
    name: str, shown: str, where: str, keys: Collection[str], others: Collection[str], findings: Findings
) -> None:
    if name in DatasetConfig.model_fields and name not in ELSEWHERE:
        findings.problems.append(Problem(where, f"unknown key {shown}", "write it in a row of `datasets`", name))
        return
    if name in ELSEWHERE_OTHERWISE:
        findings.problems.append(Problem(where, f"unknown key {shown}", ELSEWHERE_OTHERWISE[name], name))
        return
    close = ELSEWHERE.get(name)
    if close is None and len(findings.problems) <= MOST_COMPARED:
        other = nearest(name, others, likeness=LIKENESS_OF_OTHERS)
        close = nearest(name, [*keys, other] if other else keys)
    if close:
        findings.spoilt.add(close)
    advice = f"did you mean '{close}'?" if close else _WHERE_ALL_ARE[where.startswith("--")]
    findings.problems.append(Problem(where, f"unknown key {shown}", advice, name))


def _attention(entries: Mapping[str, Node], kept: dict[str, Node], findings: Findings) -> None:
    """The old switches, as attn_implementation."""
    asked = {name: node for name in ATTENTION_SWITCHES if (node := entries.get(name)) and node.value is not None}
    for name, node in list(asked.items()):
        word = node.plain.lower() if node.plain is not None else ""
        if word in ("false", "no", "off"):
            del asked[name]
        elif word not in ("true", "yes", "on"):
            del asked[name]
            findings.problems.append(
                Problem(node.origin.where, f"{name} is {node.raw()!r}", "write true or false", name)
            )
    named = kept.get("attn_implementation")
    for name, node in asked.items():
        value = ATTENTION_SWITCHES[name]
        if value in ATTENTION_REFUSED:
            found = f"'{name}' asks for what is not computed: {ATTENTION_REFUSED[value]}"
            findings.problems.append(Problem(node.origin.where, found, "remove the line", name))
        elif named is not None and named.raw() is not None and named.raw() != value:
            findings.problems.append(
                Problem(
                    node.origin.where,
                    f"'{name}' asks for {value}, and {named.origin.where} for {named.raw()}",
                    "keep attn_implementation alone",
                    "attn_implementation",
                )
            )
        else:
            origin = Origin("derived", f"{node.origin.where} ({name})", node.origin.replaced)
            named = kept["attn_implementation"] = Node(value, origin, key="attn_implementation")
            findings.warnings.append(
                Problem(node.origin.where, f"'{name}' is an old switch", f"write attn_implementation: {value}", name)
            )


def _known_inside(node: Node, annotation: Any, path: str, findings: Findings) -> Node:
    """The node without the unknown keys of its nested blocks and rows, which are reported."""
    shape = shape_of(annotation)
    if node.items is not None and shape.items is not None:
        items = (
            _known_inside(item, shape.items, f"{path}[{index}]", findings) for index, item in enumerate(node.items)
        )
        return replace(node, value=tuple(items))
    if shape.block is None or node.entries is None:
        return node
    known = shape.block.model_fields
    kept: dict[str, Node] = {}
    for name, inner in node.entries.items():
        if name in known:
            kept[name] = _known_inside(inner, known[name].annotation, f"{path}.{name}", findings)
        else:
            _judge_inside(name, inner, f"{path}.{name}", known, shape.block is DatasetConfig, findings)
    return replace(node, value=kept)


def _judge_inside(name: str, node: Node, shown: str, known: Collection[str], in_row: bool, findings: Findings) -> None:
    where = node.origin.where
    if in_row and name in ROW_NO_EFFECT:
        findings.warnings.append(Problem(where, f"'{shown}' changes nothing: {ROW_NO_EFFECT[name]}", "remove it", name))
    elif in_row and name in ROW_REFUSED:
        if not asks_for_nothing(name, node.raw()):
            findings.problems.append(Problem(where, f"'{shown}' is not supported yet", ROW_REFUSED[name], name))
    else:
        others = (*ROW_REFUSED, *ROW_NO_EFFECT) if in_row else ()
        few = len(findings.problems) <= MOST_COMPARED
        close = (nearest(name, known) or nearest(name, others)) if few else None
        advice = f"did you mean '{close}'?" if close else f"use one of: {', '.join(known)}"
        findings.problems.append(Problem(where, f"unknown key '{shown}'", advice, name))
