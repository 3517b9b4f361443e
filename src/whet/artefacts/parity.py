"""The parity record: proof that what was written is the model that was trained (promise G6).

    live model ──> logits of 8 prompts, on disk ──> the artefact, loaded by a fresh process, on the same prompts ──> KL
    (`live_reference`, or `FreshProcess.speak`)     (`prove`)                                      parity.json

At no time are the logits of more than one prompt in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from whet.artefacts.fresh import CannotLoad, CannotTell, FreshProcess, Source
from whet.artefacts.fresh_script import logits_of
from whet.artefacts.prompts import VERSION, Prompts
from whet.artefacts.publish import scratch
from whet.core.deferred import is_loaded
from whet.core.disk import sha256
from whet.core.errors import ParityError, Problem
from whet.core.log import say, warn
from whet.record import versions_of

RECORD_NAME = "parity.json"

PACKAGES = ("whet", "torch", "transformers", "peft", "bitsandbytes", "torchao")

WITHIN, OVER, REPORTED, UNPROVED = "within the limit", "over the limit", "reported", "not proved"


@dataclass(frozen=True)
class Limit:
    """How far an artefact may be from the live model: KL in nats, on average over the positions and at any one.

    ``max_kl`` is None where single positions are not judged.
    """

    mean_kl: float
    max_kl: float | None = None


FLOAT32 = Limit(mean_kl=1e-4, max_kl=1e-4)
HALF = Limit(mean_kl=1e-2)
"""16 bits: weights, and every sum of the forward pass, are rounded to 8 (bfloat16) or 11 bits.

