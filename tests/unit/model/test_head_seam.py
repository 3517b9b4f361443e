"""What a model does to its logits is found out by asking it; where it cannot be, its own logits are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tests.models import VOCAB_SIZE, packed_batch, tiny_model
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, CohereConfig, FalconH1Config, Gemma2Config, GraniteConfig, MixtralConfig

from whet.model.attention import NAME, register
from whet.model.head_seam import HeadSeam, Refusal, read_head, seam_of
from whet.model.loss import innermost, supervised_logits_loss
from whet.model.loss_terms import LogitForm, LossPlan, LossTerms
from whet.model.router_loss import router_coefficient

SIZE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.4,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
FAMILIES: dict[str, tuple[type, dict[str, Any], LogitForm]] = {
    "cohere": (CohereConfig, {"logit_scale": 0.25}, LogitForm(0.25)),
    "granite": (GraniteConfig, {"logits_scaling": 8.0}, LogitForm(0.125)),
    "gemma2": (Gemma2Config, {"final_logit_softcapping": 3.0}, LogitForm(softcap=3.0)),
    "falcon_h1": (
        FalconH1Config,
        {"lm_head_multiplier": 0.3, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        LogitForm(0.3),
    ),
}


def build(config: Any, attention: str = "sdpa") -> Any:
    register()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def plain_batch(length: int = 17) -> dict[str, Any]:
    ids = torch.randint(5, VOCAB_SIZE, (2, length), generator=torch.Generator().manual_seed(0))
    labels = ids.where(torch.arange(length) % 3 > 0, torch.tensor(-100))
    labels[:, 0] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def compared(model: Any, batch: dict[str, Any]) -> None:
    """Total and every gradient against all logits of the model's own forward."""
    model.zero_grad()
    parts = supervised_logits_loss(model, batch)
    parts.total.backward()
    found = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits.float()
    expected = cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum")
    expected.backward()
    torch.testing.assert_close(parts.total, expected, rtol=1e-5, atol=1e-4)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                found[name], parameter.grad, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n} {m}"
            )


@pytest.mark.parametrize("family", FAMILIES)
def test_scales_and_caps_are_found_and_differentiated(family: str) -> None:
    kind, own, form = FAMILIES[family]
    model = build(kind(**SIZE, **own), "eager")  # Gemma 2 is written for no other
    seam = seam_of(model)
    assert isinstance(seam, HeadSeam)
    assert seam.form.scale == pytest.approx(form.scale, rel=1e-5)
    assert seam.form.softcap == (None if form.softcap is None else pytest.approx(form.softcap, rel=1e-5))
    compared(model, plain_batch())


def _second_head(model: Any) -> None:
    extra = torch.nn.Linear(32, VOCAB_SIZE)
    forward = type(model).forward

    class Two(type(model)):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            output = forward(self, *args, **kwargs)
            return type(output)(logits=output.logits + extra.bias)

    model.__class__ = Two


def _other_layer(model: Any) -> None:
    class Normed(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return super().forward(input / input.norm(dim=-1, keepdim=True))

    old = model.lm_head
    model.lm_head = Normed(old.in_features, old.out_features, bias=False)


def _quantised(model: Any) -> None:
    model.lm_head.weight = torch.nn.Parameter(
        torch.nn.Parameter(model.lm_head.weight.data).to(torch.int8), requires_grad=False
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_second_head, "its logits are not those of its output layer"),
        (_other_layer, "its output layer is a Normed"),
        (_quantised, "the weight of its output layer is a"),
        (lambda model: setattr(model, "get_output_embeddings", lambda: None), "it names no output layer"),
        (lambda model: setattr(model.lm_head, "forward", model.lm_head.forward), "has been replaced"),
    ],
)
def test_what_is_not_a_plain_head_is_refused_with_the_reason(change: Callable[[Any], None], reason: str) -> None:
    model = tiny_model(attention="sdpa")
    change(model)
    seam = seam_of(model)
    assert isinstance(seam, Refusal)
    assert reason in seam.reason


@pytest.mark.parametrize("change", [_second_head, _other_layer])
def test_a_refused_model_computes_its_own_logits(change: Callable[[Any], None]) -> None:
    model = tiny_model(attention="sdpa")
    change(model)
    compared(model, plain_batch())


