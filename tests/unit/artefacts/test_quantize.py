"""A quantised model is the model up to the rounding that was asked for, and is loaded by transformers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import VOCAB_SIZE, make_config, save_tiny_model
from tests.warm import warm  # noqa: F401
from transformers import AutoModelForCausalLM

import whet
from whet import export_stages
from whet.artefacts.quantize import MARKER, Quantized, quantize_model
from whet.config import Config
from whet.config.resolve import resolve
from whet.core.errors import ArtefactError, ConfigError
from whet.core.types import Hardware
from whet.model.schemes import refusal, scheme_to_write

pytestmark = pytest.mark.usefixtures("warm")

SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
TOKENS = torch.randint(VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(9))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model", **SIZE)


def config_of(model: Path, **block: Any) -> Config:
    return make_config("tiny", quant={"quantization": block or None}, output={"output_dir": str(model)})


def quantized(model: Path, output: Path, **block: Any) -> Quantized:
    config = config_of(model, **block)
    return quantize_model(config, resolve(config, Hardware("cpu")), model, output)


@torch.no_grad()
def logits(folder: Path) -> torch.Tensor:
    return AutoModelForCausalLM.from_pretrained(folder).eval()(TOKENS).logits.float()


RUNS_ON_A_CPU: list[tuple[dict[str, Any], float]] = [
    ({"weight_dtype": "int8"}, 1 / 255),
    ({"weight_dtype": "int8", "group_size": 32}, 1 / 255),
    ({"weight_dtype": "int8", "activation_dtype": "int8"}, 1 / 255),
    ({"weight_dtype": "int8", "quantize_embedding": True}, 1 / 255),
    ({"weight_dtype": "int4", "group_size": 16}, 1 / 15),
    ({"weight_dtype": "int4", "activation_dtype": "int8"}, 1 / 15),
    ({"weight_dtype": "int4", "quantize_embedding": True}, 1 / 15),
    ({"weight_dtype": "float8_e4m3fn"}, 1 / 16),
    ({"weight_dtype": "nvfp4"}, 1 / 6),
]
"""A block, and half the widest step between its numbers as a share of the largest: what rounding may change."""


@pytest.mark.parametrize(("block", "half_a_step"), RUNS_ON_A_CPU, ids=lambda value: str(value))
@torch.no_grad()
def test_a_quantised_model_is_the_model_with_rounded_weights(
    model: Path, tmp_path: Path, block: dict[str, Any], half_a_step: float
) -> None:
    """Each weight is moved by half a step at most, and the model computes what a plain one with these weights does."""
    result = quantized(model, tmp_path / "out", **block)
    assert result.quantized_bytes < result.model_bytes
    record = json.loads((tmp_path / "out" / MARKER).read_text(encoding="utf-8"))
    assert record["mean_kl"] == result.mean_kl
    loaded, plain = (AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (tmp_path / "out", model))
    unrounded, rounded = plain(TOKENS).logits, loaded(TOKENS).logits.float()
    num_rounded = 0
    for name, parameter in loaded.named_parameters():
        weight = plain.get_parameter(name)
        if type(parameter.data) is torch.Tensor:
            assert torch.equal(parameter, weight), name
            continue
        num_rounded += 1
        values = parameter.data.dequantize()
        assert 0 < float((values - weight).abs().max()) <= 1.001 * half_a_step * float(weight.abs().max()), name
        weight.copy_(values)
    assert num_rounded == 14 + ("quantize_embedding" in block)
    # int8 inputs are rounded where they arise, which a plain model does not do: there only near, and not on a par.
    share = 0.1 if "activation_dtype" in block else 1e-5
    torch.testing.assert_close(rounded, plain(TOKENS).logits, rtol=0, atol=share * float(unrounded.abs().max()))
    assert result.mean_kl > 0
    assert not torch.equal(rounded, unrounded)


def test_an_embedding_in_int8_leaves_the_head_as_it_is(tmp_path: Path) -> None:
    tied = save_tiny_model(tmp_path / "tied", tie_word_embeddings=True, **SIZE)
    quantized(tied, tmp_path / "out", weight_dtype="int8", quantize_embedding=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(loaded.lm_head.weight.data) is torch.Tensor
    assert type(loaded.get_input_embeddings().weight.data).__name__ == "IntxUnpackedToInt8Tensor"
    base = AutoModelForCausalLM.from_pretrained(tied)
    torch.testing.assert_close(loaded.lm_head.weight, base.lm_head.weight)


def test_a_quantised_folder_replaces_a_quantised_folder_and_nothing_else(model: Path, tmp_path: Path) -> None:
    quantized(model, tmp_path / "out", weight_dtype="int8")
    quantized(model, tmp_path / "out", weight_dtype="fp8")
    assert "fp8" in json.loads((tmp_path / "out" / MARKER).read_text(encoding="utf-8"))["scheme"]
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    with pytest.raises(ArtefactError, match="is not empty, and what it holds is no quantised model of whet"):
        quantized(model, tmp_path / "thesis", weight_dtype="int8")
    with pytest.raises(ArtefactError, match=r"is quantised already \(torchao\)"):
        quantized(tmp_path / "out", tmp_path / "again", weight_dtype="int8")


def test_groups_must_divide_the_layers(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"groups of 48 weights do not divide the inputs of .*q_proj \(64\) and 13"):
        quantized(model, tmp_path / "out", weight_dtype="int4", group_size=48)
    assert not (tmp_path / "out").exists()


def test_what_was_not_asked_for_is_not_made(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing says in which numbers to write the model"):
        whet.quantize(config_of(model))
    with pytest.raises(ArtefactError, match="is no full model: there is no such folder"):
        quantized(tmp_path / "nowhere", tmp_path / "out", weight_dtype="int8")


def test_an_adapter_is_merged_first(tmp_path: Path) -> None:
    adapter = {"adapter": "lora", "lora_target_linear": True}
    config = make_config("tiny", adapter=adapter, output={"output_dir": str(tmp_path)})
    resolved = resolve(config, Hardware("cpu"))
    with pytest.raises(ArtefactError, match=r"an adapter is not quantised by itself -> whet merge-lora my\.yaml"):
        export_stages.model_of(resolved)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").touch()
    assert export_stages.model_of(resolved) == tmp_path / "merged"


REFUSED: list[tuple[tuple[str, str], tuple[int, int], str]] = [
    (("fp8", "fp8"), (8, 9), r"need a GPU of compute capability 8\.9"),
    (("int4", "fp8"), (9, 0), r"need a GPU of compute capability 9\.0"),
    (("nvfp4", "nvfp4"), (10, 0), r"need a GPU of compute capability 10\.0"),
    (("mxfp4", "mxfp4"), (10, 0), r"need a GPU of compute capability 10\.0"),
]


@pytest.mark.parametrize(("pair", "capability", "message"), REFUSED)
def test_what_needs_a_newer_gpu_is_refused_elsewhere(
    model: Path, tmp_path: Path, pair: tuple[str, str], capability: tuple[int, int], message: str
) -> None:
    weight, activation = pair
    with pytest.raises(ConfigError, match=f"{message}.*and this is a CPU"):
        quantized(model, tmp_path / "out", weight_dtype=weight, activation_dtype=activation)
    scheme = scheme_to_write(config_of(model, weight_dtype=weight, activation_dtype=activation))
    assert scheme is not None
    assert refusal(scheme, Hardware("cuda", "An old GPU", compute_capability=(8, 0))) is not None
    assert refusal(scheme, Hardware("cuda", "A new GPU", compute_capability=capability)) is None