Not for single positions: where a mixture of experts stands between two of them, rounding decides, and that token alone
is far away (0.3 nats in a tiny gpt-oss whose mean is 0.002).
"""


def limit_for(*dtypes: str) -> Limit | None:
    """The limit for models that compute in these dtypes: of the coarsest. None where one is neither 32 nor 16 bits."""
    if all(dtype in ("float32", "float64") for dtype in dtypes):
        return FLOAT32
    return HALF if all(dtype in ("float32", "float64", "bfloat16", "float16") for dtype in dtypes) else None


@dataclass(frozen=True)
class Reference:
    """What the live model says, on disk.

    Attributes:
        folder: with ``prompts.json`` and the logits of each prompt.
        prompts: the token ids.
        facts: what spoke: model, dtype, device.
    """

    folder: Path
    prompts: Prompts
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Parity:
    """What a record says.

    Attributes:
        outcome: `WITHIN`, `OVER`, `REPORTED` (there is no limit) or `UNPROVED` (with the reason behind a colon).
        mean_kl, max_kl: nats per position; None where nothing was compared.
        same_first_choice: share of the positions after which both find the same next token likeliest.
        positions: how many were compared.
    """

    outcome: str
    mean_kl: float | None = None
    max_kl: float | None = None
    same_first_choice: float | None = None
    positions: int = 0

    def __str__(self) -> str:
        if self.mean_kl is None:
            return self.outcome
        return (
            f"KL {self.mean_kl:.2g} nats per token on average, {self.max_kl:.2g} at most, over {self.positions} tokens "
            f"({self.outcome})"
        )


@contextmanager
def workspace(beside: Path) -> Iterator[Path]:
    """A hidden folder for the logits, removed afterwards.

    Beside the artefact and not in /tmp, which may be memory: 8 prompts of 60 tokens over a vocabulary of 150,000 are
    150 MB in 16 bits.
    """
    with scratch(beside, "parity") as folder:
        yield folder


@torch.no_grad()
def live_reference(model: Any, prompts: Prompts, folder: Path, **facts: Any) -> Reference:
    """Write what the model in this process says to the prompts, as it is, in the dtype it computes in.

    Args:
        model: in any mode; left in it.
        folder: an empty one (`workspace`).
        facts: to be told of the model in the record: what it is, of which base.
    """
    was_training, dtype = model.training, ""
    model.eval()
    try:
        # A compiled model would be compiled again for these lengths.
        with torch.compiler.set_stance("force_eager") if is_loaded("torch._dynamo") else nullcontext():
            for number, ids in enumerate(prompts.ids):
                logits = logits_of(model, list(ids))
                dtype = str(logits.dtype).removeprefix("torch.")
                save_file({"logits": logits.cpu().contiguous()}, folder / f"{number}.safetensors")
    finally:
        model.train(was_training)
    device = model.get_input_embeddings().weight.device.type
    return _reference(folder, prompts, {"dtype": dtype, "device": device, **facts})


def fresh_reference(
    fresh: FreshProcess, source: Source, prompts: Prompts, folder: Path, device: str, **facts: Any
) -> Reference:
    """The same of a model that a fresh process loads: base + adapter, where a merge must not hold them.

    Raises:
        CannotLoad, CannotTell: it could not.
    """
    _write_prompts(folder, prompts)
    loaded = fresh.speak(source, folder / "prompts.json", folder, device)
    return _reference(folder, prompts, {**facts, **loaded, **_told(source)})


def _reference(folder: Path, prompts: Prompts, facts: dict[str, Any]) -> Reference:
    _write_prompts(folder, prompts)
    return Reference(folder, prompts, facts)


def _write_prompts(folder: Path, prompts: Prompts) -> None:
    (folder / "prompts.json").write_text(json.dumps(prompts.ids), encoding="utf-8")


def prove(
    fresh: FreshProcess,
    kind: str,
    artefact: Path,
    source: Source,
    reference: Reference,
    limit: Limit | None,
    device: str = "cpu",
    files: Collection[str] | None = None,
) -> Parity:
    """Reload what was written, compare it with the reference, and write ``parity.json`` into its folder.

    Args:
        kind: "adapter", "merged model", ...
        artefact: the folder.
        source: how to load it.
        limit: None to report without judging.
        device: to load it on, if its memory has room.
        files: names of the artefact's files in the folder, to be hashed; all files by default.

    Raises:
        ParityError: it is further away than the limit, or cannot be loaded; the record is written all the same.
    """
    loaded: dict[str, Any] = {}
    try:
        loaded = fresh.compare(source, reference.folder / "prompts.json", reference.folder, device)
        parity = _judge(loaded, limit)
    except CannotTell as error:
        parity = Parity(f"{UNPROVED}: {error}")
    except CannotLoad as error:
        parity = Parity(f"{OVER}: a fresh process cannot load it: {error}")
    over = _error(kind, parity, limit) if parity.outcome.startswith(OVER) else None
    try:
        _write(kind, artefact, files, source, reference, limit, loaded, parity)
    except OSError as error:
        if over is not None:  # the verdict stands without its record
            raise over from error
        raise
    if over is not None:
        raise over
    if parity.outcome.startswith(UNPROVED):
        warn(f"the {kind} in '{artefact}' is {parity.outcome}")
    return parity


def not_proved(kind: str, artefact: Path, reason: str, files: Collection[str] | None = None) -> Parity:
    """The record of an artefact that could be compared with nothing, and a warning.

    Args:
        files: names of the artefact's files in the folder; all files by default.
    """
    parity = Parity(f"{UNPROVED}: {reason}")
    record = {"format": 1, "outcome": parity.outcome, "artefact": {"kind": kind, "files": _hashes(artefact, files)}}
    text = json.dumps({**record, "versions": versions_of(PACKAGES), "when": _now()}, indent=2)
    (artefact / RECORD_NAME).write_text(text + "\n", encoding="utf-8")
    warn(f"the {kind} is {parity.outcome}")
    return parity


def _judge(loaded: Mapping[str, Any], limit: Limit | None) -> Parity:
    mean, largest = loaded["mean_kl"], loaded["max_kl"]
    outcome = REPORTED
    if limit is not None:
        is_near = mean <= limit.mean_kl and (limit.max_kl is None or largest <= limit.max_kl)
        outcome = WITHIN if is_near else OVER
    return Parity(outcome, mean, largest, loaded["same_first_choice"], loaded["positions"])


def _error(kind: str, parity: Parity, limit: Limit | None) -> ParityError:
    found = f"the {kind} is not the model that was trained: {parity}"
    if limit is not None and parity.mean_kl is not None:
        found += f"; the limit is {limit.mean_kl:g}"
    return ParityError(Problem("", found, "do not use it; parity.json beside it says what was compared"))


def _write(
    kind: str,
    artefact: Path,
    names: Collection[str] | None,
    source: Source,
    reference: Reference,
    limit: Limit | None,
    loaded: Mapping[str, Any],
    parity: Parity,
) -> None:
    record = {
        "format": 1,
        "outcome": parity.outcome,
        "kl": {
            "mean": _finite(parity.mean_kl),
            "max": _finite(parity.max_kl),
            "positions": parity.positions,
            "unit": "nats per position, from the live model to the artefact",
        },
        "same_first_choice": parity.same_first_choice,
        "limit": None if limit is None else asdict(limit),
        "live": dict(reference.facts),
        "artefact": {
            "kind": kind,
            "files": _hashes(artefact, names),
            **{name: loaded[name] for name in ("dtype", "device", "loaded_by", "seconds") if name in loaded},
            **_told(source),
        },
        "prompts": {
            "version": VERSION,
            "form": reference.prompts.form,
            "tokens": [len(ids) for ids in reference.prompts.ids],
            "sha256_of_ids": reference.prompts.digest,
        },
        "versions": versions_of(PACKAGES),
        "when": _now(),
    }
    (artefact / RECORD_NAME).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _finite(value: float | None) -> float | None:
    """JSON knows no infinity: null, and the outcome says what it was."""
    return value if value is not None and math.isfinite(value) else None


def _hashes(folder: Path, names: Collection[str] | None) -> dict[str, dict[str, Any]]:
    """Length and digest of each file of the artefact; folders in it (checkpoints, logs) are none of its parts."""
    found = [path for path in folder.iterdir() if path.is_file() and path.name != RECORD_NAME]
    files = sorted(path for path in found if names is None or path.name in names)
    return {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files}


def _told(source: Source) -> dict[str, Any]:
    """How it was loaded, as a reader wants to know it: what was said, without defaults."""
    said = asdict(source)
    return {name: said[name] for name in ("base", "gguf_file", "model_class", "revision", "quantization") if said[name]}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def tell(kind: str, folder: Path, parity: Parity) -> None:
    """Say what was found, in one line."""
    if parity.mean_kl is not None:
        say(f"parity: the {kind} in '{folder}', reloaded in a fresh process: {parity}")
