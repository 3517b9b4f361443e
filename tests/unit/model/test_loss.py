"""The loss is the sum of -log p over supervised tokens, however the tokens are laid out."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import ARCHITECTURES, packed_batch, tiny_model
from torch.nn.functional import cross_entropy

from whet.model import head_seam
from whet.model.attention import NAME
from whet.model.head_loss import head_loss
from whet.model.loss import innermost, supervised_logits_loss

LENGTHS = (21, 4, 15)


def plain_loss(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The sum by full logits, in one line of textbook code."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "example_ids")}
    logits = model(**inputs, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sum_and_gradients_are_those_of_full_logits(architecture: str) -> None:
    batch = packed_batch(LENGTHS)
    model = tiny_model(architecture, attention=NAME)
    parts = supervised_logits_loss(model, batch)
    parts.total.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    expected = plain_loss(model, batch)
    expected.backward()
    torch.testing.assert_close(parts.total, expected)
    assert parts.count == int((batch["labels"] != -100).sum())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_the_head_sees_supervised_positions_only(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = packed_batch(LENGTHS)
    model = tiny_model(attention=NAME)
    seen: list[torch.Size] = []

    def watched(hidden: torch.Tensor, *rest: Any, **how: Any) -> Any:
        seen.append(hidden.shape)
        return head_loss(hidden, *rest, **how)

    monkeypatch.setattr(head_seam, "head_loss", watched)
    parts = supervised_logits_loss(model, batch)
    assert seen == [torch.Size([parts.count, 32])]


def test_per_token_losses_sit_at_the_position_before_their_target() -> None:
    batch = packed_batch(LENGTHS)
    model = tiny_model(attention=NAME)
    parts = supervised_logits_loss(model, batch)
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        log_p = model(**inputs, use_cache=False).logits[0].log_softmax(-1)
    targets = batch["input_ids"][0, parts.positions + 1]
    torch.testing.assert_close(parts.per_token, -log_p[parts.positions, targets])
    torch.testing.assert_close(parts.per_token.sum(), parts.total.detach())
    assert parts.per_token.dtype == torch.float32


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_padded_rows_give_the_loss_of_the_packed_row(architecture: str) -> None:
    packed = packed_batch(LENGTHS)
    width = max(LENGTHS)
    input_ids = torch.full((len(LENGTHS), width), 2)
    labels = torch.full_like(input_ids, -100)
    for row, (ids, targets) in enumerate(
        zip(packed["input_ids"][0].split(LENGTHS), packed["labels"][0].split(LENGTHS), strict=True)
    ):
        input_ids[row, : len(ids)], labels[row, : len(ids)] = ids, targets
    attention_mask = (torch.arange(width) < torch.tensor(LENGTHS)[:, None]).long()
    padded = {"input_ids": input_ids, "labels": labels, "attention_mask": attention_mask}
    model = tiny_model(architecture, attention=NAME)
    one, other = supervised_logits_loss(model, packed), supervised_logits_loss(model, padded)
    assert one.count == other.count
    torch.testing.assert_close(one.total, other.total)
    torch.testing.assert_close(one.per_token, other.per_token)


def test_no_supervised_token_still_has_a_backward_pass() -> None:
    batch = packed_batch(LENGTHS, supervised_share=0.0)
    model = tiny_model(attention=NAME)
    parts = supervised_logits_loss(model, batch)
    parts.total.backward()
    assert (parts.count, float(parts.total.detach()), len(parts.per_token), len(parts.positions)) == (0, 0.0, 0, 0)
    assert all(float(parameter.grad.abs().max()) == 0.0 for parameter in model.parameters())


def test_a_peft_model_and_its_base_agree() -> None:
    batch = packed_batch(LENGTHS)
    expected = supervised_logits_loss(tiny_model(attention=NAME), batch).total
    wrapped = get_peft_model(tiny_model(attention=NAME), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    torch.testing.assert_close(supervised_logits_loss(wrapped, batch).total, expected)
    assert type(innermost(wrapped)).__name__ == "LlamaForCausalLM"


def test_bfloat16_logits_are_summed_in_float32() -> None:
    parts = supervised_logits_loss(tiny_model(attention=NAME).bfloat16(), packed_batch(LENGTHS))
    assert parts.total.dtype == parts.per_token.dtype == torch.float32


class WithoutLogitsToKeep(torch.nn.Module):
    """A model whose forward takes ids alone (remote code often does)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model(attention="sdpa")

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> Any:
        return self.inner(input_ids, use_cache=use_cache)


def test_a_model_without_logits_to_keep_is_asked_for_all() -> None:
    batch = packed_batch((12,))
    expected = supervised_logits_loss(tiny_model(attention=NAME), batch).total
    torch.testing.assert_close(supervised_logits_loss(WithoutLogitsToKeep(), batch).total, expected)


def test_a_compiled_model_is_asked_by_its_own_forward() -> None:
    """It answers for every attribute of the model inside, yet its own forward names no inputs."""
    compiled = torch.compile(tiny_model(), backend="eager")  # inductor warns at its import
    assert type(innermost(compiled)).__name__ == "LlamaForCausalLM"
    assert "logits_to_keep" in inspect.signature(type(innermost(compiled)).forward).parameters
