"""On CUDA each kernel of document attention is plain attention, document by document, in values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import packed_batch, tiny_model

from whet.model.architecture import Supported
from whet.model.attention import NAME
from whet.model.documents import Boundaries, Scores, attend_each, attend_one
from whet.model.isolation import isolates_documents
from whet.model.loss import MODEL_INPUTS
from whet.model.varlen import varlen_refuses

LENGTHS = (37, 5, 1, 24, 24, 200, 8, 70)
Tensors = dict[str, torch.Tensor]


def tensors(heads: int, groups: int, width: int, dtype: torch.dtype, sinks: bool) -> Tensors:
    random = torch.Generator().manual_seed(0)

    def draw(num: int) -> torch.Tensor:
        return torch.randn(1, sum(LENGTHS), num, width, generator=random).transpose(1, 2)

    made = {"query": draw(heads), "key": draw(groups), "value": draw(groups)}
    if sinks:
        made["sinks"] = torch.randn(heads, generator=random)
    return {name: tensor.to("cuda", dtype).detach().requires_grad_() for name, tensor in made.items()}


def plain(given: Tensors, scores: dict[str, Any], window: int | None) -> torch.Tensor:
    how = Scores(sinks=given.get("sinks"), **scores)
    pieces = (given[name].split(LENGTHS, dim=2) for name in ("query", "key", "value"))
    return torch.cat([attend_one(*each, how, window) for each in zip(*pieces, strict=True)], dim=2).transpose(1, 2)


def ours(given: Tensors, scores: dict[str, Any], window: int | None) -> torch.Tensor:
    how = Scores(sinks=given.get("sinks"), **scores)
    return attend_each(given["query"], given["key"], given["value"], Boundaries(LENGTHS, None), how, window)


def with_gradients(form: Any, given: Tensors, scores: dict[str, Any], window: int | None) -> Tensors:
    output = form(given, scores, window)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    grads = torch.autograd.grad((output * weights).sum(), list(given.values()))
    return {"output": output.detach(), **dict(zip(given, grads, strict=True))}


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize(("heads", "groups", "width"), [(8, 8, 64), (8, 2, 128), (4, 1, 256)])
def test_varlen_is_plain_attention(heads: int, groups: int, width: int, sinks: bool, window: int | None) -> None:
    """In bfloat16, measured against float32: as close as plain bfloat16, with a margin for another order of sums."""
    given = tensors(heads, groups, width, torch.bfloat16, sinks)
    flat = [given[name][0].transpose(0, 1) for name in ("query", "key", "value")]
    assert varlen_refuses(*flat) is None, "this GPU should be able to"
    exact = with_gradients(plain, tensors(heads, groups, width, torch.float32, sinks), {}, window)
    fast, slow = (with_gradients(form, given, {}, window) for form in (ours, plain))
    for name, tensor in exact.items():
        distance, limit = ((each[name].float() - tensor).norm() for each in (fast, slow))
        assert distance <= 1.5 * limit + 1e-3 * tensor.norm(), name


@pytest.mark.parametrize("window", [None, 16])
def test_flex_attention_is_plain_attention_with_a_cap(window: int | None) -> None:
    given = tensors(4, 2, 64, torch.float32, False)
    scores = {"softcap": 2.0}
    expected, found = (with_gradients(form, given, scores, window) for form in (plain, ours))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=5e-3, rtol=5e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16])
@pytest.mark.parametrize("products", ["ieee", "tf32"])
def test_the_probe_finds_no_leak(architecture: str, autocast: torch.dtype | None, products: str) -> None:
    torch.backends.fp32_precision = products  # as transformers allows TensorFloat-32
    verdict = isolates_documents(tiny_model(architecture, attention=NAME).cuda(), autocast_dtype=autocast)
    assert isinstance(verdict, Supported), verdict
    assert torch.backends.fp32_precision == products


def test_a_packed_document_is_the_document_alone() -> None:
    """G4 in float32, with a mask of ones and a cache, which mislead others."""
    lengths = (37, 5, 1, 24)
    batch = {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in packed_batch(lengths).items()}
    model = tiny_model("llama", attention=NAME).cuda()
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    with torch.no_grad():
        packed = model(**inputs, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=True).logits[0]
        alone = [model(document, use_cache=False).logits[0] for document in batch["input_ids"].split(lengths, dim=1)]
    torch.testing.assert_close(packed, torch.cat(alone), atol=1e-4, rtol=0)