def test_the_probe_draws_no_random_number_and_leaves_every_mode() -> None:
    model = tiny_model(attention="sdpa").train()
    model.model.layers[0].eval()
    before, modes = torch.get_rng_state(), [module.training for module in model.modules()]
    assert isinstance(seam_of(model), HeadSeam)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in model.modules()] == modes
    assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize(
    ("options", "has_lora"),
    [
        ({"target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.0}, True),
        ({"target_modules": ["q_proj", "lm_head"], "use_rslora": True}, True),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
    ],
    ids=["lora", "rslora", "modules_to_save"],
)
def test_an_adapter_of_the_head_is_computed_in_chunks(options: dict[str, Any], has_lora: bool) -> None:
    model = get_peft_model(tiny_model(attention=NAME), LoraConfig(r=4, task_type="CAUSAL_LM", **options))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    seam = seam_of(innermost(model))
    assert isinstance(seam, HeadSeam)
    assert (getattr(read_head(seam.head), "lora", None) is not None) == has_lora
    compared(model, packed_batch((9, 14)))
    with model.disable_adapter():
        compared_value = supervised_logits_loss(model, packed_batch((9, 14))).total
    base = supervised_logits_loss(tiny_model(attention=NAME), packed_batch((9, 14))).total
    torch.testing.assert_close(compared_value, base)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"trainable_token_indices": {"embed_tokens": [1, 2]}}])
def test_other_adapters_of_the_head_are_left_to_the_model(options: dict[str, Any]) -> None:
    is_tied = "trainable_token_indices" in options
    targets = ["q_proj"] if is_tied else ["q_proj", "lm_head"]
    base = tiny_model(attention=NAME, tie_word_embeddings=is_tied)
    model = get_peft_model(base, LoraConfig(r=4, task_type="CAUSAL_LM", target_modules=targets, **options))
    assert isinstance(seam_of(innermost(model)), Refusal)
    compared(model, packed_batch((9, 14)))


def test_tied_embeddings_get_both_gradients() -> None:
    model = tiny_model(attention=NAME, tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    compared(model, packed_batch((9, 14)))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at what the head returned
def test_a_compiled_model_is_asked_once_for_all_batches() -> None:
    torch.compiler.reset()
    compiled = torch.compile(tiny_model(attention="sdpa"), backend="eager")
    for length in (17, 17, 17):
        compared(compiled, plain_batch(length))


def test_noise_on_embeddings_reaches_the_loss() -> None:
    """NEFTune is a forward hook of the embedding."""
    model = tiny_model(attention="sdpa")
    plain = supervised_logits_loss(model, plain_batch()).total
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + 0.5)
    assert not torch.isclose(supervised_logits_loss(model, plain_batch()).total, plain)


def mixture(**own: Any) -> Any:
    config = MixtralConfig(
        **{**SIZE, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None, **own},
    )
    return build(config, NAME)


def test_router_loss_is_the_models_own_and_leaves_padding_out() -> None:
    model = mixture(output_router_logits=True, router_aux_loss_coef=0.5, num_hidden_layers=2)
    assert router_coefficient(model) == 0.5
    assert router_coefficient(mixture(output_router_logits=False)) == 0.0
    batch = packed_batch((9, 14))
    plan = LossPlan(router_coefficient=0.5)
    parts, without = supervised_logits_loss(model, batch, plan), supervised_logits_loss(model, batch)
    expected = model(input_ids=batch["input_ids"][:, :9], output_router_logits=True, use_cache=False).aux_loss
    one = supervised_logits_loss(model, packed_batch((9,)), plan)
    alone = supervised_logits_loss(model, packed_batch((9,)))
    torch.testing.assert_close(one.total - alone.total, 0.5 * expected * one.count, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(parts.per_token, without.per_token)

    padded = dict(batch, example_ids=torch.arange(2))
    for name, value in (("input_ids", 2), ("labels", -100)):
        padded[name] = torch.nn.functional.pad(batch[name], (0, 7), value=value)
    padded["position_ids"] = torch.cat([batch["position_ids"], torch.arange(7)[None]], dim=1)
    padded["cu_seq_lens_q"] = padded["cu_seq_lens_k"] = torch.tensor([0, 9, 23, 30], dtype=torch.int32)
    torch.testing.assert_close(supervised_logits_loss(model, padded, plan).total, parts.total, rtol=1e-5, atol=1e-4)


def test_router_loss_has_a_gradient_in_the_router() -> None:
    model, gradients = mixture(output_router_logits=True), []
    for plan in (LossPlan(), LossPlan(router_coefficient=10.0)):
        model.zero_grad()
        supervised_logits_loss(model, packed_batch((9, 14)), plan).total.backward()
        (gate,) = [each for name, each in model.named_parameters() if name.endswith("gate.weight")]
        gradients.append(gate.grad.clone())
    assert not torch.allclose(*gradients)


def test_terms_change_the_total_and_never_the_tokens_own_losses() -> None:
    """Sums per dataset and evaluations stay the plain cross-entropy."""
    model, batch = tiny_model(attention=NAME), packed_batch((9, 14))
    plain = supervised_logits_loss(model, batch)
    for terms in (LossTerms(label_smoothing=0.1), LossTerms(z_loss=0.1), LossTerms(weighting="dft")):
        parts = supervised_logits_loss(model, batch, LossPlan(terms))
        torch.testing.assert_close(parts.per_token, plain.per_token)
        assert not torch.isclose(parts.total, plain.total)
    chunked = supervised_logits_loss(model, batch, LossPlan(num_chunks=3))
    torch.testing.assert_close(chunked.total, plain.total)
