"""All documents of a row in one function: values and gradients are those of plain attention, document by document."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from whet.model.documents import Boundaries, Scores, attend_each, attend_one
from whet.model.flash_documents import flash_documents, flash_refuses
from whet.model.flex import flex_documents

LENGTHS = (37, 5, 1, 24, 24, 24, 8, 70, 1)
"""Odd sizes, single tokens, and three of one length in a row, which are computed in one call."""

Grads = dict[str, torch.Tensor]


def tensors(heads: int, groups: int, dtype: torch.dtype, sinks: bool) -> Grads:
    random = torch.Generator().manual_seed(0)
    shapes = {"query": (1, heads), "key": (1, groups), "value": (1, groups)}
    # As a model hands them over: [B, H, T, D] views of [B, T, H, D].
    made = {
        name: torch.randn(1, sum(LENGTHS), shape[1], 16, generator=random, dtype=torch.float64).transpose(1, 2)
        for name, shape in shapes.items()
    }
    if sinks:
        made["sinks"] = torch.randn(heads, generator=random, dtype=torch.float64)
    return {name: tensor.to(dtype).detach().requires_grad_() for name, tensor in made.items()}


def plain(given: Grads, scores: dict[str, Any], window: int | None, causal: bool) -> torch.Tensor:
    """[B, T, H, D]: each document alone, sinks written out."""
    pieces = (given[name].split(LENGTHS, dim=2) for name in ("query", "key", "value"))
    how = Scores(sinks=given.get("sinks"), **scores)
    return torch.cat([attend_one(*each, how, window, causal) for each in zip(*pieces, strict=True)], dim=2).transpose(
        1, 2
    )


def ours(given: Grads, scores: dict[str, Any], window: int | None, causal: bool) -> torch.Tensor:
    how = Scores(sinks=given.get("sinks"), **scores)
    return attend_each(given["query"], given["key"], given["value"], Boundaries(LENGTHS, None), how, window, causal)


def with_gradients(function: Any, given: Grads, *arguments: Any) -> Grads:
    output = function(given, *arguments)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((output * weights.to(output.dtype)).sum(), list(given.values()))
    return {"output": output.detach(), **dict(zip(given, grads, strict=True))}


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("window", [None, 1, 7, 33, 69, 500])
@pytest.mark.parametrize("sinks", [False, True])
def test_values_and_gradients_are_those_of_plain_attention(
    heads: int, groups: int, window: int | None, sinks: bool
) -> None:
    scores = {"scaling": 0.3}
    expected = with_gradients(plain, tensors(heads, groups, torch.float64, sinks), scores, window, True)
    found = with_gradients(ours, tensors(heads, groups, torch.float32, sinks), scores, window, True)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, atol=2e-5, rtol=2e-5, msg=lambda m, n=name: f"{n} {m}")


def test_documents_seen_both_ways() -> None:
    expected = with_gradients(plain, tensors(4, 2, torch.float64, False), {}, None, False)
    found = with_gradients(ours, tensors(4, 2, torch.float32, False), {}, None, False)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name].double(), tensor, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("sinks", [False, True])
def test_bfloat16_is_at_least_as_close_as_plain_bfloat16(sinks: bool) -> None:
    exact = with_gradients(plain, tensors(4, 2, torch.float64, sinks), {}, 20, True)
    fast, slow = (with_gradients(form, tensors(4, 2, torch.bfloat16, sinks), {}, 20, True) for form in (ours, plain))
    for name, tensor in exact.items():
        distance, limit = ((each[name].double() - tensor).norm() for each in (fast, slow))
        assert distance <= 1.05 * limit, name


def test_gradients_by_differences() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((11, 2, 8), (11, 1, 8), (11, 1, 8), (2,))
    made = [torch.randn(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]

    def function(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return flash_documents(query, key, value, (4, 4, 3), window=2, sinks=sinks)

    assert torch.autograd.gradcheck(function, made, fast_mode=True)


def test_a_cap_and_dropout_go_document_by_document() -> None:
    given = tensors(4, 2, torch.float32, True)
    capped = {"softcap": 2.0}
    torch.testing.assert_close(ours(given, capped, 7, True), plain(given, capped, 7, True))
    given.pop("sinks")
    drawn = []
    for form in (ours, plain):
        torch.manual_seed(3)
        drawn.append(form(given, {"dropout": 0.5}, None, True))
    torch.testing.assert_close(drawn[0], drawn[1])


def test_several_rows_are_read_as_one() -> None:
    """Two rows of documents: those of a row never see the other row."""
    random = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 10, 16, generator=random) for _ in range(3))
    both = attend_each(query, key, value, Boundaries((4, 6, 10), None), Scores())
    second = attend_one(query[1:], key[1:], value[1:], Scores()).transpose(1, 2)
    torch.testing.assert_close(both[1:], second)


def test_what_the_kernel_cannot_take_is_computed_plainly() -> None:
    query, key, value = (torch.randn(1, 2, 9, width) for width in (16, 16, 8))
    assert flash_refuses(query[0], key[0], value[0]) == "keys and values are not of one width"
    output = attend_each(query, key, value, Boundaries((4, 5), None), Scores())
    torch.testing.assert_close(
        output[:, :4], attend_one(*(t[:, :, :4] for t in (query, key, value)), Scores()).mT.mT.transpose(1, 2)
    )
    meta = query[0].to("meta")
    assert flash_refuses(meta, meta, meta) == "it runs on a CPU, not on meta"


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 9])
def test_flex_attention_computes_the_cap(window: int | None) -> None:
    """Values only, and uncompiled: its backward pass and its compiled form are for CUDA (tests/gpu)."""
    from torch.nn.attention.flex_attention import flex_attention

    given = tensors(4, 2, torch.float32, False)
    expected = plain(given, {"softcap": 1.5, "scaling": 0.3}, window, True)[0]
    flat = (given[name].detach()[0].transpose(0, 1) for name in ("query", "key", "value"))
    found = flex_documents(*flat, LENGTHS, scaling=0.3, window=window, softcap=1.5, attend=flex_attention)
    torch.testing.assert_close(found, expected.detach())
