"""Attention in which each document of a packed row sees itself and nothing else.

The implementation is registered with transformers under the name ``whet_documents`` and used by every model that asks
its attention from transformers' ``AttentionInterface``. Where the documents lie is told by, in this order:

1. ``cu_seq_lens_q``: int32[D + 1], 0 first and the number of tokens last (the keyword that flash attention uses);
2. ``position_ids``: int64[B, T]; a document begins wherever the position does not follow the one before;
3. nothing: each row is one document.

A call with a padding mask or a key-value cache (generation) is computed as transformers' own ``sdpa`` would.

Shapes: B rows, T tokens in a row, S keys, H query heads, D_h width of a head. ``query`` is [B, H, T, D_h].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from whet.core.errors import ModelError, Problem
from whet.model.architecture import Capability, Supported, Unsupported, read_architecture
from whet.model.documents import Boundaries, Scores, attend_each, lengths_from_positions, scored_attention
from whet.model.loss import innermost, model_inputs
from whet.model.masks import causal_band, same_document
from whet.model.varlen import use_flash_attention_3

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NAME = "whet_documents"


class DeferredMask:
    """The arguments of a mask that most calls never need.

    A mask of T x T booleans costs more than the attention of short documents, so it is built by the first layer that
    asks for it. One object serves all layers of a forward pass, and so keeps the document lengths found for the first.
    """

    def __init__(self, **arguments: Any) -> None:
        self._arguments = arguments
        self._lengths: tuple[int, ...] | None = None
        self.window: int | None = arguments.get("local_size")
        # A mask with an overlay (image tokens that see both ways) or a bidirectional one is not "causal in a window".
        self.is_causal = not (arguments.get("use_vmap") or arguments.get("allow_is_bidirectional_skip"))

    @cached_property
    def tensor(self) -> torch.Tensor | None:
        """bool[B, 1, T, S], True where seen; None when SDPA's own causal attention is the same."""
        mask: torch.Tensor | None = sdpa_mask(**self._arguments)
        return mask

    @cached_property
    def explicit(self) -> torch.Tensor:
        """The same, never None."""
        skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
        mask: torch.Tensor = sdpa_mask(**{**self._arguments, **skips})
        return mask

    @cached_property
    def is_padded(self) -> bool:
        """Whether the caller's attention mask hides any token."""
        attention_mask = self._arguments.get("attention_mask")
        return attention_mask is not None and not bool(attention_mask.all())

    def lengths(self, find: Callable[[torch.Tensor], tuple[int, ...]], source: torch.Tensor) -> tuple[int, ...]:
        """``find(source)``, done once for all layers: reading lengths waits for the device."""
        if self._lengths is None:
            self._lengths = find(source)
        return self._lengths


def register() -> None:
    """Make ``attn_implementation="whet_documents"`` known to transformers. Doing it twice is harmless."""
    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, DeferredMask)


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: DeferredMask | torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface: returns [B, T, H, D_h] and no weights.

    Raises:
        ModelError: the model picks the keys of each query itself (sparse attention), which is not computed here.
        ValueError: ``cu_seq_lens_q`` does not cover the tokens, or comes together with a key-value cache.
    """
    _refuse_sparse(kwargs)
    cu_seq_lens = kwargs.get("cu_seq_lens_q")
    lengths = _document_lengths(query, key, attention_mask, cu_seq_lens, kwargs.get("position_ids"))
    scores = Scores(scaling, softcap, kwargs.get("s_aux"), dropout)
    causal = _is_causal(module, kwargs)
    rows_are_documents = not lengths or lengths == (query.shape[2],) * query.shape[0]
    mask = None
    if _is_plain(attention_mask, lengths, sliding_window, causal) and kwargs.get("position_bias") is None:
        window = sliding_window if sliding_window is not None and sliding_window < max(lengths) else None
        # Off the CPU PyTorch picks among more kernels for whole rows than it has for documents.
        if not (rows_are_documents and window is None and scores.are_plain and query.device.type != "cpu"):
            return attend_each(query, key, value, Boundaries(lengths, cu_seq_lens), scores, window, causal), None
    else:
        mask = _written_out(attention_mask, always=not scores.are_plain)
        if not rows_are_documents:
            mask = same_document(lengths, query, mask, causal)
    if not scores.are_plain:
        seen = causal_band(query.shape[2], None, query.device, key.shape[2]) if mask is None and causal else mask
        return scored_attention(query, key, value, scores, seen).transpose(1, 2).contiguous(), None
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return output


def _refuse_sparse(kwargs: dict[str, Any]) -> None:
    named = next((name for name in ("indices", "block_indices") if kwargs.get(name) is not None), None)
    if named is not None:
        found = f"this model picks the keys of each query itself ({named}), which '{NAME}' does not compute"
        raise ModelError(Problem("attn_implementation", found, "write 'eager' and sample_packing: false"))


def _is_causal(module: torch.nn.Module, kwargs: dict[str, Any]) -> bool:
    """As transformers' ``sdpa`` decides: the call's word, then the module's."""
    asked = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)


