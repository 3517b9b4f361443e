"""G6 artefact: live == adapter reloaded == merged, in a fresh load, by transformers alone (<= 1e-4 in float32)."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tests.models import ARCHITECTURES, MIXTURES, VOCAB_SIZE, make_config, packed_batch, save_tiny_model
from tests.warm import warm  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from whet.artefacts.merge import MARKER, merge_lora
from whet.artefacts.merge_layers import AdapterLayers
from whet.artefacts.save import save_model
from whet.artefacts.tensor_file import TensorFile
from whet.config import Config
from whet.config.resolve import ResolvedRun, resolve
from whet.core.errors import ArtefactError, ModelError, ParityError
from whet.core.types import Hardware
from whet.model.adapters import adapt
from whet.model.levers import install_levers
from whet.model.load import load_model
from whet.model.loss import supervised_logits_loss
from whet.model.tokenizer import load_tokenizer

pytestmark = pytest.mark.usefixtures("warm")

LORA = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
TOKENS = torch.randint(VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(9))


class Run:
    """A few steps of training, and its saved adapter."""

    def __init__(self, base: Path, folder: Path, adapter: dict[str, Any], **sections: dict[str, Any]) -> None:
        self.config: Config = make_config(base, adapter=adapter, **sections)
        self.resolved: ResolvedRun = resolve(self.config, Hardware("cpu"))
        self.tokenizer = load_tokenizer(self.config)
        model = load_model(self.config, self.resolved, self.tokenizer).model
        self.model = adapt(model, self.config, self.resolved)
        install_levers(self.model, self.config, self.resolved)
        self.model.train()
        optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.02)
        for step in range(3):
            supervised_logits_loss(self.model, packed_batch((30, 12, 20), seed=step)).total.backward()
            optimizer.step()
            optimizer.zero_grad()
        self.model.eval()
        self.adapter = save_model(self.model, self.tokenizer, folder / "adapter")

    def logits(self) -> torch.Tensor:
        return logits(self.model)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(TOKENS, use_cache=False).logits.float()


def loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "lora": {"adapter": {}},
    "dora": {"adapter": {"peft_use_dora": True}},
    "rslora": {"adapter": {"peft_use_rslora": True}},
    "patterns": {"adapter": {"lora_rank_pattern": {"q_proj": 2}, "lora_alpha_pattern": {"v_proj": 32}}},
    "modules to save": {"adapter": {"lora_modules_to_save": ["embed_tokens", "lm_head"]}},
    "embedding and head": {
        "adapter": {"lora_target_linear": False, "lora_target_modules": ["q_proj", "embed_tokens", "lm_head"]}
    },
    "token rows": {"adapter": {"peft_trainable_token_indices": [3, 4]}},
    "more tokens": {"adapter": {}, "tokenizer": {"tokens": [f"<t{i}>" for i in range(50)]}},
    "more tokens, trained": {
        "adapter": {"lora_modules_to_save": ["embed_tokens", "lm_head"]},
        "tokenizer": {"tokens": [f"<t{i}>" for i in range(50)], "resize_token_embeddings_to_32x": True},
    },
    "more tokens, their rows trained": {
        "adapter": {"peft_trainable_token_indices": [3, 305]},
        "tokenizer": {"tokens": [f"<t{i}>" for i in range(50)]},
    },
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_live(tmp_path: Path, variant: str) -> None:
    base = save_tiny_model(tmp_path / "base")
    sections = VARIANTS[variant]
    others = {name: value for name, value in sections.items() if name != "adapter"}
    run = Run(base, tmp_path, {**LORA, **sections["adapter"]}, **others)
    assert (run.logits() - logits(load_plain(base, run))).abs().max() > 0.1, "training moved nothing"
    merged = merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), run.logits(), atol=1e-4, rtol=0)
    assert merged.in_memory == ""
    assert merged.parity is not None
    assert merged.parity.outcome == "within the limit"


def load_plain(base: Path, run: Run) -> Any:
    model = loaded(base)
    model.resize_token_embeddings(run.model.get_input_embeddings().weight.shape[0], mean_resizing=False)
    return model


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_merges(tmp_path: Path, architecture: str) -> None:
    run = Run(save_tiny_model(tmp_path / "base", architecture), tmp_path, LORA)
    merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), run.logits(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("architecture", MIXTURES)
def test_adapted_experts_merge_and_reload(tmp_path: Path, architecture: str) -> None:
    """Trained beside their weights by whet, reloaded and merged by PEFT."""
    base = save_tiny_model(tmp_path / "base", architecture)
    targets = {
        "lora_target_modules": ["o_proj"],
        "lora_target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    run = Run(base, tmp_path, {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, **targets})
    assert (run.logits() - logits(loaded(base))).abs().max() > 0.1, "training moved nothing"
    reloaded = PeftModel.from_pretrained(loaded(base), run.adapter).eval()
    torch.testing.assert_close(logits(reloaded), run.logits(), atol=1e-4, rtol=1e-5)
    merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), run.logits(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "stays_tied"),
    [
        ({"lora_modules_to_save": ["lm_head"]}, False),
        ({"lora_modules_to_save": ["embed_tokens"]}, False),
        ({"lora_modules_to_save": ["embed_tokens", "lm_head"]}, False),
        ({"lora_target_linear": False, "lora_target_modules": ["q_proj", "lm_head"]}, False),
        ({"lora_target_linear": False, "lora_target_modules": ["q_proj", "embed_tokens"]}, False),
        ({"peft_trainable_token_indices": [3, 4]}, True),
        ({}, True),
    ],
    ids=str,
)
def test_a_tied_head_trained_apart_stays_apart(tmp_path: Path, adapter: dict[str, Any], stays_tied: bool) -> None:
    base = save_tiny_model(tmp_path / "base", tie_word_embeddings=True)
    run = Run(base, tmp_path, {**LORA, **adapter})
    merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    merged = loaded(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), run.logits(), atol=1e-4, rtol=0)
    assert merged.config.tie_word_embeddings is stays_tied


@pytest.mark.parametrize("architecture", ["llama", "mixtral"])
def test_the_merged_files_are_divided_as_the_base_is(tmp_path: Path, architecture: str) -> None:
    """Also where the experts of a layer lie in several files; in the base's names, in the dtype of the run."""
    base = save_tiny_model(tmp_path / "base", architecture)
    whole = loaded(base)
    (base / "model.safetensors").unlink()
    whole.save_pretrained(base, max_shard_size="20KB")
    experts = {
        "lora_target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
        "lora_target_modules": ["q_proj"],
    }
    adapter = experts | {"lora_target_linear": False} if architecture == "mixtral" else {}
    run = Run(base, tmp_path, {**LORA, **adapter}, precision={"torch_dtype": "bfloat16"})
    merged = merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert merged.in_memory == ""
    index = "model.safetensors.index.json"
    expected, found = (json.loads((folder / index).read_text()) for folder in (base, tmp_path / "merged"))
    assert found["weight_map"] == expected["weight_map"]
    assert len(set(found["weight_map"].values())) > 3
    assert 0.45 < found["metadata"]["total_size"] / expected["metadata"]["total_size"] < 0.55
    with safe_open(tmp_path / "merged" / next(iter(found["weight_map"].values())), framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_a_merge_has_less_than_a_shard_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes of all tensors that are alive, looked at whenever one is written; the base has a dozen shards."""
    base = save_tiny_model(tmp_path / "base", hidden_size=128, intermediate_size=256, num_hidden_layers=6)
    whole = loaded(base)
    (base / "model.safetensors").unlink()
    whole.save_pretrained(base, max_shard_size="300KB")
    shards = [path.stat().st_size for path in base.glob("*.safetensors")]
    run = Run(base, tmp_path, {**LORA, "lora_r": 1}, output={"parity": False})
    del whole, run.model
    gc.collect()
    before, peak, write = alive(), 0, TensorFile.write

    def watched(file: TensorFile, name: str, tensor: torch.Tensor) -> None:
        nonlocal peak
        peak = max(peak, alive() - before)
        write(file, name, tensor)

    monkeypatch.setattr(TensorFile, "write", watched)
    assert merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged").in_memory == ""
    assert len(shards) >= 10
    adapter = (run.adapter / "adapter_model.safetensors").stat().st_size
    assert 0 < peak < max(shards) + adapter, f"{peak} bytes, of {sum(shards)}"


def alive() -> int:
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.device.type == "cpu"]
    return sum({each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in tensors}.values())


def test_a_base_without_safetensors_is_merged_in_memory(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="whet")
    base = save_tiny_model(tmp_path / "base")
    torch.save(loaded(base).state_dict(), base / "pytorch_model.bin")
    (base / "model.safetensors").unlink()
    run = Run(base, tmp_path, LORA)
    merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert "the whole model is held in memory, because the base has no safetensors files" in caplog.text
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), run.logits(), atol=1e-4, rtol=0)


def test_a_base_of_few_bits_becomes_floats(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "full")
    four = BitsAndBytesConfig(load_in_4bit=True)
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(tmp_path / "full", quantization_config=four).save_pretrained(base)
    AutoTokenizer.from_pretrained(tmp_path / "full").save_pretrained(base)
    run = Run(base, tmp_path, LORA)
    merged = merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert "the base is stored in bitsandbytes" in merged.in_memory
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), run.logits(), atol=1e-3, rtol=0)


def in_fp8(full: Path, base: Path) -> None:
    """Write the model in ``full`` as DeepSeek and Qwen publish theirs: 8 bits, a scale for each block of 16 x 16."""
    tensors = load_file(full / "model.safetensors")
    for name in [name for name in tensors if "_proj" in name]:
        blocks = tensors[name].unflatten(0, (-1, 16)).unflatten(2, (-1, 16))
        scales = blocks.abs().amax((1, 3)) / 448
        eight = (blocks / scales[:, None, :, None]).flatten(2, 3).flatten(0, 1)
        tensors |= {name: eight.to(torch.float8_e4m3fn), f"{name}_scale_inv": scales}
    shutil.copytree(full, base)
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    told = json.loads((base / "config.json").read_text())
    told["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    (base / "config.json").write_text(json.dumps(told))


def test_a_base_in_fp8_becomes_floats_while_it_is_read(tmp_path: Path) -> None:
    """What is written then is floats: transformers would make 8 bits of them again, without a word in config.json."""
    in_fp8(save_tiny_model(tmp_path / "full"), tmp_path / "base")
    run = Run(tmp_path / "base", tmp_path, LORA)
    merged = merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert "the base is stored in fp8" in merged.in_memory
    assert merged.parity is not None
    assert merged.parity.outcome == "within the limit"
    with safe_open(tmp_path / "merged" / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.offset_keys()} == {"F32"}
    assert "quantization_config" not in (tmp_path / "merged" / "config.json").read_text()
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), run.logits(), atol=1e-4, rtol=0)


def test_the_adapter_reloaded_is_live(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    run = Run(base, tmp_path, LORA)
    reloaded = PeftModel.from_pretrained(loaded(base), run.adapter).eval()
    torch.testing.assert_close(logits(reloaded), run.logits(), atol=1e-5, rtol=0)


def test_the_merged_folder_needs_nothing_of_ours(tmp_path: Path) -> None:
    """Loaded by a fresh process that has never heard of whet or PEFT; it stops at the end of a turn."""
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    torch.save(TOKENS, tmp_path / "tokens.pt")
    script = (
        "import sys, torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"folder = {str(tmp_path)!r}\n"
        "model = AutoModelForCausalLM.from_pretrained(folder + '/merged').eval()\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder + '/merged')\n"
        "assert model.dtype == torch.float32 and model.config.use_cache\n"
        "assert sorted(model.generation_config.eos_token_id) == [1, 4], model.generation_config\n"
        "assert model.generation_config.pad_token_id == 2\n"
        "text = tokenizer.apply_chat_template([{'role': 'user', 'content': 'hi'}], tokenize=False)\n"
        "assert text == '<|bos|><|im_start|>user\\nhi<|im_end|>\\n', text\n"
        "assert 'peft' not in sys.modules and 'whet' not in sys.modules\n"
        "torch.save(model(torch.load(folder + '/tokens.pt'), use_cache=False).logits, folder + '/logits.pt')\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, timeout=120)
    fresh = torch.load(tmp_path / "logits.pt")
    torch.testing.assert_close(fresh, run.logits(), atol=1e-4, rtol=0)


@pytest.mark.parametrize("quant", [{"load_in_4bit": True}, {"load_in_8bit": True}], ids=["nf4", "int8"])
def test_a_quantised_run_merges_into_the_full_base(
    tmp_path: Path, quant: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="whet")
    base = save_tiny_model(tmp_path / "base")
    run = Run(base, tmp_path, LORA, quant=quant)
    merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    full = PeftModel.from_pretrained(loaded(base), run.adapter).eval()
    torch.testing.assert_close(logits(loaded(tmp_path / "merged")), logits(full), atol=1e-4, rtol=0)
    assert "it is merged into the base's full weights" in caplog.text


def test_sixteen_bit_weights_are_near(tmp_path: Path) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA, precision={"bf16": True})
    assert run.resolved.dtype == "bfloat16"
    merged = merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16
    assert merged.parity is not None
    assert merged.parity.mean_kl is not None
    assert merged.parity.mean_kl <= 0.01


def test_a_merge_replaces_a_merge_and_nothing_else(tmp_path: Path) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    output = tmp_path / "merged"
    for _ in range(2):
        merge_lora(run.config, run.resolved, run.adapter, output)
    assert json.loads((output / MARKER).read_text())["adapter"] == str(run.adapter)
    (output / MARKER).unlink()
    with pytest.raises(ArtefactError, match="is not empty, and what it holds is no merged model of whet ->"):
        merge_lora(run.config, run.resolved, run.adapter, output)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "base", "merged"], (
        "a partial folder is left"
    )


def test_a_run_that_has_left_no_adapter_is_told_how_to_get_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    base = save_tiny_model(tmp_path / "base")
    for adapter, message in ((LORA, "there is no trained adapter in '.*' yet -> train it"), ({}, "nothing to merge")):
        config = make_config(base, adapter=adapter, output={"output_dir": str(out)})
        with pytest.raises(ArtefactError, match=message):
            merge_lora(config, resolve(config, Hardware("cpu")), out, out / "merged")


def test_what_is_no_adapter_is_refused(tmp_path: Path) -> None:
    config = make_config(save_tiny_model(tmp_path / "base"), adapter=LORA)
    resolved = resolve(config, Hardware("cpu"))
    with pytest.raises(ArtefactError, match="'nowhere' is no adapter: there is no such folder -> give the output_dir"):
        merge_lora(config, resolved, "nowhere", tmp_path / "merged")
    with pytest.raises(ArtefactError, match=r"is no adapter: it holds no adapter_config\.json"):
        merge_lora(config, resolved, tmp_path / "base", tmp_path / "merged")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    other = make_config(save_tiny_model(tmp_path / "other", hidden_size=64), adapter=LORA)
    with pytest.raises(ArtefactError, match=r"does not fit .*other.* -> give the base model that it was trained on"):
        merge_lora(other, run.resolved, run.adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_merge_that_is_not_base_plus_adapter_is_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    merge = AdapterLayers.merge
    monkeypatch.setattr(AdapterLayers, "merge", lambda *args: merge(*args) * 1.1)
    with pytest.raises(
        ParityError, match=r"merged model is not the model that was trained: KL .*merged.FAILED-PARITY'"
    ):
        merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["adapter", "base", "merged.FAILED-PARITY"]


def test_a_fully_trained_model_is_saved_ready_to_generate(tmp_path: Path) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, {})
    saved = loaded(run.adapter)
    torch.testing.assert_close(logits(saved), run.logits(), atol=1e-5, rtol=0)
    assert saved.config.use_cache
    assert sorted(saved.generation_config.eos_token_id) == [1, 4]
    assert AutoTokenizer.from_pretrained(run.adapter).chat_template == run.tokenizer.chat_template
    assert "whet_documents" not in (run.adapter / "config.json").read_text()


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="the trained model cannot be written to"):
        save_model(run.model, run.tokenizer, tmp_path / "file" / "inside")


def test_a_merge_does_not_replace_what_it_is_made_of(tmp_path: Path) -> None:
    """An earlier merged model may be the base of a second run; its folder is not the place for what comes of that."""
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    for made_of, where in (("base", tmp_path / "base"), ("base", tmp_path), ("adapter", tmp_path / "adapter")):
        (where / MARKER).write_text("{}")
        words = f"is where the {made_of}( model)? of this merge lies, and it would be replaced -> give another folder"
        with pytest.raises(ArtefactError, match=f"{words}: whet merge-lora my.yaml --merged-dir"):
            merge_lora(run.config, run.resolved, run.adapter, where)
        (where / MARKER).unlink()
    assert (tmp_path / "base" / "model.safetensors").is_file()


def test_a_disk_without_room_is_found_before_a_tensor_is_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    needed = sum(tensor.numel() * 4 for tensor in loaded(tmp_path / "base").state_dict().values())
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=needed - 1))
    monkeypatch.setattr(TensorFile, "write", lambda *args: pytest.fail("a tensor was merged"))
    words = r"the merged model needs 0\.\d MiB, and .* free -> make room, or choose another place: .* --merged-dir"
    with pytest.raises(ArtefactError, match=words):
        merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


@pytest.mark.parametrize(
    ("stored", "packages", "error"),
    [
        ("gptq", False, "is stored in gptq, which needs the packages? .*gptqmodel.* -> pip install .*gptqmodel"),
        ("gptq", True, "is stored in gptq, and transformers cannot make floats of that -> write the unquantised model"),
        ("unheard", True, "is stored in unheard, and transformers cannot make floats of that"),
    ],
)
def test_a_base_that_cannot_be_made_floats_is_refused_before_it_is_read(
    stored: str, packages: bool, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(save_tiny_model(tmp_path / "base"), tmp_path, LORA)
    told = json.loads((tmp_path / "base" / "config.json").read_text())
    told["quantization_config"] = {"quant_method": stored, "bits": 4, "group_size": 32}
    (tmp_path / "base" / "config.json").write_text(json.dumps(told))
    if packages:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr("whet.artefacts.merge.load_whole", lambda *args: pytest.fail("the base was read"))
    with pytest.raises((ArtefactError, ModelError), match=error):
        merge_lora(run.config, run.resolved, run.adapter, tmp_path / "merged")
