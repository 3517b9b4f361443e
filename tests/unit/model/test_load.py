"""The base model a config asks for, or an error that says what to write."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import make_config, save_tiny_model, tiny_tokenizer
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from whet.config import Config
from whet.config.resolve import ResolvedRun, resolve
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model.attention import NAME
from whet.model.load import LoadedModel, load_model, load_model_config
from whet.model.tokenizer import load_tokenizer
from whet.model.trainable import trainable_summary


def resolved(config: Config) -> ResolvedRun:
    return resolve(config, Hardware("cpu"))


def load(config: Config) -> LoadedModel:
    return load_model(config, resolved(config), load_tokenizer(config))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama")


def test_a_model_is_loaded_ready_to_train(folder: Path) -> None:
    loaded = load(make_config(folder))
    assert loaded.model.config._attn_implementation == loaded.attention.name == NAME
    assert loaded.model.dtype == torch.float32
    assert loaded.model.config.use_cache is False
    assert (loaded.architecture.model_type, loaded.architecture.num_kv_heads, loaded.source) == (
        "llama",
        2,
        str(folder),
    )


def test_each_rank_has_its_model_on_its_own_gpu_before_packing_is_tried_on_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[Any] = []
    monkeypatch.setattr(PreTrainedModel, "to", lambda self, *where: moves.append(where))
    config = make_config(folder)
    load_model(config, resolve(config, Hardware("cuda", world_size=2, rank=1, local_rank=1)), load_tokenizer(config))
    assert moves == [("cuda:1",)]


@pytest.mark.parametrize(
    ("stored", "told"),
    [
        (
            {"attn_implementation": "someone/kernel"},
            "its config.json asks for the attention 'someone/kernel', which is",
        ),
        ({"_attn_implementation": "someone/kernel"}, "its config.json asks for the attention 'someone/kernel'"),
        ({"model_type": "planted"}, "holds no model config that can be loaded"),
        ({}, None),  # transformers' own Llama is taken instead
    ],
)
def test_a_config_json_brings_no_code_unless_it_is_trusted(
    stored: dict[str, str], told: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = shutil.copytree(folder, tmp_path / "model")
    (model / "planted.py").write_text("import os\nos.mkdir('EXECUTED')\nclass Config: ...\nclass Model: ...\n")
    auto = {"auto_map": {"AutoConfig": "planted.Config", "AutoModelForCausalLM": "planted.Model"}}
    (model / "config.json").write_text(json.dumps(json.loads((model / "config.json").read_text()) | auto | stored))
    if told is None:
        assert type(load(make_config(model)).model).__module__.startswith("transformers.")
    else:
        with pytest.raises(ModelError, match=re.escape(told)):
            load_model_config(make_config(model))
    assert not Path("EXECUTED").exists()


def test_a_config_with_other_names_is_refused_by_training_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of models with code of their own: a merge asks for no number of layers."""
    config, tokenizer = make_config(folder), load_tokenizer(make_config(folder))
    strange = PretrainedConfig(model_dim=32, num_transformer_layers=2)
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda *args, **options: strange)
    assert load_model_config(config) is strange
    with pytest.raises(ModelError, match=r"holds no model config that can be loaded \(.*num_hidden_layers"):
        load_model(config, resolve(config, Hardware("cpu")), tokenizer)


def test_a_missing_folder_names_the_near_ones(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(make_config(folder.with_name("tiny-lama")))
    assert f"there is no folder '{folder.with_name('tiny-lama')}' -> did you mean '{folder}'?" in str(caught.value)


def test_a_hub_id_without_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=r"'someone/nothing' is no folder here, and the hub is switched off"):
        load(make_config("someone/nothing"))


def test_a_folder_without_a_model_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelError, match=r"holds no tokenizer that can be loaded.*it holds notes.txt"):
        load(make_config(tmp_path))


def test_a_folder_without_weights_says_so(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no model that can be loaded.*no file named model.safetensors"):
        load(make_config(tmp_path))


def test_a_relative_folder_is_found_beside_the_yaml(folder: Path) -> None:
    config = make_config(folder.name).model_copy(update={"file": str(folder.parent / "my.yaml")})
    assert load(config).source == str(folder)


def test_a_row_longer_than_the_model_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"sequence_len is 513, and .* was made for 512 positions -> write"):
        load(make_config(folder, data={"sequence_len": 513}))


def test_config_overrides_reach_the_model_and_unknown_ones_are_refused(folder: Path) -> None:
    loaded = load(make_config(folder, model={"overrides_of_model_config": {"num_hidden_layers": 1}}))
    assert len(loaded.model.model.layers) == 1
    with pytest.raises(ModelError, match="llama has no 'num_hiden_layers' -> did you mean 'num_hidden_layers'"):
        load(make_config(folder, model={"overrides_of_model_config": {"num_hiden_layers": 1}}))


