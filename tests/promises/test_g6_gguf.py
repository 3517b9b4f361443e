"""G6 artefact, GGUF: what llama.cpp makes of the file is the model that was trained, and cuts text as in training.

llama.cpp itself is asked (package xllamacpp), and transformers' own reader where it reads the architecture.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tests.gguf_tokenizers import TOKENIZERS, sentencepiece_tokenizer
from tests.models import make_config, save_tiny_model, tiny_model
from tests.ollama import conversation
from tests.tiny_tokenizers import tiny_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, Gemma2Config, GemmaConfig, Qwen2Config

from whet import export_stages
from whet.artefacts.fresh import FreshProcess
from whet.artefacts.fresh_script import divergence
from whet.artefacts.gguf import adapter_proof, export
from whet.artefacts.gguf.adapter_file import AdapterFiles, look_at_adapter, prove_deltas, write_adapter
from whet.artefacts.gguf.foresee import foresee
from whet.artefacts.gguf.go_template import learn
from whet.artefacts.gguf.llama_cpp import LlamaCpp
from whet.artefacts.gguf.model_file import look_at, write_model
from whet.artefacts.gguf.tensors import opened
from whet.artefacts.gguf.vocabulary import to_put_around
from whet.config.resolve import resolve
from whet.core.errors import ArtefactError, ModelError, ParityError
from whet.core.types import Hardware

ROWS = 448
"""Of the embeddings: 22 more than the tiny tokenizer has tokens, as published models have too."""

IDS = torch.randint(5, 400, (40,), generator=torch.Generator().manual_seed(0)).tolist()

SIZE: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1e4,
          "original_max_position_embeddings": 16}  # fmt: skip
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0],
            "rope_theta": 1e4, "original_max_position_embeddings": 256}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 128}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied, with biases, llama3 positions": (
        "llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_parameters": LLAMA3},
    ),
    "llama, linear positions": ("llama", {"rope_parameters": LINEAR}),
    "llama, yarn positions": ("llama", {"rope_parameters": YARN}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mixtral": ("mixtral", {"intermediate_size": 32}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3_moe": ("qwen3_moe", {"norm_topk_prob": True}),
    "phi3": ("phi3", {}),
    "phi3, longrope positions": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256}),
    "gemma": ("gemma", {"head_dim": 16}),
    "gemma2": ("gemma2", {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 8}),
}  # fmt: skip
OTHERS = {"qwen2": Qwen2Config, "gemma": GemmaConfig, "gemma2": Gemma2Config}


def made(kind: str, folder: Path) -> tuple[Any, Path]:
    """A tiny model, and its folder with a tokenizer."""
    architecture, size = MODELS[kind]
    if architecture in OTHERS:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(OTHERS[architecture](**{**SIZE, **size})).eval()
    else:
        model = tiny_model(architecture, **{"vocab_size": ROWS, **size})
    for name, parameter in model.named_parameters():
        if name.endswith(("norm.weight", "bias")):  # all ones and zeros, in which a mistake would not show
            parameter.data += 0.1 * torch.arange(parameter.numel()).cos()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return model, folder


def written(folder: Path, outtype: str = "f32", tokenizer: Any = None) -> Path:
    with opened(folder) as files:
        write_model(folder / "m.gguf", look_at(folder, files, tokenizer or tiny_tokenizer(), "tiny"), outtype)
    return folder / "m.gguf"


@torch.no_grad()
def kl(model: Any, found_TV: torch.Tensor) -> list[float]:
    return divergence(model(torch.tensor([IDS]), use_cache=False).logits[0], found_TV)[0]


@pytest.mark.parametrize("kind", MODELS)
def test_llama_cpp_says_what_the_model_says(kind: str, tmp_path: Path) -> None:
    model, folder = made(kind, tmp_path)
    assert max(kl(model, LlamaCpp(written(folder)).distributions(IDS))) <= 1e-4


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "phi3"])
def test_transformers_reads_the_same_of_it(kind: str, tmp_path: Path) -> None:
    model, folder = made(kind, tmp_path)
    written(folder)
    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="m.gguf", dtype=torch.float32).eval()
    assert max(kl(model, read(torch.tensor([IDS]), use_cache=False).logits[0].detach())) <= 1e-4


@pytest.mark.parametrize(("outtype", "limit"), [("f16", 1e-2), ("bf16", 1e-2), ("q8_0", 0.1)])
@pytest.mark.parametrize("kind", ["llama", "mixtral"])
def test_fewer_bits_stay_near(kind: str, outtype: str, limit: float, tmp_path: Path) -> None:
    model, folder = made(kind, tmp_path)
    whole = written(folder).stat().st_size
    file = written(folder, outtype)
    assert sum(kl(model, LlamaCpp(file).distributions(IDS))) / len(IDS) <= limit
    assert file.stat().st_size < 0.65 * whole


def test_experts_stacked_or_single_make_the_same_file(tmp_path: Path) -> None:
    """transformers writes them one by one; what FSDP's ranks wrote has them stacked, as in memory."""
    from safetensors.torch import save_file

    model, folder = made("qwen3_moe", tmp_path)
    single = tensors_of(written(folder))
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    assert tensors_of(written(folder)) == single


