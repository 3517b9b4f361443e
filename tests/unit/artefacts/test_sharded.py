"""What two ranks wrote in parts, gathered: every tensor the one that torch itself gathers, in a folder that loads."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tests.models import make_config
from tests.sharded_checkpoints import LORA, make
from tests.warm import warm  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from whet import exports
from whet.artefacts import dcp, sharded
from whet.artefacts.sharded import MARKER, find_checkpoint, gather
from whet.core.errors import ArtefactError, ParityError

TOKENS = torch.arange(3, 43)[None]
ADAPTER = {
    "adapter": "lora",
    "lora_r": LORA["r"],
    "lora_alpha": LORA["lora_alpha"],
    "lora_target_modules": LORA["target_modules"],
    "lora_modules_to_save": LORA["modules_to_save"],
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    make(folder)
    return folder


def config_of(folder: Path, parity: bool = False, **sections: Any) -> Any:
    return make_config(folder / "base", output={"output_dir": str(folder / "out"), "parity": parity}, **sections)


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(TOKENS, use_cache=False).logits


@pytest.mark.parametrize("parts", ["dcp", "wrapped", "with_optimizer"])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_every_tensor_is_the_one_torch_gathers(saved: Path, tmp_path: Path, kind: str, parts: str) -> None:
    """Whatever wraps the names, and without the optimizer that may lie beside them; tied weights are written once."""
    folder = saved / kind
    result = gather(config_of(folder), tmp_path / "merged", checkpoint=folder / parts, shard_bytes=20_000)
    whole = load_file(folder / "whole.safetensors")
    if kind == "llama":
        assert torch.equal(whole.pop("lm_head.weight"), whole["model.embed_tokens.weight"])
    assert_same(tensors_in(tmp_path / "merged"), whole)
    assert result.shards > 3
    assert result.tensors == len(whole)


@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_the_folder_needs_nothing_else(saved: Path, tmp_path: Path, kind: str) -> None:
    folder = saved / kind
    gather(config_of(folder), tmp_path / "merged", checkpoint=folder / "dcp")
    model, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    live = AutoModelForCausalLM.from_pretrained(folder / "base")
    before = logits(live)
    live.load_state_dict(load_file(folder / "whole.safetensors"))
    assert (logits(live) - before).abs().max() > 0.01, "training moved nothing"
    assert torch.equal(logits(model), logits(live))
    assert sorted(model.generation_config.eos_token_id) == [1, 4]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False).startswith("<|bos|>")


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_fresh_process_finds_the_checkpoints_model(saved: Path, tmp_path: Path, dtype: str | None) -> None:
    folder = saved / "llama"
    gather(config_of(folder, parity=True), tmp_path / "merged", checkpoint=folder / "dcp", dtype=dtype)
    record = json.loads((tmp_path / "merged" / "parity.json").read_text())
    assert record["outcome"] == "within the limit"
    assert record["kl"]["positions"] > 100
    assert record["live"]["what"] == f"the checkpoint '{folder / 'dcp'}'"
    # Not 0: two processes may cut the same product differently.
    assert (record["kl"]["max"] < 1e-10) == (dtype is None)


@pytest.mark.usefixtures("warm")
def test_a_model_that_is_another_when_loaded_is_kept_apart(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors may be equal and the model another: here the config that is written is wrong."""
    folder = saved / "llama"
    filled = sharded._filled

    def as_it_was(model: Any, *rest: Any) -> Any:
        model.config.rms_norm_eps = 1.0
        return filled(model, *rest)

    monkeypatch.setattr(sharded, "_filled", as_it_was)
    with pytest.raises(ParityError, match="the gathered model is not the model that was trained"):
        gather(config_of(folder, parity=True), tmp_path / "merged", checkpoint=folder / "dcp")
    assert [path.name for path in tmp_path.iterdir()] == ["merged.FAILED-PARITY"]


