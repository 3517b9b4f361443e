"""A tiny run built in the test: a prepared split of random tokens, a config made in Python, a trainer around them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models import VOCAB_SIZE, tiny_model, tiny_tokenizer
from whet.config import Config
from whet.config.resolve import ResolvedRun, resolve
from whet.config.schema import SECTIONS, owner
from whet.core.types import Hardware
from whet.data.chunk_file import ChunkWriter
from whet.data.samples import Encoded, EncodedPreference, EncodedSample, kind_of
from whet.data.store import (
    PreparedSet,
    link_chunk,
    number_columns,
    open_prepared,
    write_index,
    write_indices,
    write_manifest,
)
from whet.methods.inputs import MethodInputs, training_order
from whet.methods.sft import build_trainer
from whet.model.attention import NAME
from whet.training.steps import StepPlan, plan_steps
from whet.training.trainer import WhetTrainer

FIRST_ORDINARY = 5
"""Ids below are the tiny tokenizer's special tokens."""


def make_config(**keys: Any) -> Config:
    """A config from flat YAML keys, each put into its section. A model and a learning rate are there already."""
    keys = {"base_model": "tiny", "learning_rate": 1e-2, "optimizer": "adamw_torch", **keys}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in keys.items():
        sections.setdefault(owner(key), {})[key] = value
    return Config.model_validate({name: sections[name] for name in SECTIONS if name in sections})


def make_resolved(output_dir: Path, *, world_size: int = 1, rank: int = 0, **keys: Any) -> ResolvedRun:
    """A resolved run on a CPU."""
    hardware = Hardware("cpu", "a CPU", world_size=world_size, rank=rank, local_rank=rank, num_cpus=2)
    return resolve(make_config(output_dir=str(output_dir), **keys), hardware)


def random_samples(num: int, *, seed: int = 0, longest: int = 40) -> list[tuple[np.ndarray, np.ndarray]]:
    """Samples of skewed lengths from 3 tokens up, about half of their tokens supervised, at least one."""
    random = np.random.default_rng(seed)
    samples = []
    for _ in range(num):
        length = int(min(longest, 3 + random.exponential(longest / 4)))
        ids = random.integers(FIRST_ORDINARY, VOCAB_SIZE - 40, length).astype(np.int32)
        supervised = random.random(length) < 0.5
        supervised[0], supervised[-1] = False, True
        samples.append((ids, supervised))
    return samples


def write_prepared(
    folder: Path,
    train: Sequence[tuple[np.ndarray, np.ndarray]],
    validation: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    *,
    sources: Sequence[int] | None = None,
    names: Sequence[str] = ("chat.jsonl",),
) -> PreparedSet:
    """A prepared set on disk. ``sources`` names the dataset of each sample, training ones first."""
    samples = [Encoded(ids, supervised) for ids, supervised in (*train, *validation)]
    return write_samples(folder, samples, len(train), sources=sources, names=names)


def write_samples(
    folder: Path,
    samples: Sequence[EncodedSample],
    num_train: int,
    *,
    sources: Sequence[int] | None = None,
    names: Sequence[str] = ("chat.jsonl",),
) -> PreparedSet:
    """A prepared set of these samples, a chunk for each dataset; the first ``num_train`` train."""
    folder.mkdir(parents=True)
    sources = sources if sources is not None else [0] * len(samples)
    kind = kind_of(samples[0])
    writers = [ChunkWriter(kind) for _ in names]
    index = []
    for number, (sample, source) in enumerate(zip(samples, sources, strict=True)):
        row = (source, writers[source].rows, 0, sample.num_tokens, sample.num_supervised, source, number + 1)
        index.append(row)
        writers[source].add(number, (sample,))
    chunks = []
    for number, (name, writer) in enumerate(zip(names, writers, strict=True)):
        account = writer.write(folder.parent / f"{folder.name}-pool", str(number), "by hand")
        link_chunk(folder.parent / f"{folder.name}-pool" / f"{number}.arrow", folder, f"{number}.arrow")
        entry = {"name": f"{number}.arrow", "file": name, "by_line": True}
        chunks.append({**entry, "bytes": account.num_bytes, "sha256": account.sha256})
    write_index(folder / "index.arrow", number_columns(index))
    write_indices(folder, "train", np.arange(num_train))
    if len(samples) > num_train:
        write_indices(folder, "validation", np.arange(num_train, len(samples)))
    write_manifest(folder, {"kind": kind, "datasets": list(names), "chunks": chunks})
    return open_prepared(folder)


def make_inputs(
    prepared: PreparedSet, resolved: ResolvedRun, model: torch.nn.Module | None = None, **options: Any
) -> MethodInputs:
    """What the method is given, with a tiny Llama unless another model is."""
    order = training_order(resolved, prepared.train)
    plan: StepPlan = plan_steps(
        resolved, order, prepared.train.supervised, has_validation=prepared.validation is not None
    )
    return MethodInputs(
        resolved=resolved,
        plan=plan,
        model=model if model is not None else tiny_model(attention=NAME),
        tokenizer=tiny_tokenizer(),
        order=order,
        train=prepared.train,
        validation=prepared.validation,
        **options,
    )


def make_trainer(
    prepared: PreparedSet, resolved: ResolvedRun, model: torch.nn.Module | None = None, **options: Any
) -> WhetTrainer:
    """A supervised trainer."""
    return build_trainer(make_inputs(prepared, resolved, model, **options))


def write_preferences(folder: Path, num: int, *, seed: int = 0, num_validation: int = 0) -> PreparedSet:
    """A prepared set of random prompts with two random answers each."""
    random = np.random.default_rng(seed)

    def pair() -> EncodedPreference:
        lengths = random.integers(3, 12, 3)
        return EncodedPreference(
            *(random.integers(FIRST_ORDINARY, VOCAB_SIZE - 40, n).astype(np.int32) for n in lengths)
        )

    samples = [pair() for _ in range(num + num_validation)]
    return write_samples(folder, samples, num, names=["pairs.jsonl"])
