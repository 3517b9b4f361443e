"""What decides a run, as JSON knows it: kept in each checkpoint and in ``run.json``, to hold another run against."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from whet.config.config import Config
from whet.config.explain import masked
from whet.config.resolve import ResolvedRun
from whet.config.schema import fields
from whet.core.disk import replace_text

FACTS_NAME = "whet-run-facts.json"
"""Stands in each checkpoint."""

SCHEMA = 1

RESOLVED = (
    *("method", "device", "world_size", "dtype", "autocast_dtype", "tf32", "quantization", "micro_batch_size"),
    *("gradient_accumulation_steps", "global_batch_size", "eval_batch_size", "sequence_len", "eval_sequence_len"),
    *("sample_packing", "eval_sample_packing", "pad_to_sequence_len", "pad_to_multiple_of", "attn_implementation"),
    *("experts_implementation", "head", "gradient_checkpointing", "activation_offloading", "layer_offloading"),
    *("torch_compile", "max_grad_norm", "optimizer", "lr_scheduler", "report_to", "seed", "num_proc", "output_dir"),
    *("prepared_path", "chat_template"),
)
"""Derived values that are kept."""


@dataclass(frozen=True)
class RunFacts:
    """What decides a run.

    Attributes:
        values: every top-level key -> its value as JSON has it, secrets masked; defaults included.
        where: the keys that were written -> the place.
        resolved: what was decided for the machine (`RESOLVED`).
        identities: ``data``, ``tokenizer``, ``chat_template`` -> hash;
            ``base_model`` and ``lora_model_dir`` -> see `whet.model.identity`.
            Those not known yet are missing.
        total_steps: optimiser steps of the whole run; None while not counted.
    """

    values: Mapping[str, Any]
    where: Mapping[str, str] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)
    identities: Mapping[str, Any] = field(default_factory=dict)
    total_steps: int | None = None


def facts_of(
    resolved: ResolvedRun, identities: Mapping[str, Any] | None = None, total_steps: int | None = None
) -> RunFacts:
    """The facts of a run."""
    config = resolved.config
    keys = fields()
    return RunFacts(
        values={key: _json(key, config.value(key)) for key in keys},
        where={key: config.where(key) for key in keys if config.is_set(key)},
        resolved={name: _json(name, getattr(resolved, name)) for name in RESOLVED},
        identities=dict(identities or {}),
        total_steps=total_steps,
    )


def write_facts(folder: Path, facts: RunFacts) -> None:
    """Keep the facts in a checkpoint."""
    replace_text(folder / FACTS_NAME, json.dumps({"schema": SCHEMA, **asdict(facts)}, indent=1) + "\n")


def read_facts(folder: Path) -> RunFacts | None:
    """The facts in a checkpoint; None where it has none, or none that can be read."""
    try:
        return facts_in(json.loads((folder / FACTS_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def facts_in(read: Any) -> RunFacts | None:
    """The facts in what JSON gave; None where they are not there."""
    if not isinstance(read, Mapping) or not isinstance(read.get("values"), Mapping):
        return None
    mappings = {name: read.get(name) or {} for name in ("values", "where", "resolved", "identities")}
    if not all(isinstance(mapping, Mapping) for mapping in mappings.values()):
        return None
    steps = read.get("total_steps")
    return RunFacts(**mappings, total_steps=steps if isinstance(steps, int) else None)


def written_values(config: Config) -> dict[str, Any]:
    """The keys that somebody wrote and their values, for a YAML that says the same."""
    return {key: _json(key, config.value(key), set_only=True) for key in fields() if config.is_set(key)}


def _json(path: str, value: Any, *, set_only: bool = False) -> Any:
    """A value as JSON gives it back: lists for tuples, text for keys of mappings; blocks with what was written in them
    alone, where only that is asked for."""
    if isinstance(value, BaseModel):
        names = value.model_fields_set if set_only else type(value).model_fields
        return {
            name: _json(name, getattr(value, name), set_only=set_only)
            for name in type(value).model_fields
            if name in names
        }
    if isinstance(value, tuple | list):
        return [_json(path, item, set_only=set_only) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _json(str(key), item, set_only=set_only) for key, item in value.items()}
    plain = masked(path, value)
    return plain if plain is None or isinstance(plain, str | int | float) else str(plain)
