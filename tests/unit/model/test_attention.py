"""Outside packed rows, ``whet_documents`` is transformers' own attention; and the choice of an implementation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import ARCHITECTURES, packed_batch, tiny_config, tiny_model
from transformers import FalconConfig, Gemma2Config, GptOssConfig, LlamaConfig

from whet.core.errors import ModelError
from whet.model import attention_choice
from whet.model.attention import NAME, document_attention
from whet.model.attention_choice import choose_attention
from whet.model.documents import lengths_from_positions
from whet.model.masks import causal_band


def pair(architecture: str) -> tuple[Any, Any]:
    return tiny_model(architecture, attention=NAME), tiny_model(architecture, attention="sdpa")


def padded(side: str) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    input_ids = torch.randint(5, 300, (2, 40), generator=random)
    attention_mask = torch.ones(2, 40, dtype=torch.long)
    hidden = slice(0, 13) if side == "left" else slice(27, 40)
    attention_mask[1, hidden] = 0
    return {"input_ids": input_ids, "attention_mask": attention_mask}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("use_cache", [True, False])
def test_padded_rows_are_as_with_sdpa(architecture: str, side: str, use_cache: bool) -> None:
    ours, theirs = pair(architecture)
    batch = padded(side)
    with torch.no_grad():
        logits = [model(**batch, use_cache=use_cache).logits for model in (ours, theirs)]
    seen = batch["attention_mask"].bool()
    torch.testing.assert_close(logits[0][seen], logits[1][seen], atol=1e-5, rtol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generation_is_as_with_sdpa(architecture: str) -> None:
    ours, theirs = pair(architecture)
    made = [
        model.generate(**padded("left"), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=2)
        for model in (ours, theirs)
    ]
    assert made[0].tolist() == made[1].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_batch_of_whole_rows_is_as_with_sdpa(architecture: str) -> None:
    ours, theirs = pair(architecture)
    input_ids = padded("left")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids).logits, theirs(input_ids).logits, atol=1e-5, rtol=0)


def test_packed_rows_of_a_batch_and_padding_together() -> None:
    """Two documents and then padding in a row: neither the other document nor the padding is seen."""
    ours, theirs = pair("llama")
    input_ids = padded("left")["input_ids"]
    position_ids = torch.cat([torch.arange(20), torch.arange(20)])[None].expand(2, -1)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[:, 35:] = 0
    with torch.no_grad():
        packed = ours(input_ids, attention_mask=attention_mask, position_ids=position_ids).logits
        second = theirs(input_ids[:, 20:35]).logits
        unpadded = ours(input_ids, position_ids=position_ids).logits
    torch.testing.assert_close(packed[:, 20:35], second, atol=1e-5, rtol=0)
    torch.testing.assert_close(unpadded[:, :35], packed[:, :35], atol=1e-5, rtol=0)


def test_gradient_checkpointing_keeps_the_gradients() -> None:
    batch = packed_batch((30, 9, 4))
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model("qwen3", attention=NAME).train()
        if checkpointing:
            # Renamed in transformers 5.23.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        model(**inputs, use_cache=False).logits.square().sum().backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_boundaries_that_do_not_cover_the_row_are_an_error() -> None:
    batch = packed_batch((5, 5))
    batch["cu_seq_lens_q"] = torch.tensor([0, 5], dtype=torch.int32)
    with pytest.raises(ValueError, match="cu_seq_lens_q describes 5 tokens, the call has 10 queries"):
        tiny_model(attention=NAME)(batch["input_ids"], cu_seq_lens_q=batch["cu_seq_lens_q"])


def test_an_empty_document_is_nothing() -> None:
    batch = packed_batch((5, 5))
    model = tiny_model(attention=NAME)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
        expected = model(**inputs, cu_seq_lens_q=batch["cu_seq_lens_q"]).logits
        logits = model(**inputs, cu_seq_lens_q=torch.tensor([0, 5, 5, 10], dtype=torch.int32)).logits
    torch.testing.assert_close(logits, expected)


def test_documents_begin_where_positions_do_not_follow() -> None:
    assert lengths_from_positions(torch.tensor([[4, 5, 0, 1, 2], [0, 0, 1, 2, 3]])) == (2, 3, 1, 4)


def test_a_window_holds_the_query_and_those_before_it() -> None:
    assert causal_band(4, 2, torch.device("cpu")).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [0, 1, 1, 0],
        [0, 0, 1, 1],
    ]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_is_our_own(architecture: str) -> None:
    assert choose_attention("auto", tiny_config(architecture), "cpu").name == NAME


def test_sinks_are_computed_and_what_asks_no_interface_keeps_transformers_choice() -> None:
    assert choose_attention("auto", GptOssConfig(num_hidden_layers=2), "cpu").name == NAME
    assert choose_attention(None, FalconConfig(), "cpu").name is None


def test_what_cannot_run_is_refused_before_loading() -> None:
    with pytest.raises(ModelError, match="flex_attention has no backward pass on CPU -> write 'whet_documents' or"):
        choose_attention("flex_attention", LlamaConfig(), "cpu")
    with pytest.raises(ModelError, match="'whet_documents' cannot be used: falcon does not take its attention from"):
        choose_attention(NAME, FalconConfig(), "cuda")
    assert choose_attention("sdpa", LlamaConfig(), "cpu").name == "sdpa"


def test_keys_picked_by_the_model_are_refused() -> None:
    """Sparse attention (DeepSeek V3.2) hands the keys of each query to the interface; to ignore them would be wrong."""
    query = torch.zeros(1, 2, 4, 8)
    with pytest.raises(ModelError, match=r"picks the keys of each query itself \(indices\)"):
        document_attention(torch.nn.Identity(), query, query, query, None, indices=torch.zeros(1, 4, 2))


def test_flash_attention_without_its_package_is_the_kernel_inside_pytorch() -> None:
    choice = choose_attention("flash_attention_2", LlamaConfig(), "cuda")
    assert choice.name == NAME
    assert choice.why == (
        "in place of flash_attention_2: flash_attn is not installed; each document attends to itself, by PyTorch's "
        "variable-length flash kernel"
    )
    assert choose_attention("auto", Gemma2Config(), "cuda").why.endswith("by FlexAttention, for its scores are capped")


@pytest.mark.parametrize("requested", ["auto", NAME, "flash_attention_2"])
def test_flash_attention_3_is_switched_on_by_the_choice_of_our_own_alone(
    requested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    switched: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(attention_choice, "use_flash_attention_3", lambda device: not switched.append(str(device)))
    assert choose_attention(requested, LlamaConfig(), "cuda").why.endswith(
        "FlashAttention 3, which was written for this GPU"
    )
    assert switched == ["cuda"]
    choose_attention("sdpa", LlamaConfig(), "cuda")
    choose_attention(requested, Gemma2Config(), "cuda")
    choose_attention(requested, LlamaConfig(), "cpu")
    assert switched == ["cuda"]