def tensors_of(file: Path) -> dict[str, bytes]:
    return {tensor.name: tensor.data.tobytes() for tensor in GGUFReader(file).tensors}


@pytest.fixture(scope="module")
def conversations() -> list[str]:
    """Real text: docstrings of Python's library as chats, from the corpus of the project's tests."""
    import pydoc
    import textwrap

    names = ("json", "pathlib.Path", "itertools", "asyncio.Queue", "re", "decimal.Decimal", "unicodedata", "email")
    return [textwrap.dedent(pydoc.render_doc(name, renderer=pydoc.plaintext))[:3000] for name in names]


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_text_is_cut_as_in_training(kind: str, tmp_path: Path, conversations: list[str]) -> None:
    tokenizer = TOKENIZERS[kind]()
    folder = save_tiny_model(tmp_path, "llama", tokenizer=tokenizer, vocab_size=1100)
    run = LlamaCpp(written(folder, tokenizer=tokenizer))
    for text in conversations:
        # The template of these chats writes no BOS in front, so none is put there: not in front of bare text either.
        assert run.cut(text, add_special=True) == tokenizer(text, add_special_tokens=False).input_ids
        chat = [{"role": "user", "content": text}, {"role": "assistant", "content": "Übung, 東京: don't 12345 🙂"}]
        rendered = tokenizer.apply_chat_template(chat, tokenize=False)
        expected = tokenizer(rendered, add_special_tokens=False).input_ids
        assert run.cut(rendered, add_special=False) == expected


