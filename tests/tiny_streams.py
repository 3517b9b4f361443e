"""Streams built in the test: small files, chunks of a few rows, a tiny tokenizer; nothing is prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models import tiny_model, tiny_tokenizer
from whet.config import make_config
from whet.config.resolve import ResolvedRun, resolve
from whet.core.types import Hardware
from whet.data import chunks
from whet.data.chunks import Cut
from whet.data.feed import StreamSample
from whet.data.streaming import StreamSetup
from whet.methods.inputs import MethodInputs
from whet.methods.sft import build_trainer
from whet.model.attention import NAME
from whet.training.steps import plan_stream
from whet.training.trainer import WhetTrainer

SMALL = Cut(least=300, most=900, every=200)
"""Chunks of about ten rows, where a run has thousands."""


def small_chunks(cut: Cut = SMALL) -> None:
    """Let sources be cut in small chunks in this process; `monkeypatch` takes it back if it has seen the defaults."""
    chunks.chunks_of_stream.__defaults__ = (None, cut)
    chunks.chunks_of_lines.__defaults__ = (cut,)


def write_texts(path: Path, num: int, *, seed: int = 0, longest: int = 40) -> Path:
    """Rows ``{"text": ...}`` of skewed lengths, each with its number in it."""
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    lengths = [int(min(longest, 3 + random.exponential(longest / 4))) for _ in range(num)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [f"{number} {''.join(random.choice(list(letters), length))}" for number, length in enumerate(lengths)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def stream_run(
    folder: Path, datasets: Sequence[Mapping[str, Any]], *, world_size: int = 1, rank: int = 0, **keys: Any
) -> ResolvedRun:
    """A resolved run on a stream of raw texts."""
    values: dict[str, Any] = {
        "base_model": "org/tiny",
        "learning_rate": 1e-2,
        "optimizer": "adamw_torch",
        "streaming": True,
        "max_steps": 8,
        "sequence_len": 64,
        "sample_packing": True,
        "streaming_multipack_buffer_size": 30,
        "output_dir": str(folder),
        "dataset_prepared_path": str(folder / "prepared"),
        "datasets": [{"type": "completion", **row} for row in datasets],
        **keys,
    }
    hardware = Hardware("cpu", "a CPU", world_size=world_size, rank=rank, local_rank=rank, num_cpus=2)
    return resolve(make_config(values), hardware)


def setup_of(resolved: ResolvedRun) -> StreamSetup:
    return StreamSetup.of(resolved.config, resolved, tiny_tokenizer())


def stream_trainer(resolved: ResolvedRun, model: torch.nn.Module | None = None, **options: Any) -> WhetTrainer:
    """A trainer on the stream, with a tiny Llama unless another model is given."""
    inputs = MethodInputs(
        resolved=resolved,
        plan=plan_stream(resolved, has_validation=False),
        model=model if model is not None else tiny_model(attention=NAME),
        tokenizer=tiny_tokenizer(),
        order=None,
        train=setup_of(resolved),
        **options,
    )
    return build_trainer(inputs)


def text_of(sample: StreamSample) -> str:
    """What a sample says; with its number in the file it names it."""
    return f"{sample.place} {bytes((sample.input_ids[sample.input_ids > 4] - 5).tolist()).decode('latin-1')}"
