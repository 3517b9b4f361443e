"""Which model a chat loads, and that it sees the prompt as training did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.models import ARCHITECTURES, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from whet.config import Config, make_config
from whet.core.errors import ArtefactError
from whet.data.samples import Encoded
from whet.data.tokenise import SampleEncoder
from whet.serving.chat import default_sampling, load_engine
from whet.serving.sampling import Sampling
from whet.serving.trained import Trained, find_trained

MESSAGES = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "It is 2."}]

MakeConfig = Callable[..., Config]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def config(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeConfig:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": MESSAGES}) + "\n")

    def make(**changes: Any) -> Config:
        values = {
            "base_model": str(model),
            "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
            "learning_rate": 1e-4,
            "output_dir": "out",
            **changes,
        }
        return make_config(values)

    return make


LORA = {"adapter": "lora", "lora_target_linear": True}


def write(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("{}")
    return folder


def test_the_output_folder_comes_before_its_checkpoints(config: MakeConfig) -> None:
    write(Path("out"), "adapter_config.json")
    assert find_trained(config(**LORA)) == Trained("adapter", Path("out"))
    write(Path("out"), "config.json")
    assert find_trained(config()) == Trained("full", Path("out"))


def test_a_run_that_has_not_ended_gives_its_newest_complete_checkpoint(
    config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whet.training import checkpoint

    folder = write(Path("out/checkpoint-20"), "adapter_config.json")
    monkeypatch.setattr(checkpoint, "newest_complete", lambda _: checkpoint.Found(folder, ()))
    assert find_trained(config(**LORA)) == Trained("adapter", folder)


def test_the_other_kind_of_result_is_not_taken_for_this_one(config: MakeConfig) -> None:
    write(Path("out"), "config.json")
    with pytest.raises(ArtefactError, match="there is no trained adapter in 'out' yet"):
        find_trained(config(**LORA))


def test_a_named_adapter_folder_must_hold_one(config: MakeConfig) -> None:
    with pytest.raises(ArtefactError, match=r"--lora-model-dir: 'nix' holds no adapter \(adapter_config.json\)"):
        find_trained(config(**LORA), Path("nix"))


def test_the_prompt_of_a_chat_is_the_beginning_of_the_training_sample(config: MakeConfig) -> None:
    """Promise G1: the ids of the prompt and the ids trained on agree, the header of the answer included."""
    settings = config()
    engine = load_engine(settings, untrained=True)
    from whet.training.tokenizer import run_tokenizer

    tokenizer = run_tokenizer(settings)
    (sample,) = SampleEncoder(settings.data.datasets[0], settings, tokenizer).encode_rows([{"messages": MESSAGES}])
    assert isinstance(sample, Encoded)
    prompt = engine.prompt_ids(MESSAGES[:1])
    assert prompt == sample.input_ids[: len(prompt)].tolist()
    assert prompt == tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True, return_dict=False)
    assert not sample.supervised[: len(prompt)].any()
    assert sample.supervised[len(prompt)]


def test_a_full_fine_tune_answers_with_the_trained_weights(config: MakeConfig, model: Path) -> None:
    """Whatever the config says of how the base was made (random weights, overrides) is over once it is trained."""
    trained = AutoModelForCausalLM.from_pretrained(model)
    with torch.no_grad():
        trained.lm_head.weight.mul_(-1)
    trained.save_pretrained("out")
    AutoTokenizer.from_pretrained(model).save_pretrained("out")
    sampling = Sampling(max_new_tokens=8)
    answer = "".join(load_engine(config(reinit_weights=True)).stream(MESSAGES[:1], sampling))
    direct = "".join(
        load_engine(config(base_model="out", output_dir="elsewhere"), untrained=True).stream(MESSAGES[:1], sampling)
    )
    untrained = "".join(load_engine(config(), untrained=True).stream(MESSAGES[:1], sampling))
    assert answer == direct != untrained


def test_an_adapter_of_another_model_is_refused_in_a_sentence(config: MakeConfig, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    other = save_tiny_model(tmp_path / "other", hidden_size=64)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(other), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapted.save_pretrained("out")
    with pytest.raises(
        ArtefactError, match=r"the adapter does not fit .* -> use the base model that it was trained on"
    ):
        load_engine(config(**LORA))


@pytest.mark.parametrize("fault", ["missing", "of another layer"])
def test_an_adapter_that_is_not_whole_is_refused(config: MakeConfig, model: Path, fault: str) -> None:
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    )
    adapted.save_pretrained("out")
    tensors = load_file("out/adapter_model.safetensors")
    first = min(tensors)
    tensor = tensors.pop(first)
    if fault == "of another layer":
        tensors[first.replace("layers.0", "layers.9")] = tensor
    save_file(tensors, "out/adapter_model.safetensors")
    with pytest.raises(ArtefactError, match=r"its file lacks base_model\.model\.model\.layers\.0\..*lora_A\.weight"):
        load_engine(config(**LORA))


def test_without_a_template_the_model_continues_the_text(config: MakeConfig, model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained("bare")
    (Path("texts.jsonl")).write_text('{"text": "a"}\n')
    settings = config(tokenizer_config="bare", datasets=[{"path": "texts.jsonl", "type": "completion"}])
    engine = load_engine(settings, untrained=True)
    assert (
        engine.prompt_ids([{"role": "user", "content": "ab"}, {"role": "assistant", "content": "c"}])
        == (tokenizer("abc")["input_ids"])
    )
    assert engine.description.endswith("which has no chat template: it continues text")


def test_default_sampling_is_what_the_generation_config_asks_for() -> None:
    assert default_sampling(GenerationConfig()) == Sampling()
    asked = GenerationConfig(do_sample=True, temperature=0.6, top_p=0.9, top_k=20)
    assert default_sampling(asked) == Sampling(temperature=0.6, top_p=0.9, top_k=20)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_generates_from_its_cache_as_without_one(
    config: MakeConfig, tmp_path: Path, architecture: str
) -> None:
    folder = save_tiny_model(tmp_path / architecture, architecture)
    engine = load_engine(config(base_model=str(folder)), untrained=True)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = engine.prompt_ids(MESSAGES[:1])
    answer: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            answer.append(int(model(torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax()))
    pieces = engine.stream(MESSAGES[:1], Sampling(max_new_tokens=6))
    assert "".join(pieces) == AutoTokenizer.from_pretrained(folder).decode(answer, skip_special_tokens=True)
