"""G5 adapt: each target pattern matches; each trainable tensor gets a gradient and moves; no frozen one does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import ARCHITECTURES, MIXTURES, make_config, packed_batch, save_tiny_model
from transformers.pytorch_utils import Conv1D

from whet.config.resolve import resolve
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model.adapters import adapt
from whet.model.levers import install_levers
from whet.model.load import load_model
from whet.model.loss import supervised_logits_loss
from whet.model.tokenizer import load_tokenizer
from whet.model.trainable import trainable_summary

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: save_tiny_model(root / name, name) for name in ARCHITECTURES}


def adapted(folder: Path, adapter: dict[str, Any], **sections: dict[str, Any]) -> Any:
    config = make_config(folder, adapter=adapter, **sections)
    resolved = resolve(config, Hardware("cpu"))
    model = adapt(load_model(config, resolved, load_tokenizer(config)).model, config, resolved)
    install_levers(model, config, resolved)
    return model


def train(model: Any, steps: int = 2) -> dict[str, torch.Tensor]:
    """The largest gradient of each trainable tensor over two steps (LoRA's A has none in the first: B is zero)."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    largest: dict[str, torch.Tensor] = {}
    for step in range(steps):
        supervised_logits_loss(model, packed_batch((30, 12, 20), seed=step)).total.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                largest[name] = torch.maximum(largest.get(name, torch.tensor(0.0)), parameter.grad.abs().max())
        optimizer.step()
        optimizer.zero_grad()
    return largest


@pytest.mark.parametrize("lora_model_dir", [False, True])
def test_everything_trained_in_mixed_precision_is_float32(
    lora_model_dir: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    keys = {**LORA, "lora_target_linear": True, "lora_modules_to_save": ("embed_tokens", "lm_head")}
    if lora_model_dir:
        adapted(folders["llama"], keys).save_pretrained(tmp_path)
        keys["lora_model_dir"] = str(tmp_path)
    model = adapted(folders["llama"], keys, precision={"bf16": True})
    dtypes = {trained: {p.dtype for p in model.parameters() if p.requires_grad is trained} for trained in (True, False)}
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        largest = train(model)
    assert all(gradient > 0 for gradient in largest.values())


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"adapter": {"lora_target_linear": True}},
    "dora": {"adapter": {"lora_target_linear": True, "peft_use_dora": True}},
    "rslora": {"adapter": {"lora_target_linear": True, "peft_use_rslora": True}},
    "checkpointing": {"adapter": {"lora_target_linear": True}, "memory": {"gradient_checkpointing": True}},
    "reentrant": {
        "adapter": {"lora_target_linear": True},
        "memory": {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    },
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_trained_moves_and_nothing_else(folders: dict[str, Path], architecture: str, variant: str) -> None:
    sections = VARIANTS[variant]
    others = {name: value for name, value in sections.items() if name != "adapter"}
    model = adapted(folders[architecture], {**LORA, **sections["adapter"]}, **others)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = train(model)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == ("lora_" in name), name
        if parameter.requires_grad:
            assert gradients[name] > 0, name
            assert not torch.equal(parameter, before[name]), name
        else:
            assert name not in gradients, name
            assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("architecture", MIXTURES)
def test_adapted_experts_move_and_nothing_else(tmp_path: Path, architecture: str) -> None:
    parameters = ("experts.gate_up_proj", "experts.down_proj")
    adapter = {**LORA, "lora_target_modules": ("o_proj",), "lora_target_parameters": parameters}
    config = make_config(
        save_tiny_model(tmp_path, architecture), adapter=adapter, memory={"gradient_checkpointing": True}
    )
    resolved = resolve(config, Hardware("cpu"))
    model: Any = adapt(load_model(config, resolved, load_tokenizer(config)).model, config, resolved)
    assert any("beside the weights" in said for said in install_levers(model, config, resolved))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = train(model)
    assert sum("experts" in name for name in gradients) >= 4
    for name, parameter in model.named_parameters():
        assert (name in gradients) == parameter.requires_grad == ("lora_" in name), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_target_linear_is_every_linear_layer_but_the_head(folders: dict[str, Path], architecture: str) -> None:
    model = adapted(folders[architecture], {**LORA, "lora_target_linear": True})
    base = model.get_base_model()
    kinds = (torch.nn.Linear, Conv1D)
    frozen = [(name, each) for name, each in base.named_modules() if isinstance(each, kinds) and "lora_" not in name]
    assert [name for name, _ in frozen if not name.endswith("base_layer")] == ["lm_head"]
    assert len(frozen) > 5


@pytest.mark.parametrize("quant", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["nf4", "int8"])
def test_a_quantised_base_stays_and_its_adapter_moves(folders: dict[str, Path], quant: dict[str, Any]) -> None:
    model = adapted(folders["llama"], {**LORA, "lora_target_linear": True}, quant=quant)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients = train(model)
    for name, parameter in model.named_parameters():
        assert (name in gradients) == parameter.requires_grad == ("lora_" in name), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def test_a_quantised_base_keeps_its_experts_in_16_bits(tmp_path: Path) -> None:
    """They are most of a mixture's weights, and bitsandbytes leaves them alone."""
    adapter = {**LORA, "lora_target_modules": ("q_proj",), "lora_target_parameters": ("experts.down_proj",)}
    sections = {"quant": {"load_in_4bit": True}, "precision": {"bf16": True}}
    model = adapted(save_tiny_model(tmp_path, "mixtral"), adapter, **sections)
    stacks = [parameter for name, parameter in model.named_parameters() if name.endswith("_proj")]
    assert [stack.dtype for stack in stacks] == [torch.bfloat16] * 4
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        assert all(gradient > 0 for gradient in train(model).values())


def test_modules_to_save_are_trained_in_full(folders: dict[str, Path]) -> None:
    adapter = {**LORA, "lora_target_modules": ["q_proj"], "lora_modules_to_save": ["embed_tokens", "lm_head"]}
    gradients = train(adapted(folders["llama"], adapter))
    known = ("embed_tokens", "lm_head", "q_proj", "v_proj")
    assert {"embed_tokens", "lm_head", "q_proj"} == {
        part for name in gradients for part in name.split(".") if part in known
    }


def test_trained_token_rows_move_alone(folders: dict[str, Path]) -> None:
    adapter = {**LORA, "lora_target_modules": ["q_proj"], "peft_trainable_token_indices": [3, 4]}
    model = adapted(folders["llama"], adapter)
    gradients = train(model)
    (name,) = [name for name in gradients if "trainable_tokens" in name]
    assert dict(model.named_parameters())[name].shape == (2, 32)


def test_patterns_select_layers_ranks_and_numbers(folders: dict[str, Path]) -> None:
    adapter = {
        **LORA,
        "lora_target_modules": ["q_proj", r"mlp\.(up|down)_proj"],
        "lora_exclude_modules": [r"layers\.0\.mlp\.down_proj"],
        "lora_rank_pattern": {"q_proj": 2},
    }
    model = adapted(folders["llama"], adapter)
    ranks = {
        name.removesuffix(".lora_A.default.weight").rpartition("model.layers.")[2]: parameter.shape[0]
        for name, parameter in model.named_parameters()
        if "lora_A" in name
    }
    assert ranks == {
        "0.self_attn.q_proj": 2,
        "0.mlp.up_proj": 4,
        "1.self_attn.q_proj": 2,
        "1.mlp.up_proj": 4,
        "1.mlp.down_proj": 4,
    }
    only_last = {**LORA, "lora_target_modules": ["q_proj"], "peft_layers_to_transform": [1]}
    names = [name for name, p in adapted(folders["llama"], only_last).named_parameters() if p.requires_grad]
    assert names
    assert all(".layers.1." in name for name in names)


def test_an_adapter_is_trained_further(folders: dict[str, Path], tmp_path: Path) -> None:
    first = adapted(folders["llama"], {**LORA, "lora_target_linear": True})
    train(first)
    first.save_pretrained(tmp_path)
    second = adapted(folders["llama"], {"adapter": "lora", "lora_model_dir": str(tmp_path)})
    ours, theirs = dict(first.named_parameters()), dict(second.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())
    assert train(second).keys() == {name for name, parameter in ours.items() if parameter.requires_grad}


def test_the_summary_counts_weights(folders: dict[str, Path]) -> None:
    plain = trainable_summary(adapted(folders["llama"], {}))
    assert plain.trainable == plain.total
    with_adapter = trainable_summary(adapted(folders["llama"], {**LORA, "lora_target_modules": ["q_proj"]}))
    assert with_adapter.trainable == 2 * 2 * 4 * 32
    assert str(with_adapter).startswith("512 of ")


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        (
            {"lora_target_modules": ["q_proj", "gate_prj"]},
            "lora_target_modules: 'gate_prj' matches no layer of {model} -> did you mean 'gate_proj'? "
            "This model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
        ),
        ({"lora_target_modules": ["mlp"]}, "lora_target_modules: 'mlp' matches no layer of {model} -> This model has"),
        ({"lora_target_modules": ["q_proj("]}, "'q_proj(' is neither a name nor a regular expression"),
        (
            {},
            "adapter: lora does not say which layers to adapt -> write lora_target_linear: true, or "
            "lora_target_modules with some of q_proj, k_proj,",
        ),
        (
            {"lora_target_linear": True, "lora_modules_to_save": ["embed_token"]},
            "lora_modules_to_save: 'embed_token' matches no module of {model} -> did you mean 'embed_tokens'?",
        ),
        (
            {"lora_target_linear": True, "lora_exclude_modules": ["q_prj"]},
            "lora_exclude_modules: 'q_prj' matches no module of {model} -> did you mean 'q_proj'?",
        ),
        (
            {"lora_target_modules": ["q_proj"], "lora_rank_pattern": {"v_proj": 2}},
            "lora_rank_pattern: 'v_proj' matches no adapted layer of {model}",
        ),
        (
            {"lora_target_modules": ["q_proj"], "peft_layers_to_transform": [1, 2]},
            "the model has 2 layers, there is no layer 2 -> write numbers from 0 to 1",
        ),
        (
            {"lora_target_linear": True, "peft_init_lora_weights": "pissa"},
            "'pissa' is not supported yet: it changes the base weights",
        ),
        (
            {"lora_target_linear": True, "peft_trainable_token_indices": [300]},
            "the embedding has 300 rows, there is no token 300 -> write ids from 0 to 299",
        ),
        ({"lora_model_dir": "/nowhere"}, "lora_model_dir: '/nowhere' holds no adapter (adapter_config.json)"),
    ],
)
def test_what_matches_nothing_is_refused(folders: dict[str, Path], adapter: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError) as caught:
        adapted(folders["llama"], {**LORA, **adapter})
    assert message.format(model=folders["llama"]) in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        adapted(folders["llama"], {**LORA, "lora_target_modules": ["a1", "b1"], "lora_modules_to_save": ["c1"]})
    assert len(caught.value.problems) == 3