def test_random_weights_follow_the_seed(folder: Path) -> None:
    models = [
        load(make_config(folder, model={"reinit_weights": True}, loop={"seed": seed})).model for seed in (1, 1, 2)
    ]
    weights = [model.model.embed_tokens.weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    ("tokens", "options", "rows"),
    [
        ((), {}, 300),
        (("<a>", "<b>"), {}, 300),
        ((), {"shrink_embeddings": True}, 261),
        (("<a>",), {"shrink_embeddings": True, "resize_token_embeddings_to_32x": True}, 288),
        ((), {"resize_token_embeddings_to_32x": True}, 300),
        (tuple(f"<t{i}>" for i in range(50)), {}, 311),
        (tuple(f"<t{i}>" for i in range(50)), {"resize_token_embeddings_to_32x": True}, 320),
    ],
)
def test_every_token_has_an_embedding_row(
    folder: Path, tokens: tuple[str], options: dict[str, bool], rows: int
) -> None:
    config = make_config(folder, tokenizer={"tokens": tokens, **options})
    model = load(config).model
    assert model.get_input_embeddings().weight.shape[0] == model.get_output_embeddings().weight.shape[0] == rows
    assert model.config.vocab_size == rows


def test_new_rows_can_start_at_the_mean_of_the_old(folder: Path) -> None:
    tokens = tuple(f"<t{i}>" for i in range(50))
    weight = (
        load(make_config(folder, tokenizer={"tokens": tokens, "mean_resizing_embeddings": True}))
        .model.get_input_embeddings()
        .weight
    )
    old, new = weight[:300], weight[300:]
    assert (new - old.mean(0)).abs().max() < 0.1 * old.std()


def test_untrained_new_rows_under_an_adapter_are_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens = tuple(f"<t{i}>" for i in range(50))
    load(make_config(folder, tokenizer={"tokens": tokens}, adapter={"adapter": "lora", "lora_target_linear": True}))
    assert "the 11 new embedding rows are random and nothing trains them" in caplog.text


def test_only_named_parameters_are_trained(folder: Path) -> None:
    model = load(make_config(folder, model={"unfrozen_parameters": [r"model\.layers\.1\.", "lm_head"]})).model
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "layers.1." in name or "lm_head" in name}
    assert trainable_summary(model).trainable == sum(p.numel() for n, p in model.named_parameters() if n in trained)


def test_a_pattern_that_frees_nothing_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(make_config(folder, model={"unfrozen_parameters": ["lm_haed.weight", "lm_head.weight[:10]", "(("]}))
    assert [problem.found for problem in caught.value.problems][:2] == [
        "unfrozen_parameters: 'lm_haed.weight' matches no parameter",
        "unfrozen_parameters: 'lm_head.weight[:10]' asks for a part of a parameter, which is not supported yet",
    ]
    assert "is no regular expression" in caught.value.problems[2].found


@pytest.mark.parametrize(
    ("quant", "layer"),
    [({"load_in_4bit": True}, "Linear4bit"), ({"load_in_8bit": True}, "Linear8bitLt")],
)
def test_a_quantised_model_is_really_quantised(folder: Path, quant: dict[str, Any], layer: str) -> None:
    adapter = {"adapter": "lora", "lora_target_linear": True}
    model = load(make_config(folder, quant=quant, adapter=adapter, precision={"bf16": True})).model
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    assert kinds["model.layers.0.self_attn.q_proj"] == layer
    assert kinds["lm_head"] == "Linear"
    assert model.model.norm.weight.dtype == model.model.embed_tokens.weight.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in model.parameters())
    if layer == "Linear4bit":
        config = model.config.quantization_config
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == ("nf4", True)
        assert config.bnb_4bit_compute_dtype == torch.bfloat16
        assert trainable_summary(model).total == trainable_summary(load(make_config(folder)).model).total


def test_unknown_classes_are_refused_with_the_nearest(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no 'LlammaForCausalLM' -> did you mean 'LlamaForCausalLM'"):
        load(make_config(folder, model={"model_type": "LlammaForCausalLM"}))
    assert (
        type(load(make_config(folder, model={"model_type": "LlamaForCausalLM"})).model).__name__ == "LlamaForCausalLM"
    )


def test_a_model_with_its_own_tokenizer_elsewhere(folder: Path, tmp_path: Path) -> None:
    tiny_tokenizer(eos_token="<|im_end|>").save_pretrained(tmp_path / "tokenizer")
    config = make_config(folder, tokenizer={"tokenizer_config": str(tmp_path / "tokenizer")})
    assert load_tokenizer(config).eos_token == "<|im_end|>"