def _document_lengths(
    query: torch.Tensor,
    key: torch.Tensor,
    attention_mask: DeferredMask | torch.Tensor | None,
    cu_seq_lens: torch.Tensor | None,
    position_ids: torch.Tensor | None,
) -> tuple[int, ...]:
    """Lengths of the documents, one row after the other; () where a cache makes the question meaningless."""
    num_rows, row_length = query.shape[0], query.shape[2]
    num_tokens = num_rows * row_length
    if cu_seq_lens is not None:
        lengths = _once(attention_mask, _lengths_between, cu_seq_lens)
        if sum(lengths) != num_tokens or key.shape[2] != row_length:
            raise ValueError(
                f"cu_seq_lens_q describes {sum(lengths)} tokens, the call has {num_tokens} queries and "
                f"{num_rows * key.shape[2]} keys; packed documents cannot be used together with a key-value cache"
            )
        return lengths
    if key.shape[2] != row_length:
        _refuse_documents_in_a_cache(attention_mask, position_ids, row_length)
        return ()
    if position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != row_length:
        return (row_length,) * num_rows
    return _once(attention_mask, lengths_from_positions, position_ids.expand(num_rows, -1))


def _refuse_documents_in_a_cache(
    attention_mask: DeferredMask | torch.Tensor | None, position_ids: torch.Tensor | None, row_length: int
) -> None:
    """Positions that begin anew say that a row holds several documents; beside cached keys nothing keeps them apart.

    Under a padding mask they may be those of hidden tokens, as `generate` makes them.
    """
    if row_length == 1 or position_ids is None or position_ids.ndim != 2 or position_ids.shape[1] != row_length:
        return
    if isinstance(attention_mask, torch.Tensor) or (attention_mask is not None and attention_mask.is_padded):
        return
    if bool((position_ids.diff(dim=1) != 1).any()):
        raise ValueError("packed documents cannot be used together with a key-value cache longer than the row")


def _lengths_between(edges: torch.Tensor) -> tuple[int, ...]:
    return tuple(length for length in edges.diff().tolist() if length > 0)


def _once(
    attention_mask: DeferredMask | torch.Tensor | None,
    find: Callable[[torch.Tensor], tuple[int, ...]],
    source: torch.Tensor,
) -> tuple[int, ...]:
    if isinstance(attention_mask, DeferredMask):
        return attention_mask.lengths(find, source)
    return find(source)


def _written_out(attention_mask: DeferredMask | torch.Tensor | None, always: bool) -> torch.Tensor | None:
    if isinstance(attention_mask, DeferredMask):
        return attention_mask.explicit if always else attention_mask.tensor
    return attention_mask