def test_the_type_of_the_weights_can_be_chosen(saved: Path, tmp_path: Path) -> None:
    folder = saved / "llama"
    result = gather(config_of(folder), tmp_path / "merged", checkpoint=folder / "dcp", dtype="bfloat16")
    whole = load_file(folder / "whole.safetensors")
    found = tensors_in(tmp_path / "merged")
    assert result.dtype == "bfloat16"
    assert_same(found, {name: whole[name].bfloat16() for name in found})
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_weights_that_training_moved_apart_stay_apart(
    saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="whet")
    folder = saved / "untied"
    gather(config_of(folder), tmp_path / "merged", checkpoint=folder / "dcp")
    assert_same(tensors_in(tmp_path / "merged"), load_file(folder / "whole.safetensors"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert "were trained apart, so the model no longer ties them" in caplog.text


@pytest.mark.parametrize("parts", ["dcp", "alone"])
def test_an_adapter_is_gathered_without_its_base(saved: Path, tmp_path: Path, parts: str) -> None:
    folder = saved / "adapter"
    config = config_of(folder, adapter=ADAPTER, parity=True)
    result = gather(config, tmp_path / "adapter", checkpoint=folder / parts)
    assert result.kind == "adapter"
    record = json.loads((tmp_path / "adapter" / "parity.json").read_text())
    assert record["outcome"].startswith("not proved: its tensors were compared, and no model was computed; whet")
    assert record["artefact"]["files"].keys() > {"adapter_config.json", "adapter_model.safetensors"}
    whole = load_file(folder / "whole.safetensors")
    assert_same(tensors_in(tmp_path / "adapter"), whole)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    before = logits(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert (logits(loaded) - before).abs().max() > 0.001, "training moved nothing"


def test_a_gathered_model_tells_of_the_run_that_wrote_the_parts(saved: Path, tmp_path: Path) -> None:
    """Also on a machine where that run could not train; for other programs it has a card."""
    parts = tmp_path / "out" / "checkpoint-10" / "pytorch_model_fsdp_0"
    shutil.copytree(saved / "llama" / "dcp", parts)
    (tmp_path / "out" / "run.json").write_text(json.dumps({"kind": "train", "started": "then"}))
    sections = {"output": {"output_dir": str(tmp_path / "out"), "parity": False}, "distributed": {"fsdp_version": 2}}
    folder = exports.gather(make_config(saved / "llama" / "base", **sections))
    assert folder == tmp_path / "out" / "merged"
    record = json.loads((folder / "run.json").read_text())
    assert (record["kind"], record["outcome"]) == ("gather", "finished")
    assert record["made_of"] == {"folder": str(parts), "run": {"kind": "train", "started": "then"}}
    assert f"What the ranks of a sharded run wrote, in one: made of `{parts}`" in (folder / "README.md").read_text()
    assert exports.gather(make_config(saved / "llama" / "base", **sections)) == folder, "its own is replaced"


def test_the_newest_checkpoint_of_the_run_is_found(saved: Path, tmp_path: Path) -> None:
    config = make_config(saved / "llama" / "base", output={"output_dir": str(tmp_path)})
    for step in (5, 10):
        shutil.copytree(saved / "llama" / "dcp", tmp_path / f"checkpoint-{step}" / "pytorch_model_fsdp_0")
    assert find_checkpoint(config, None) == tmp_path / "checkpoint-10" / "pytorch_model_fsdp_0"
    assert find_checkpoint(config, tmp_path / "checkpoint-5").parent.name == "checkpoint-5"


@pytest.mark.parametrize(
    ("file", "words"),
    [
        (None, "there is no sharded checkpoint in '.*' .* -> give its folder: --model-dir"),
        ("pytorch_model_fsdp_rank0.bin", "holds pytorch_model_fsdp_rank0.bin: pickles.*SHARDED_STATE_DICT"),
        ("pytorch_model-00001-of-00002.bin", "a model in torch's own files, not the parts of ranks -> write it with"),
        ("model.safetensors", "it is gathered already -> use that folder as it is"),
    ],
)
def test_what_is_no_sharded_checkpoint_is_named(tmp_path: Path, file: str | None, words: str) -> None:
    config = make_config(tmp_path, output={"output_dir": str(tmp_path)})
    if file:
        (tmp_path / file).write_bytes(b"")
    with pytest.raises(ArtefactError, match=words):
        find_checkpoint(config, None)


def test_a_checkpoint_of_another_model_is_refused(saved: Path, tmp_path: Path) -> None:
    config = make_config(saved / "mixtral" / "base", output={"parity": False})
    with pytest.raises(ArtefactError, match=r"has no .*mlp\.gate\.weight.* -> give the config of the run that wrote"):
        gather(config, tmp_path / "merged", checkpoint=saved / "llama" / "dcp")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(ArtefactError, match="holds an adapter, and the config has none"):
        gather(config_of(saved / "llama"), tmp_path / "merged", checkpoint=saved / "adapter" / "alone")


def test_nothing_but_an_earlier_one_is_replaced(saved: Path, tmp_path: Path) -> None:
    folder, output = saved / "llama", tmp_path / "merged"
    for _ in range(2):
        gather(config_of(folder), output, checkpoint=folder / "dcp")
    (output / MARKER).unlink()
    with pytest.raises(ArtefactError, match="is not empty, and what it holds is no gathered model of whet"):
        gather(config_of(folder), output, checkpoint=folder / "dcp")


def test_a_missing_or_broken_part_is_an_error(saved: Path, tmp_path: Path) -> None:
    parts = shutil.copytree(saved / "llama" / "dcp", tmp_path / "dcp")
    whole = (parts / "__1_0.distcp").read_bytes()
    (parts / "__1_0.distcp").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtefactError, match=r"cannot be read: .* -> its files are not all there, or broken"):
        gather(config_of(saved / "llama"), tmp_path / "merged", checkpoint=parts)
    (parts / "__1_0.distcp").unlink()
    with pytest.raises(ArtefactError, match=r"lacks __1_0\.distcp of its 2 files -> copy the files of every rank"):
        gather(config_of(saved / "llama"), tmp_path / "merged", checkpoint=parts)
    assert not (tmp_path / "merged").exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), pickle.dumps([1]), b"not a pickle", b""])
