"""Whether packed documents stay apart: proof on the user's own model (promise G4)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from whet.model.architecture import Capability, Supported, Unsupported
from whet.model.loss import innermost, model_inputs

_PROBE_LENGTHS = (23, 11, 6)


@torch.no_grad()
def isolates_documents(
    model: torch.nn.Module, tolerance: float | None = None, autocast_dtype: torch.dtype | None = None
) -> Capability:
    """Whether packing leaves each document's logits alone, tried on this model (promise G4).

    Three random documents are packed into one row. (a) Replacing the other documents' tokens must not move a
    document's logits. (b) In float32, its logits must be those of the document alone. In lower precision (b) is not
    asked: the rounding of another shape is as large as a small leak.

    Args:
        model: a causal language model; its training flags and the random state are left as they were.
        tolerance: largest absolute difference of logits; 1e-4 in float32, otherwise 1% of the largest logit (5% in 8
            bits, where a column of activations is kept in 16 bits when any token of the row has an outlier in it).
        autocast_dtype: the dtype that training computes in, where that is not the weights' own.
    """
    embedding: torch.Tensor = innermost(model).get_input_embeddings().weight  # type: ignore[operator]  # of transformers
    vocab_size, device = embedding.shape[0], embedding.device
    is_float32 = embedding.dtype == torch.float32 and autocast_dtype in (None, torch.float32)
    exact = is_float32 and not getattr(model, "is_quantized", False)
    random = torch.Generator().manual_seed(0)
    documents = [torch.randint(vocab_size, (n,), generator=random).to(device) for n in _PROBE_LENGTHS]
    others = [torch.randint(vocab_size, (n,), generator=random).to(device) for n in _PROBE_LENGTHS]
    autocast = torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype not in (None, torch.float32))
    with _evaluating(model), autocast, _without_tf32():
        packed = _packed_logits(model, documents)
        rounding = 0.05 if getattr(model, "is_loaded_in_8bit", False) else 0.01
        limit = tolerance if tolerance is not None else 1e-4 if exact else rounding * _largest(packed)
        for index, document in enumerate(documents):
            changed = [document if i == index else other for i, other in enumerate(others)]
            difference = _difference(_packed_logits(model, changed)[index], packed[index])
            if not difference <= limit:
                return Unsupported(f"a document's logits move by {difference:.2g} when the documents beside it change")
            difference = _difference(_packed_logits(model, [document])[0], packed[index]) if exact else 0.0
            if not difference <= limit:
                return Unsupported(f"a packed document's logits differ by {difference:.2g} from those of it alone")
    return Supported(f"logits of packed documents agree within {limit:.1g}")


def _packed_logits(model: torch.nn.Module, documents: list[torch.Tensor]) -> list[torch.Tensor]:
    """Logits fp32[T_d, V] of each document, all in one row, called exactly as training calls the model."""
    device = documents[0].device
    lengths = [len(document) for document in documents]
    edges = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)
    batch = {
        "input_ids": torch.cat(documents)[None],
        "position_ids": torch.cat([torch.arange(length, device=device) for length in lengths])[None],
        "cu_seq_lens_q": edges,
        "cu_seq_lens_k": edges,
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
    }
    logits: torch.Tensor = model(**model_inputs(model, batch), use_cache=False).logits
    return list(torch.split(logits[0].float(), lengths))


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _largest(logits: list[torch.Tensor]) -> float:
    return max(float(part.abs().max()) for part in logits)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Float32 products in float32: TensorFloat-32's rounding of another shape is larger than the leaks looked for."""
    backends: Any = torch.backends
    before, backends.fp32_precision = backends.fp32_precision, "ieee"
    try:
        yield
    finally:
        backends.fp32_precision = before


@contextmanager
def _evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, with each module's own flag given back afterwards."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