@pytest.mark.parametrize(
    ("name", "adds_bos"), [("chatml", True), ("llama3", True), ("llama3", False), ("qwen3", False)]
)
def test_a_chat_in_ollama_has_the_ids_of_training(name: str, adds_bos: bool, tmp_path: Path) -> None:
    """What the Modelfile's template writes goes to llama.cpp, which puts a BOS in front if the file says so."""
    tokenizer = copy.deepcopy(tiny_tokenizer(name))
    if adds_bos:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", None, [bos])
    folder = save_tiny_model(tmp_path, "llama", tokenizer=tokenizer, vocab_size=ROWS)
    file = written(folder, tokenizer=tokenizer)
    run, is_put = LlamaCpp(file), bool(GGUFReader(file).fields["tokenizer.ggml.add_bos_token"].contents())
    pieces = learn(tokenizer, {}, adds_bos=is_put)
    for turns, system in ((1, None), (3, "Be brief."), (5, None)):
        messages = conversation(turns, system)
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert run.cut(pieces.write(messages), add_special=True) == expected


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}"])
def test_bare_text_has_the_bos_of_its_tokenizer(template: str | None) -> None:
    tokenizer = TOKENIZERS["llama-bpe"]()
    assert to_put_around(tokenizer) == (False, False)
    tokenizer.chat_template = template
    assert to_put_around(tokenizer) == (True, False)


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "another program": (lambda told: told["pre_tokenizer"].update(type="BertPreTokenizer"), "splits text by Bert"),
    "a prefix space": (lambda told: told["pre_tokenizer"].update(add_prefix_space=True), "with a prefix space"),
    "lower case": (lambda told: told.update(normalizer={"type": "Lowercase"}), "changes text before it is split"),
    "no merges": (lambda told: told["model"].update(merges=[]), "has no merges"),
    "whole words": (lambda told: told["model"].update(ignore_merges=True), "with ignore_merges, for which llama.cpp"),
    "swallows spaces": (lambda told: told["added_tokens"][0].update(rstrip=True), "llama.cpp does for Phi-3 alone"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused_before_anything_is_written(what: str, tmp_path: Path) -> None:
    change, words = REFUSED[what]
    folder = save_tiny_model(tmp_path / "model", "llama", tokenizer=tiny_tokenizer(), vocab_size=ROWS)
    told = json.loads((folder / "tokenizer.json").read_text())
    change(told)
    (folder / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ArtefactError, match=rf"the tokenizer .*{words}.* -> no GGUF is written"):
        export.export_model(make_config(folder, output={"parity": False}), folder, tmp_path / "gguf", None)
    assert not (tmp_path / "gguf").exists()


def test_merges_that_scores_cannot_say_are_refused(tmp_path: Path) -> None:
    tokenizer = sentencepiece_tokenizer()
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["model"]["merges"] = told["model"]["merges"][1::2]
    folder = save_tiny_model(tmp_path / "model", "llama", tokenizer=tokenizer, vocab_size=1100)
    (folder / "tokenizer.json").write_text(json.dumps(told))
    with pytest.raises(ArtefactError, match="merges in an order that SentencePiece's scores cannot express"):
        export.export_model(make_config(folder, output={"parity": False}), folder, tmp_path / "gguf", None)


@pytest.mark.parametrize(
    ("architecture", "size", "words"),
    [
        ("gpt2", {}, "is a gpt2, which is not among those that whet writes as GGUF"),
        ("olmoe", {}, r"is a olmoe.* -> these are: llama, mistral, .*; for others llama.cpp has convert_hf_to_gguf.py"),
        ("llama", {"hidden_act": "gelu"}, "has the activation gelu, and llama.cpp computes llama with silu"),
        ("qwen3", {"rope_parameters": LLAMA3}, "has positions of the kind 'llama3', which llama.cpp does not know for"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob: false, and llama.cpp divides"),
        ("gemma3", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar: 99, and llama.cpp computes with 8"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    architecture: str, size: dict[str, Any], words: str, tmp_path: Path
) -> None:
    folder = save_tiny_model(tmp_path / "model", architecture, tokenizer=tiny_tokenizer(), vocab_size=ROWS, **size)
    with pytest.raises(ArtefactError, match=words):
        export.export_model(make_config(folder, output={"parity": False}), folder, tmp_path / "gguf", None)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# The command's own work: proof, publication, mistakes. ---------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcess]:
    with FreshProcess() as process:
        yield process


@pytest.fixture
def warm(fresh: FreshProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proof by one process: its start costs seconds."""

    @contextmanager
    def shared() -> Iterator[FreshProcess]:
        yield fresh

    monkeypatch.setattr(export, "FreshProcess", shared)


@pytest.mark.parametrize("reader", ["llama.cpp", "transformers"])
def test_an_export_is_proved_in_a_fresh_process(
    reader: str, tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whet.artefacts.gguf.llama_cpp.is_installed", lambda: reader == "llama.cpp")
    _, folder = made("llama", tmp_path / "model")
    result = export.export_model(make_config(folder), folder, tmp_path / "gguf", "f32")
    record = json.loads((tmp_path / "gguf" / "parity.json").read_text())
    assert result.proved_by == reader
    assert record["outcome"] == "within the limit"
    assert record["kl"]["max"] <= 1e-4
    assert record["artefact"]["files"]["model.gguf"]["bytes"] == result.bytes


def test_a_file_of_another_model_is_kept_under_a_name_that_says_so(
    tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = made("llama", tmp_path / "model")
    monkeypatch.setattr("whet.artefacts.gguf.tensors.paired", lambda numbers, heads: numbers)
    with pytest.raises(ParityError, match="the GGUF is not the model that was trained: KL"):
        export.export_model(make_config(folder), folder, tmp_path / "gguf", None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gguf.FAILED-PARITY", "model"]


def test_a_tokenizer_that_cuts_otherwise_is_found_by_the_proof(
    tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder = made("llama", tmp_path / "model")
    monkeypatch.setattr("whet.artefacts.gguf.vocabulary._pre_tokenizer", lambda told: "qwen2")
    with pytest.raises(ParityError, match=r"a fresh process cannot load it: .*llama\.cpp cuts .* into other tokens"):
        export.export_model(make_config(folder), folder, tmp_path / "gguf", None)


def test_without_a_reader_nothing_is_claimed(tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whet.artefacts.gguf.llama_cpp.is_installed", lambda: False)
    _, folder = made("gemma3", tmp_path / "model")
    result = export.export_model(make_config(folder), folder, tmp_path / "gguf", None)
    assert result.proved_by == "nobody: transformers does not read all numbers of a GGUF of gemma3"
    record = json.loads((tmp_path / "gguf" / "parity.json").read_text())
    assert record["outcome"].startswith("not proved: transformers does not read all numbers of a GGUF of gemma3; pip")


@pytest.mark.parametrize("named", [False, True], ids=["a base made for a while", "the base given"])
def test_an_adapter_is_proved_beside_its_base(named: bool, tmp_path: Path, warm: None) -> None:
    _, folder, config = adapted("rslora", tmp_path)
    config = make_config(config.model.base_model)
    base = str(written(Path(config.model.base_model))) if named else None
    result = export.export_adapter(config, folder, tmp_path / "gguf", None, base)
    record = json.loads((tmp_path / "gguf" / "parity.json").read_text())
    assert (result.proved_by, record["outcome"]) == ("llama.cpp", "within the limit")
    assert record["kl"]["max"] <= 1e-4
    assert record["limit"] == {"mean_kl": 1e-4, "max_kl": 1e-4}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "gguf"]


def test_an_adapter_that_is_another_in_llama_cpp_is_kept_under_a_name_that_says_so(
    tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "prove_deltas", lambda *args: 0.0)
    monkeypatch.setattr("whet.artefacts.gguf.adapter_file.paired", lambda numbers, heads: numbers)
    _, folder, config = adapted("lora", tmp_path)
    with pytest.raises(ParityError, match="the GGUF adapter is not the model that was trained: KL"):
        export.export_adapter(make_config(config.model.base_model), folder, tmp_path / "gguf", None, None)
    assert (tmp_path / "gguf.FAILED-PARITY" / "adapter.gguf").is_file()


@pytest.mark.parametrize(
    ("lacks", "why"),
    [
        ("llama.cpp", "llama.cpp is not installed; pip install xllamacpp, and run this again"),
        ("room", r"as GGUF needs 0\.0 GiB beside the adapter, .* free; whet export-gguf my\.yaml --model-dir .*base"),
        ("memory", "to run '.*base' takes 0.0 GiB of memory, and 0.0 are free; export it again on a machine that"),
        ("safetensors", "has no safetensors to make a GGUF of; whet export-gguf my.yaml --model-dir"),
    ],
)
def test_an_adapter_that_cannot_be_run_has_a_record_that_says_why(
    lacks: str, why: str, tmp_path: Path, warm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, folder, config = adapted("lora", tmp_path)
    config = make_config(config.model.base_model)
    if lacks == "llama.cpp":
        monkeypatch.setattr("whet.artefacts.gguf.llama_cpp.is_installed", lambda: False)
    elif lacks == "room":
        needed = (folder / "adapter_model.safetensors").stat().st_size
        usage = shutil.disk_usage(tmp_path)._replace(free=2 * needed)
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    elif lacks == "memory":
        least = (Path(config.model.base_model) / "model.safetensors").stat().st_size  # and more: it is not alone
        monkeypatch.setattr("whet.artefacts.gguf.adapter_proof.available_memory_bytes", lambda: least)
        monkeypatch.setattr(adapter_proof, "write_model", lambda *args: pytest.fail("the base was written"))
    else:
        (Path(config.model.base_model) / "model.safetensors").unlink()
    result = export.export_adapter(config, folder, tmp_path / "gguf", None, None)
    record = json.loads((tmp_path / "gguf" / "parity.json").read_text())
    assert result.proved_by == "its product, layer by layer"
    assert re.search(f"^not proved: every product was read back .*not run together: .*{why}", record["outcome"])
    assert "adapter.gguf" in record["artefact"]["files"]


def test_a_base_that_is_not_the_adapters_is_refused(tmp_path: Path) -> None:
    _, folder, config = adapted("lora", tmp_path)
    _, other = made("qwen3", tmp_path / "other")
    _, narrow = made("llama tied, with biases, llama3 positions", tmp_path / "narrow")
    file = written(narrow)
    for given, words in (
        (str(written(other)), "is a qwen3, and the adapter's base a llama -> give the base that the adapter was train"),
        (__file__, "is no GGUF of a model"),
        (str(tmp_path / "gone.gguf"), "there is no file"),
    ):
        with pytest.raises(ArtefactError, match=words):
            export.export_adapter(config, folder, tmp_path / "gguf", None, given)
    assert not (tmp_path / "gguf").exists()
    export.export_adapter(config, folder, tmp_path / "gguf", None, str(file))  # of the same form


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path) -> None:
    _, folder = made("llama", tmp_path / "model")
    config = make_config(folder, output={"parity": False})
    for outtype in ("f32", "q8_0"):
        export.export_model(config, folder, tmp_path / "gguf", outtype)
    with pytest.raises(ArtefactError, match="is not empty, and what it holds is no GGUF export of whet"):
        export.export_model(config, folder, folder, None)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ArtefactError, match=r"has no tokenizer\.json, and a GGUF holds the tokenizer"):
        export.export_model(config, folder, tmp_path / "gguf", None)
    with pytest.raises(ArtefactError, match="there is no folder 'nowhere' -> give one that whet wrote"):
        export.export_model(config, Path("nowhere"), tmp_path / "gguf", None)
    with (
        pytest.raises(ArtefactError, match="is no model in safetensors: there is no such folder"),
        opened(tmp_path / "x"),
    ):
        pass


def test_a_disk_without_room_is_found_before_the_first_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = made("llama", tmp_path / "model")
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(ArtefactError, match=r"the file needs 0\.2 MiB, and .* has 0\.0 free -> make room, or choose"):
        export.export_model(make_config(folder, output={"parity": False}), folder, tmp_path / "gguf", "f32")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_numbers_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    model, folder = made("llama", tmp_path / "model")
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = 7e4
    model.save_pretrained(folder)
    with pytest.raises(ArtefactError, match=r"blk\.1\.ffn_up\.weight has numbers that float16 cannot hold .* bf16"):
        export.export_model(make_config(folder, output={"parity": False}), folder, tmp_path / "gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(ModelError, match=r"needs the package gguf.* -> pip install gguf$"):
        export.export_model(make_config(tmp_path), tmp_path, tmp_path / "gguf", None)


def test_an_adapter_is_merged_first_and_not_again(tmp_path: Path) -> None:
    """Unless it was trained since, or what was merged has no record: then it was killed in between."""
    adapter = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    config = make_config(tmp_path / "base", adapter=adapter, output={"output_dir": str(tmp_path)})
    resolved = resolve(config, Hardware("cpu"))
    (tmp_path / "merged").mkdir()
    for step, name in enumerate(("adapter_config.json", "adapter_model.safetensors", "merged/config.json")):
        assert export_stages.merged_model_of(resolved) is None
        (tmp_path / name).write_text("{}")
        os.utime(tmp_path / name, (step, step))
    for outcome, found in (("running", None), ("finished", tmp_path / "merged")):
        (tmp_path / "merged" / "run.json").write_text(json.dumps({"outcome": outcome}))
        assert export_stages.merged_model_of(resolved) == found
    os.utime(tmp_path / "adapter_model.safetensors", (9, 9))
    assert export_stages.merged_model_of(resolved) is None


@pytest.mark.parametrize("wrong", ["tokenizer", "architecture", "tensor", "place"])
def test_what_gguf_cannot_hold_is_refused_before_an_adapter_is_merged_for_it(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from whet import exports

    _, base = made("llama", tmp_path / "base")
    output = tmp_path / "out"
    save_tiny_model(output, "llama")  # as if trained: its tokenizer is refused, as it has no merges
    if wrong != "tokenizer":
        tiny_tokenizer().save_pretrained(output)
    (output / "adapter_config.json").write_text("{}")
    (output / "adapter_model.safetensors").unlink(missing_ok=True)
    if wrong == "architecture":
        save_tiny_model(base, "olmoe")
    elif wrong == "tensor":
        told = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps({**told, "model_type": "qwen3"}))
        os.rename(base / "model.safetensors", base / "other.safetensors")
        save_file({"model.embed_tokens.weight": torch.zeros(ROWS, 32), "model.strange": torch.zeros(2)},
                  base / "model.safetensors")  # fmt: skip
    elif wrong == "place":
        (output / "gguf").mkdir()
        (output / "gguf" / "mine.txt").write_text("mine")
    words = {
        "tokenizer": "the tokenizer has no merges",
        "architecture": "is a olmoe, which is not among",
        "tensor": "has a tensor model.strange, for which GGUF's qwen3 has no place",
        "place": "what it holds is no GGUF export",
    }
    adapter = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
    config = make_config(base, adapter=adapter, output={"output_dir": str(output)})
    monkeypatch.setattr(exports, "merge_run", lambda *args: pytest.fail("it was merged"))
    with pytest.raises(ArtefactError, match=words[wrong]):
        exports.export_gguf(config)


def test_a_base_of_pickles_is_no_reason_against_an_export(tmp_path: Path) -> None:
    """It is merged in memory, and what comes of that is written in safetensors."""
    model, base = made("llama", tmp_path / "base")
    (base / "model.safetensors").unlink()
    torch.save(model.state_dict(), base / "pytorch_model.bin")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    foresee(make_config(base), tmp_path / "adapter", tmp_path / "gguf")


# Adapters. -----------------------------------------------------------------------------------------------------------

ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("llama", {}),
    "rslora": ("llama", {"use_rslora": True}),
    "patterns": ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 31}}),
    "head": ("llama", {"target_modules": ["k_proj", "lm_head"]}),
    "qwen3": ("qwen3", {}),
    "phi3": ("phi3", {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj"]}),
}


def adapted(kind: str, folder: Path) -> tuple[PeftModel, Path, Any]:
    architecture, keys = ADAPTERS[kind]
    base, base_folder = made(architecture, folder / "base")
    settings = {"target_modules": ["q_proj", "k_proj", "v_proj", "down_proj"], "r": 4, "lora_alpha": 8, **keys}
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.data.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    model.save_pretrained(folder / "adapter", save_embedding_layers=False)
    tiny_tokenizer().save_pretrained(folder / "adapter")
    return model.eval(), folder / "adapter", make_config(base_folder, output={"parity": False})


@pytest.mark.parametrize("kind", ADAPTERS)
def test_base_and_adapter_in_llama_cpp_are_base_and_adapter_in_peft(kind: str, tmp_path: Path) -> None:
    model, folder, config = adapted(kind, tmp_path)
    export.export_adapter(config, folder, tmp_path / "gguf", None, None)
    base = written(Path(config.model.base_model))
    with model.disable_adapter():
        assert max(kl(model, LlamaCpp(base).distributions(IDS))) <= 1e-4
    both = LlamaCpp(base, str(tmp_path / "gguf" / "adapter.gguf")).distributions(IDS)
    assert max(kl(model, both)) <= 1e-4
    with model.disable_adapter():
        assert max(kl(model, both)) > 1e-3, "the adapter changes nothing"


def test_a_product_that_is_another_is_found(tmp_path: Path) -> None:
    from contextlib import ExitStack
    from dataclasses import replace

    _, folder, config = adapted("lora", tmp_path)
    base = AutoModelForCausalLM.from_pretrained(config.model.base_model).config
    with ExitStack() as stack:
        adapter = look_at_adapter(AdapterFiles.open(folder, stack), base, config)
        wrong = replace(adapter, pairs=tuple(replace(pair, heads=None) for pair in adapter.pairs))
        write_adapter(tmp_path / "a.gguf", wrong, "tiny", "f32")
        with pytest.raises(ParityError, match=r"the adapter read back from a\.gguf is another"):
            prove_deltas(tmp_path / "a.gguf", adapter, base, "f32", config)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"use_dora": True}, r"magnitudes beside its products \(DoRA\)"),
        ({"modules_to_save": ["lm_head"]}, r"a tensor that is no pair of thin matrices \(lm_head\.weight\)"),
        ({"bias": "lora_only"}, "biases"),
    ],
)
def test_an_adapter_that_llama_cpp_cannot_apply_is_refused(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    base, base_folder = made("llama", tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **keys))
    model.save_pretrained(tmp_path / "adapter")
    tiny_tokenizer().save_pretrained(tmp_path / "adapter")
    with pytest.raises(ArtefactError, match=rf"has {words}.* -> write the merged model: whet export-gguf without"):
        export.export_adapter(make_config(base_folder), tmp_path / "adapter", tmp_path / "gguf", None, None)
    assert not (tmp_path / "gguf").exists()
