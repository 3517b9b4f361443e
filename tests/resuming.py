"""Tiny runs by YAML keys that can be stopped, resumed and compared bit for bit, in one process."""

from __future__ import annotations

import io
import json
import random
import warnings
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.models import save_tiny_model, tiny_tokenizer
from tests.tiny_streams import stream_run, write_texts
from tests.tiny_training import make_resolved, random_samples, write_preferences, write_prepared
from whet import stages
from whet.data.store import PreparedSet, open_prepared
from whet.methods import METHODS
from whet.methods.inputs import MethodInputs, training_order
from whet.training.fit import fit
from whet.training.steps import plan_steps, plan_stream

TIMED = ("seconds", "per_second", "runtime", "memory", "wait", "train_loss")
"""Parts of the names of figures that are measured, and differ from run to run."""

KEYS: dict[str, Any] = {
    "sequence_len": 64,
    "sample_packing": True,
    "micro_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_epochs": 2.0,
    "warmup_steps": 1,
    "weight_decay": 0.1,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "optimizer": "adamw_torch",
    "save_total_limit": 0,
    "eval_strategy": "no",
}


@dataclass(frozen=True)
class Outcome:
    """What a run has come to.

    Attributes:
        tensors: every parameter and buffer of the model, by name.
        optimizer, scheduler: their state.
        random: the states of the generators.
        told: lines of metrics.jsonl without what is measured.
        seen: the documents of each optimiser step that this process did, by number.
        state: of the trainer: the best metric and the like.
    """

    tensors: Mapping[str, torch.Tensor]
    optimizer: Any
    scheduler: Any
    random: Any
    told: list[dict[str, Any]]
    seen: Mapping[int, list[int]]
    state: Mapping[str, Any] = field(default_factory=dict)


class Bench:
    """Where tiny runs are made: base models and prepared sets on disk, made once, for other processes too.

    Args:
        folder: a folder of one's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def base(self, **size: Any) -> Path:
        folder = self.folder / "-".join(["base", *(f"{name}-{value}" for name, value in sorted(size.items()))])
        architecture = size.pop("architecture", "llama")
        return folder if folder.exists() else save_tiny_model(folder, architecture, **size)

    def prepared(self, kind: str) -> PreparedSet:
        folder = self.folder / f"set-{kind}"
        if folder.exists():
            return open_prepared(folder)
        if kind == "pairs":
            return write_preferences(folder, 9, seed=3, num_validation=2)
        samples = random_samples(18, seed=7), random_samples(3, seed=8)
        if kind == "mixed":
            return write_prepared(folder, *samples, sources=[0, 1, 0] * 7, names=("chat", "code"))
        return write_prepared(folder, *samples)

    def texts(self) -> list[dict[str, Any]]:
        folder = self.folder / "texts"
        if not folder.exists():
            write_texts(folder / "a.jsonl", 40, seed=1)
            write_texts(folder / "b.jsonl", 13, seed=2)
        return [{"path": str(folder / "a.jsonl"), "weight": 3}, {"path": str(folder / "b.jsonl"), "weight": 1}]

    def make(self, *, size: Mapping[str, Any] | None = None, data: str = "plain", **keys: Any) -> None:
        """Make what runs of these options need, before several processes ask for it."""
        self.base(**(size or {}))
        if data == "stream":
            self.texts()
        else:
            self.prepared(data)

    def trainer(
        self,
        output_dir: Path,
        *,
        size: Mapping[str, Any] | None = None,
        data: str = "plain",
        ranks: tuple[int, int] = (0, 1),
        **keys: Any,
    ) -> tuple[Any, Any]:
        """A trainer, built as a run builds it, and the resolved run.

        Args:
            size: of the base model, and its ``architecture``.
            data: "plain", "mixed", "pairs" or "stream".
            ranks: rank and world size.
        """
        rank, world_size = ranks
        keys = {**KEYS, "base_model": str(self.base(**(size or {}))), **keys}
        tokenizer = tiny_tokenizer()
        if data == "stream":
            keys.pop("num_epochs")
            keys = {"max_steps": 6, "streaming_multipack_buffer_size": 12, **keys}
            resolved = stream_run(output_dir, self.texts(), world_size=world_size, rank=rank, **keys)
            prepared: Any = stages.training_data(resolved, tokenizer)
            order, plan = None, plan_stream(resolved, has_validation=False)
        else:
            resolved = make_resolved(output_dir, world_size=world_size, rank=rank, **keys)
            prepared = self.prepared(data)
            order = training_order(resolved, prepared.train)
            plan = plan_steps(
                resolved, order, prepared.train.supervised, has_validation=prepared.validation is not None
            )
        torch.manual_seed(resolved.seed)
        model, isolates = stages.make_model(resolved, tokenizer)
        inputs = MethodInputs(
            resolved, plan, model, tokenizer, order, prepared.train, prepared.validation, isolates_documents=isolates
        )
        return METHODS.load(resolved.method, "rl")(inputs), resolved

    def run(
        self,
        output_dir: Path,
        *,
        resume: Path | None = None,
        callbacks: tuple[Any, ...] = (),
        raises: type[BaseException] | None = None,
        **options: Any,
    ) -> Outcome:
        """A run from its beginning, or from a checkpoint, to its end or to the error that it is to end with."""
        with quiet():
            trainer, resolved = self.trainer(output_dir, **options)
            seen = documents_seen(trainer)
            for callback in callbacks:
                trainer.add_callback(callback)
            if resume is not None:
                scatter_random_states()
            try:
                fit(trainer, resolved, resume)
            except BaseException as error:
                if raises is None or not isinstance(error, raises):
                    raise
            else:
                assert raises is None, f"the run ended without {raises}"
        return outcome(trainer, output_dir, seen)


@contextmanager
def quiet() -> Any:
    """Without the warnings of packages about what they cannot do on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def scatter_random_states() -> None:
    """Set every generator to a state of its own, as a new process has."""
    torch.rand(7)  # its seed stays: transformers sets it in each new process
    random.seed(12345)
    np.random.seed(12345)