def _is_plain(
    attention_mask: DeferredMask | torch.Tensor | None,
    lengths: tuple[int, ...],
    sliding_window: int | None,
    causal: bool,
) -> bool:
    """Whether "causal, in a window, within each document" (or all of each document) is all there is to this call."""
    if not lengths or isinstance(attention_mask, torch.Tensor) or not (causal or sliding_window is None):
        return False
    if attention_mask is None:
        return True
    # A local size without a window is another pattern: chunks (Llama 4).
    is_chunked = attention_mask.window is not None and sliding_window is None
    return attention_mask.is_causal and not is_chunked and not attention_mask.is_padded


# --- Which implementation a run uses ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """What transformers is given as ``attn_implementation`` (None: its own choice), and the sentence why."""

    name: str | None
    why: str


def choose_attention(requested: str | None, model_config: PretrainedConfig, device: str) -> AttentionChoice:
    """The attention implementation of a run.

    Args:
        requested: "auto" or None, or what the user wrote as ``attn_implementation``.
        model_config: of the base model.
        device: "cpu", "cuda" or "mps".

    Raises:
        ModelError: what was written cannot run here.
    """
    register()
    capable = _can_use_ours(model_config)
    if requested in (None, "auto"):
        if isinstance(capable, Unsupported):
            return AttentionChoice(None, f"transformers' own choice, because {capable.reason}")
        return _ours(model_config, device)
    assert requested is not None, "None is handled above"
    if requested == NAME and isinstance(capable, Unsupported):
        raise ModelError(_attention_problem(f"'{NAME}' cannot be used: {capable.reason}", "leave the key out"))
    if requested == "flex_attention" and device == "cpu":
        raise ModelError(
            _attention_problem(
                "PyTorch's flex_attention has no backward pass on CPU", f"write '{NAME}' or 'sdpa', or leave it out"
            )
        )
    package = FLASH_PACKAGES.get(requested)
    if package is not None and find_spec(package) is None and not isinstance(capable, Unsupported):
        return _ours(model_config, device, f"in place of {requested}: {package} is not installed; ")
    if requested == NAME:
        return _ours(model_config, device, "as written in the config: ")
    return AttentionChoice(requested, "as written in the config")


FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""What transformers imports for these names. PyTorch has the kernel of the first inside."""


def _ours(model_config: PretrainedConfig, device: str, why: str = "") -> AttentionChoice:
    """`whet_documents`; from here on the process has FlashAttention 3 where this GPU and this model have use for it."""
    kernel = _kernel(model_config, device)
    if kernel == _VARIABLE_LENGTH and torch.cuda.is_available() and use_flash_attention_3(torch.device("cuda")):
        kernel = "by FlashAttention 3, which was written for this GPU"
    return AttentionChoice(NAME, f"{why}each document attends to itself, {kernel}")


_VARIABLE_LENGTH = "by PyTorch's variable-length flash kernel"


def _kernel(model_config: PretrainedConfig, device: str) -> str:
    """By what `whet_documents` is computed, in words."""
    architecture = read_architecture(model_config)
    if device != "cuda":
        return "by PyTorch's flash kernel" if device == "cpu" and architecture.softcap is None else "one by one"
    if architecture.softcap is not None:
        return "by FlexAttention, for its scores are capped"
    if architecture.head_dim > 256:
        return "one by one, for no variable-length kernel takes heads wider than 256"
    return _VARIABLE_LENGTH


def _can_use_ours(model_config: PretrainedConfig) -> Capability:
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(model_config), None)
    # No public way to ask: the attribute says that the family takes its attention from the AttentionInterface.
    if model_class is not None and not model_class._supports_attention_backend:
        return Unsupported(f"{model_config.model_type} does not take its attention from transformers' interface")
    return Supported()


def _attention_problem(found: str, fix: str) -> Problem:
    return Problem("attn_implementation", found, fix, "attn_implementation")


# --- The probe: proof on the user's own model ------------------------------------------------------------------------

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
