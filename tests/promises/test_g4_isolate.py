"""G4 isolate: the logits of a packed document are those of it alone (<= 1e-4 in float32), or packing is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.models import ARCHITECTURES, packed_batch, tiny_model
from transformers import AutoModelForCausalLM as Auto
from transformers import Gemma2Config, GptOssConfig, MambaConfig, StaticCache

from whet.model.architecture import Supported, Unsupported
from whet.model.attention import NAME
from whet.model.isolation import isolates_documents
from whet.model.loss import MODEL_INPUTS

LENGTHS = (37, 5, 1, 24, 8)
"""Longer and shorter than the tiny models' sliding window of 16."""


def gemma2() -> Any:
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        attn_logit_softcapping=0.5,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return Auto.from_config(config, attn_implementation=NAME).eval()


def gpt_oss() -> Any:
    """With learned sinks in every layer, and a window in every second."""
    config = GptOssConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return Auto.from_config(config, attn_implementation=NAME).eval()


OWN_SCORES = {"gemma2": gemma2, "gpt_oss": gpt_oss}
"""What changes the scores of its attention: a cap, sinks."""

ALL = [*ARCHITECTURES, *OWN_SCORES]


def build(architecture: str, attention: str = NAME) -> Any:
    if architecture in OWN_SCORES:
        return OWN_SCORES[architecture]()
    return tiny_model(architecture, attention=attention)


def alone(architecture: str, batch: dict[str, Any]) -> torch.Tensor:
    """Logits [T, V] of each document by itself, by transformers' eager attention."""
    model = build(architecture)
    model.set_attn_implementation("eager")
    documents = batch["input_ids"].split(LENGTHS, dim=1)
    with torch.no_grad():
        return torch.cat([model(document, use_cache=False).logits[0] for document in documents])


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize(
    "given",
    [
        {"without": ()},
        {"without": (), "use_cache": True},
        {"without": (), "attention_mask": True},
        {"without": ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")},
    ],
    ids=["boundaries", "with a cache", "with a mask of ones", "position ids only"],
)
def test_a_packed_document_is_the_document_alone(architecture: str, given: dict[str, Any]) -> None:
    batch = packed_batch(LENGTHS)
    expected = alone(architecture, batch)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch and name not in given["without"]}
    if given.get("attention_mask"):
        inputs["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad():
        logits = build(architecture)(**inputs, use_cache=given.get("use_cache", False)).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ALL)
@pytest.mark.parametrize("without", [(), ("cu_seq_lens_q", "cu_seq_lens_k")], ids=["boundaries", "position ids"])
def test_documents_are_found_in_spite_of_a_cache_and_a_mask_of_ones(architecture: str, without: tuple[str]) -> None:
    if architecture == "gpt2" and without:
        pytest.skip("GPT-2 does not hand position_ids to its attention; the boundaries are what tells it")
    batch = packed_batch(LENGTHS)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch and name not in without}
    with torch.no_grad():
        logits = build(architecture)(**inputs, attention_mask=torch.ones_like(batch["input_ids"]), use_cache=True)
    torch.testing.assert_close(logits.logits[0], alone(architecture, batch), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ALL)
def test_rows_of_packs_and_padding_do_not_mix(architecture: str) -> None:
    """Two rows of two documents, the second row padded at its end: whatever the mask, a document is alone."""
    if architecture == "gpt2":
        pytest.skip("GPT-2 does not hand position_ids to its attention, which tell several rows' documents here")
    batch = packed_batch((20, 16))
    model = build(architecture)
    input_ids = torch.cat((batch["input_ids"], batch["input_ids"].roll(7, dims=1)))
    position_ids = batch["position_ids"].expand(2, -1)
    mask = torch.ones_like(input_ids)
    mask[1, 30:] = 0
    with torch.no_grad():
        logits = model(input_ids, position_ids=position_ids, attention_mask=mask).logits
        for row, begin, end in ((0, 0, 20), (0, 20, 36), (1, 0, 20), (1, 20, 30)):
            alone = model(input_ids[row : row + 1, begin:end], use_cache=False).logits[0]
            torch.testing.assert_close(logits[row, begin:end], alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", ALL)
def test_generation_after_a_pack_is_as_before_it(architecture: str) -> None:
    """What a packed call knew of its documents is forgotten, and a cache is used as eager attention uses it."""
    model, batch = build(architecture), packed_batch(LENGTHS)
    prompt = batch["input_ids"][:, :9]
    with torch.no_grad():
        model(**{name: batch[name] for name in MODEL_INPUTS if name in batch})
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 2}
    generated = model.generate(prompt, **options)
    model.set_attn_implementation("eager")
    assert generated.tolist() == model.generate(prompt, **options).tolist()


def test_a_pack_in_a_longer_cache_is_refused() -> None:
    """A static cache has more keys than the row has tokens: nothing there would keep documents apart."""
    batch = packed_batch((5, 4))
    model = build("llama")
    cache = StaticCache(model.config, max_cache_len=32)
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad(), pytest.raises(ValueError, match="packed documents cannot be used together with a key-value"):
        model(**inputs, past_key_values=cache, use_cache=True)


@pytest.mark.parametrize("architecture", ALL)
def test_gradients_of_a_pack_are_the_sum_of_its_documents(architecture: str) -> None:
    batch = packed_batch(LENGTHS)
    model = build(architecture)
    inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
    weights = torch.randn(1, sum(LENGTHS), 300, generator=torch.Generator().manual_seed(1))
    (model(**inputs, use_cache=False).logits * weights).sum().backward()
    packed = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.set_attn_implementation("eager")
    for document, weight in zip(batch["input_ids"].split(LENGTHS, dim=1), weights.split(LENGTHS, dim=1), strict=True):
        (model(document, use_cache=False).logits * weight).sum().backward()
    for name, parameter in model.named_parameters():
        scale = parameter.grad.abs().max()
        assert (parameter.grad - packed[name]).abs().max() <= 1e-5 * scale + 1e-6, name


@pytest.mark.parametrize("architecture", ALL)
def test_the_probe_accepts_what_isolates(architecture: str) -> None:
    assert isinstance(isolates_documents(build(architecture)), Supported)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_probe_refuses_a_leak(dtype: torch.dtype) -> None:
    """Mamba carries its state from one document into the next."""
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=2, state_size=4, initializer_range=0.2)
    verdict = isolates_documents(Auto.from_config(config).to(dtype))
    assert isinstance(verdict, Unsupported)
    assert "logits move by" in verdict.reason


def test_the_probe_leaves_no_trace() -> None:
    model = tiny_model("llama", attention=NAME)
    model.train()
    model.model.layers[0].eval()
    flags = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    isolates_documents(model)
    assert [module.training for module in model.modules()] == flags
    assert torch.equal(torch.random.get_rng_state(), state)
