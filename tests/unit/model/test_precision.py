"""The numbers that a model is trained in: 8-bit products, norms in float32, bases that are stored in few bits."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import make_config, packed_batch, save_tiny_model, tiny_model

from whet.artefacts.quantize import quantize_model
from whet.config import Config
from whet.config.resolve import resolve
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model.adapters import adapt
from whet.model.float8 import convert
from whet.model.load import load_model, load_model_config
from whet.model.loss import supervised_logits_loss
from whet.model.norms_in_float32 import install
from whet.model.quantize import quantization_config
from whet.model.stored import refuse_untrainable_storage
from whet.model.tokenizer import load_tokenizer

SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
LORA = {"adapter": "lora", "lora_target_linear": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model", **SIZE)


def loaded(config: Config) -> Any:
    return load_model(config, resolve(config, Hardware("cpu")), load_tokenizer(config)).model


def losses(model: Any, num_steps: int = 4) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.02)
    found = []
    for _ in range(num_steps):
        parts = supervised_logits_loss(model, packed_batch((30, 13, 20)))
        loss = parts.total / parts.count
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


# --- 8-bit products --------------------------------------------------------------------------------------------------


def test_training_in_8_bit_floats_follows_training_in_float32() -> None:
    """63 tokens, which no kernel takes as they are; `emulate` rounds as a GPU would."""
    exact, rounded = tiny_model(**SIZE), tiny_model(**SIZE)
    parameters = list(rounded.parameters())
    assert convert(rounded, emulate=True) == (14, 14)
    assert all(one is other for one, other in zip(parameters, rounded.parameters(), strict=True))
    assert list(rounded.state_dict()) == list(exact.state_dict())
    assert type(rounded.lm_head) is torch.nn.Linear
    expected, found = losses(exact), losses(rounded)
    assert expected[-1] < expected[0]
    assert found[0] != expected[0]
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=0, rtol=0.06)


def test_layers_of_odd_sizes_and_routers_are_left_as_they_are() -> None:
    model = tiny_model(**{**SIZE, "intermediate_size": 120})
    model.model.layers[0].router = torch.nn.Linear(64, 16)
    assert convert(model, emulate=True) == (8, 15)
    assert type(model.model.layers[0].mlp.up_proj) is type(model.model.layers[0].router) is torch.nn.Linear


# --- Norms in float32 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_norms_in_float32_compute_as_in_a_float32_model(architecture: str) -> None:
    config = make_config("tiny", precision={"bfloat16": True, "fp32_norms": True})
    model = tiny_model(architecture).bfloat16()
    said = install(model, config, resolve(config, Hardware("cpu")))
    assert said is not None
    assert said.endswith("norms compute and are trained in float32")
    norms = {name: module for name, module in model.named_modules() if type(module).__name__.endswith("Norm")}
    assert norms
    for norm in norms.values():
        hidden = torch.randn(2, 5, norm.weight.shape[0]).bfloat16()
        twin = type(norm)(norm.weight.shape[0])
        twin.load_state_dict(norm.state_dict())
        eps = {name: getattr(norm, name) for name in ("variance_epsilon", "eps") if hasattr(norm, name)}
        twin.__dict__.update(eps)
        out = norm(hidden)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, twin(hidden.float()).bfloat16())
        (name,) = inspect.signature(norm.forward).parameters
        assert torch.equal(norm(**{name: hidden}), out)
    losses(model, 1)
    assert all(p.dtype == torch.float32 for norm in norms.values() for p in norm.parameters())


def test_classes_that_no_norm_has_are_told() -> None:
    config = make_config("tiny", precision={"fp32_norms": True, "fp32_norm_classes": ["GroupNorm"]})
    with pytest.raises(ModelError, match="named like GroupNorm -> this model has LlamaRMSNorm"):
        install(tiny_model(), config, resolve(config, Hardware("cpu")))


# --- Few bits --------------------------------------------------------------------------------------------------------


def test_bitsandbytes_is_given_what_is_written(base: Path) -> None:
    config = make_config(base, quant={"load_in_4bit": True, "bnb_4bit_quant_storage": "bfloat16"}, adapter=LORA)
    assert quantization_config(config, resolve(config, Hardware("cpu"))).bnb_4bit_quant_storage == torch.bfloat16
    config = make_config(base, quant={"load_in_8bit": True, "llm_int8_threshold": 4.5}, adapter=LORA)
    assert quantization_config(config, resolve(config, Hardware("cpu"))).llm_int8_threshold == 4.5


def test_an_embedding_may_stay_in_16_bits(base: Path) -> None:
    quant = {"load_in_4bit": True, "embeddings_skip_upcast": True}
    model = loaded(make_config(base, quant=quant, adapter=LORA, precision={"bf16": True}))
    assert model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert model.model.norm.weight.dtype == model.lm_head.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert bool(torch.isfinite(model(packed_batch((20,))["input_ids"]).logits).all())


def test_the_named_quantisation_is_made_with_its_arguments(base: Path) -> None:
    quant = {"model_quantization_config": "Mxfp4Config", "model_quantization_config_kwargs": {"dequantize": True}}
    config = make_config(base, quant=quant)
    made = quantization_config(config, resolve(config, Hardware("cpu")))
    assert (type(made).__name__, made.dequantize) == ("Mxfp4Config", True)
    quant["model_quantization_config"] = "FineGrainedFP8Config"
    quant["model_quantization_config_kwargs"] = {"weight_block_size": "wide"}
    config = make_config(base, quant=quant)
    with pytest.raises(ModelError, match=r"FineGrainedFP8Config refuses its arguments: .* -> correct them"):
        quantization_config(config, resolve(config, Hardware("cpu")))


# --- Bases that are stored quantised ---------------------------------------------------------------------------------


def stored_in(base: Path, folder: Path, quantization: dict[str, Any]) -> Path:
    """A folder with the config of a quantised model, and no weights."""
    folder.mkdir()
    fields = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**fields, "quantization_config": quantization}), encoding="utf-8")
    return folder


STORED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    (
        {"quant_method": "gptq", "bits": 4},
        {"adapter": LORA},
        r"is stored in gptq, which needs the packages gptqmodel and optimum -> pip install gptqmodel optimum",
    ),
    ({"quant_method": "awq"}, {"adapter": LORA}, "which needs the package gptqmodel -> pip install gptqmodel"),
    ({"quant_method": "compressed-tensors"}, {"adapter": LORA}, "-> pip install compressed-tensors"),
    ({"quant_method": "fp8"}, {}, "is stored in fp8, and quantised weights cannot be trained -> add `adapter: lora`"),
    ({"quant_method": "mxfp4"}, {"adapter": LORA}, "trains no adapter -> write model_quantization_config: Mxfp4Config"),
    (
        {"quant_method": "spqr"},
        {"adapter": LORA},
        "trains no adapter -> name the unquantised",
    ),
    (
        {"quant_method": "fp8"},
        {"adapter": LORA, "quant": {"load_in_4bit": True}},
        "load_in_4bit is true, and '.*' is stored in fp8 already -> remove the line",
    ),
    (
        {"quant_method": "fp8"},
        {"adapter": LORA, "quant": {"gptq": True}},
        "' is not stored in GPTQ -> remove the line",
    ),
    (
        {"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig"}}},
        {"adapter": LORA},
        "is stored in torchao, beside which transformers trains no adapter",
    ),
]


@pytest.mark.parametrize(("quantization", "sections", "message"), STORED, ids=lambda value: str(value)[:40])
def test_a_stored_base_that_cannot_be_trained_is_told_before_its_weights_are_read(
    base: Path, tmp_path: Path, quantization: dict[str, Any], sections: dict[str, Any], message: str
) -> None:
    config = make_config(stored_in(base, tmp_path / "stored", quantization), **sections)
    with pytest.raises(ModelError, match=message):
        refuse_untrainable_storage(config, load_model_config(config))


def test_what_can_be_trained_is_not_refused(base: Path, tmp_path: Path) -> None:
    fp8 = stored_in(base, tmp_path / "fp8", {"quant_method": "fp8"})
    mxfp4 = stored_in(base, tmp_path / "mxfp4", {"quant_method": "mxfp4"})
    dequantized = {"model_quantization_config": "Mxfp4Config", "model_quantization_config_kwargs": {"dequantize": True}}
    for config in (
        make_config(base),
        make_config(fp8, adapter=LORA),
        make_config(mxfp4, quant=dequantized),
    ):
        refuse_untrainable_storage(config, load_model_config(config))


def test_an_adapter_is_trained_beside_a_base_in_int8(base: Path, tmp_path: Path) -> None:
    """The base that `whet quantize` wrote; every adapter weight gets a gradient, no base weight does."""
    writing = make_config("tiny", quant={"quantization": {"weight_dtype": "int8"}})
    quantize_model(writing, resolve(writing, Hardware("cpu")), base, tmp_path / "int8")
    config = make_config(tmp_path / "int8", adapter=LORA)
    refuse_untrainable_storage(config, load_model_config(config))
    model = adapt(loaded(config), config, resolve(config, Hardware("cpu")))
    assert type(model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight.data).__name__ == "Int8Tensor"
    found = losses(model, 6)
    assert found[-1] < found[0]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