def test_a_table_of_contents_that_is_another_pickle_runs_nothing(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".metadata").write_bytes(content)
    with pytest.raises(ArtefactError, match="it was not loaded -> use a checkpoint whose origin you know"):
        dcp.open_checkpoint(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_a_tensor_of_which_a_part_was_not_written_is_refused(saved: Path, tmp_path: Path) -> None:
    """torch would leave in its place what lay in memory."""
    shutil.copytree(saved / "llama" / "dcp", tmp_path / "dcp")
    path = tmp_path / "dcp" / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    entry = metadata.state_dict_metadata["model.lm_head.weight"]
    entry.chunks.pop()
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ArtefactError, match=r"has [\d,]+ of the 9,600 numbers of model.lm_head.weight"):
        dcp.open_checkpoint(tmp_path / "dcp")
    entry.size = None
    path.write_bytes(pickle.dumps(metadata))
    with pytest.raises(ArtefactError, match=r"is not as torch.distributed.checkpoint writes it"):
        dcp.open_checkpoint(tmp_path / "dcp")


def test_a_table_of_contents_cannot_name_files_elsewhere(saved: Path, tmp_path: Path) -> None:
    parts = shutil.copytree(saved / "llama" / "dcp", tmp_path / "dcp")
    metadata = dcp.open_checkpoint(parts)._metadata
    for each in metadata.storage_data.values():
        each.relative_path = "../dcp/" + each.relative_path
    (parts / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ArtefactError, match="names a file outside of its folder"):
        dcp.open_checkpoint(parts)