def random_states() -> Any:
    return {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": np.random.get_state()}


def documents_seen(trainer: Any) -> dict[int, list[int]]:
    """A table that fills as the trainer trains: the documents of each step, by number (of pairs: by their tokens)."""
    seen: dict[int, list[int]] = {}
    get = trainer.get_batch_samples

    def watched(*args: Any, **kwargs: Any) -> Any:
        batches, num_items = get(*args, **kwargs)
        ids: list[int] = []
        for batch in batches:
            if "example_ids" in batch:
                ids += batch["example_ids"].tolist()
            else:
                ids += [hash(tuple(row)) for row in batch["input_ids"].tolist()]
        seen[trainer.state.global_step + 1] = sorted(ids)
        return batches, num_items

    trainer.get_batch_samples = watched
    return seen


def outcome(trainer: Any, output_dir: Path, seen: Mapping[int, list[int]]) -> Outcome:
    model = trainer.accelerator.unwrap_model(trainer.model)
    tensors = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    tensors |= {name: tensor.detach().clone() for name, tensor in model.named_buffers() if name not in tensors}
    state = {name: getattr(trainer.state, name) for name in ("best_metric", "best_global_step", "global_step", "epoch")}
    return Outcome(
        tensors,
        reloaded(trainer.optimizer.state_dict()),
        reloaded(trainer.lr_scheduler.state_dict()),
        random_states(),
        metrics(output_dir),
        dict(seen),
        state,
    )


def reloaded(value: Any) -> Any:
    """A copy with no ties to the run."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def metrics(output_dir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says, without what is measured."""
    path = output_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [{name: line[name] for name in line if not any(part in name for part in TIMED)} for line in lines]


def difference(one: Any, other: Any, place: str = "") -> str | None:
    """Where two values, tensors to the last bit, first differ; None where they are the same."""
    if isinstance(one, torch.Tensor):
        if not isinstance(other, torch.Tensor) or one.dtype != other.dtype or one.shape != other.shape:
            return f"{place}: {_kind(one)} and {_kind(other)}"
        first, second = (_plain(each) for each in (one, other))
        if isinstance(first, dict):
            return difference(first, second, place)
        return None if torch.equal(_bits(first), _bits(second)) else f"{place}: other values"
    if isinstance(one, Mapping):
        if not isinstance(other, Mapping) or one.keys() != other.keys():
            return f"{place}: other keys {sorted(map(str, set(one) ^ set(other)))}"
        pairs: Any = ((f"{place}.{key}", one[key], other[key]) for key in one)
    elif isinstance(one, list | tuple) and not isinstance(one, str):
        if not isinstance(other, list | tuple) or len(one) != len(other):
            return f"{place}: {len(one)} and {len(other)} entries"
        pairs = ((f"{place}[{index}]", *pair) for index, pair in enumerate(zip(one, other, strict=True)))
    elif isinstance(one, np.ndarray):
        return None if np.array_equal(one, other) else f"{place}: other values"
    elif hasattr(one, "__dict__") and type(one) is type(other) and not callable(one):
        return difference(vars(one), vars(other), place)
    else:
        same = one == other or (one != one and other != other)
        return None if same else f"{place}: {one!r} and {other!r}"
    return next((found for where, *pair in pairs if (found := difference(*pair, where)) is not None), None)


def _plain(tensor: torch.Tensor) -> Any:
    """A tensor subclass as its parts."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return tensor.detach()
    if hasattr(tensor, "__tensor_flatten__"):
        names, _ = tensor.__tensor_flatten__()
        return {name: getattr(tensor, name) for name in names}
    return tensor.detach().as_subclass(torch.Tensor)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The same bits as whole numbers, so that -0.0 is not 0.0 and nan is nan."""
    if not tensor.dtype.is_floating_point:
        return tensor
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.contiguous().view(kinds[tensor.element_size()])


def _kind(value: Any) -> str:
    return f"{value.dtype}{list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)


def same(one: Outcome, other: Outcome, *, seen: bool = False, skip: tuple[str, ...] = ()) -> str | None:
    """Where two runs differ first: the documents of a step, what was told, weights, optimizer, schedule, randomness."""
    parts = ("told", "tensors", "optimizer", "scheduler", "random", "state")
    for name in (("seen",) if seen else ()) + parts:
        if name in skip:
            continue
        if (found := difference(getattr(one, name), getattr(other, name), name)) is not None:
            return found
    return None
