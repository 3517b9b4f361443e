"""What quantisation-aware training sees is what `whet quantize` writes; what it trains are the float weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import make_config, packed_batch, save_tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared
from transformers import AutoModelForCausalLM

from whet.artefacts.quantize import quantize_model
from whet.artefacts.save import save_model
from whet.config.resolve import resolve
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model.levers import install_levers
from whet.model.load import load_model
from whet.model.loss import supervised_logits_loss
from whet.model.qat import StraightThrough, set_rounding
from whet.model.tokenizer import load_tokenizer

SIZE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 16}
TOKENS = packed_batch((40,))["input_ids"]

BLOCKS: list[dict[str, Any]] = [
    {"weight_dtype": "int8", "group_size": 16},
    {"weight_dtype": "int8", "activation_dtype": "int8"},
    {"weight_dtype": "int4", "activation_dtype": "int8"},
    {"weight_dtype": "int4", "quantize_embedding": True},
    {"weight_dtype": "fp8"},
    {"weight_dtype": "nvfp4"},
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "model", **SIZE)


def prepared(base: Path, output_dir: Path, **block: Any) -> tuple[Any, Any, Any]:
    config = make_config(base, quant={"qat": block}, output={"output_dir": str(output_dir)})
    resolved = resolve(config, Hardware("cpu"))
    model = load_model(config, resolved, load_tokenizer(config)).model
    said = install_levers(model, config, resolved)
    assert any(sentence.startswith("qat: 14 layers are trained with weights in ") for sentence in said)
    return model, config, resolved


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits.float()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_what_is_trained_is_what_is_quantised(base: Path, tmp_path: Path, block: dict[str, Any]) -> None:
    model, config, resolved = prepared(base, tmp_path, **block)
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(2):
        supervised_logits_loss(model, packed_batch((30, 12), seed=step)).total.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    model.eval()
    save_model(model, load_tokenizer(config), tmp_path)
    quantize_model(config, resolved, tmp_path, tmp_path / "quantized")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "quantized").eval()
    trained, unrounded = logits(model), logits(AutoModelForCausalLM.from_pretrained(tmp_path).eval())
    scale = float(trained.abs().max())
    # Real int8 products differ from rounded float ones by 1e-7, which now and then turns the rounding of a later input.
    in_integers = block == {"weight_dtype": "int8", "activation_dtype": "int8"}
    assert float((logits(written) - trained).abs().max()) < (0.03 if in_integers else 1e-4) * scale
    assert float((unrounded - trained).abs().max()) > 1e-2, "the rounding does nothing"
    set_rounding(model, False)
    torch.testing.assert_close(logits(model), unrounded)


def test_a_layer_in_int8_is_trained_as_it_multiplies(base: Path, tmp_path: Path) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model, _, _ = prepared(base, tmp_path, weight_dtype="int8", activation_dtype="int8")
    layer = model.model.layers[0].mlp.up_proj
    real = torch.nn.Linear(layer.in_features, layer.out_features, bias=False)
    real.load_state_dict({"weight": layer.weight})
    quantize_(real, Int8DynamicActivationInt8WeightConfig())
    hidden = torch.randn(2, 20, layer.in_features)
    torch.testing.assert_close(layer(hidden), real(hidden), rtol=1e-5, atol=1e-5)


def test_the_gradient_passes_the_rounding_unchanged() -> None:
    value = torch.randn(3, 4, requires_grad=True)
    weights = torch.randn(3, 4)
    rounding = StraightThrough(torch.round)
    out = rounding(value)
    torch.testing.assert_close(out, value.round(), rtol=0, atol=1e-6)
    (out * weights).sum().backward()
    torch.testing.assert_close(value.grad, weights)


def test_rounding_begins_after_n_steps_and_holds_at_the_end(base: Path, tmp_path: Path) -> None:
    keys = {"qat": {"weight_dtype": "int4", "fake_quant_after_n_steps": 2}, "max_steps": 3, "sequence_len": 64}
    resolved = make_resolved(tmp_path / "out", save_strategy="no", base_model=str(base), **keys)
    prepared_set = write_prepared(tmp_path / "set", random_samples(8))
    model, _, _ = prepared(base, tmp_path, **keys["qat"])
    trainer = make_trainer(prepared_set, resolved, model)
    seen: list[bool] = []
    layer = model.model.layers[0].mlp.up_proj
    layer.register_forward_pre_hook(lambda *_: seen.append(layer.weight_fake_quantizer.enabled))
    trainer.train()
    assert seen[-3:] == [False, False, True]  # what comes before is the loss, tried on the model
    set_rounding(model, False)
    trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    assert layer.weight_fake_quantizer.enabled


def test_groups_must_divide_the_layers(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="qat: groups of 48 weights do not divide the inputs of"):
        prepared(base, tmp_path, weight_dtype="int4", group_size=48)


def test_numbers_that_only_a_newer_gpu_multiplies_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"qat: mxfp4 weights .* need a GPU of compute capability 10\.0"):
        prepared(base, tmp_path, weight_dtype="mxfp4", activation_dtype="mxfp4")
