"""Base models, tokenizers, adapters and sharded checkpoints: by whet's own functions, or by the whole command."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fuzzing.target import Target, judged

YAML = """\
base_model: model
datasets: [{path: rows.jsonl, type: chat_template}]
sequence_len: 128
micro_batch_size: 1
max_steps: 1
learning_rate: 0.001
parity: false
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_modules: [q_proj, v_proj]
output_dir: out
"""
SIZE = {"num_hidden_layers": 1, "vocab_size": 448}
"""Of the model, whose tokenizer is one that GGUF takes."""


@functools.cache
def model_folder() -> Path:
    """A tiny model, an adapter of it and its tokenizer, made once a process."""
    from peft import LoraConfig, get_peft_model
    from tests.models import save_tiny_model, tiny_model
    from tests.tiny_tokenizers import tiny_tokenizer

    folder = Path(tempfile.mkdtemp(prefix="whet-fuzz-", dir=_memory()))
    save_tiny_model(folder / "model", tokenizer=tiny_tokenizer(), **SIZE)
    adapted = get_peft_model(tiny_model(**SIZE), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    adapted.save_pretrained(folder / "adapter")
    tiny_tokenizer().save_pretrained(folder / "adapter")
    (folder / "rows.jsonl").write_text(json.dumps({"messages": [{"role": "user", "content": "a"}]}) + "\n")
    (folder / "my.yaml").write_text(YAML)
    return folder


def _memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _own(folder: Path, part: str) -> Path:
    """The part of `model_folder` as a copy that may be spoilt, in the target's folder."""
    place = folder / part
    if not place.exists():
        shutil.copytree(model_folder() / part, place)
    for name in ("my.yaml", "rows.jsonl"):
        if not (folder / name).exists():
            shutil.copy(model_folder() / name, folder / name)
    return place


def _config(folder: Path, **changes: Any) -> Any:
    from whet.config import load_config

    words = [word for key, value in changes.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return load_config(folder / "my.yaml", [*words, "--output-dir", str(folder / "out")], environ={})


def _resolved(config: Any) -> Any:
    from whet.config.resolve import resolve
    from whet.distributed.hardware import probe

    return resolve(config, probe())


def part_of_base(name: str, read: Callable[[Any], object]) -> Callable[[Path, bytes], None]:
    """One file of a base model is a stranger's."""

    def target(folder: Path, data: bytes) -> None:
        model = _own(folder, "model")
        for other in ("model.safetensors.index.json", "pytorch_model.bin"):
            (model / other).unlink(missing_ok=True)
        (model / name).write_bytes(data)
        if name == "model.safetensors.index.json":
            (model / "model.safetensors").unlink(missing_ok=True)
        with judged():
            read(_config(folder, base_model=model))

    return target


def _load_config_and_shape(config: Any) -> None:
    from whet.model.load import checked_architecture, empty_model, load_model_config

    model_config = load_model_config(config)
    checked_architecture(config, model_config)
    empty_model(config, model_config)


def _load_tokenizer(config: Any) -> None:
    from whet.model.tokenizer import highest_id, load_tokenizer

    tokenizer = load_tokenizer(config)
    tokenizer("a <|im_start|> b")
    highest_id(tokenizer)


def _load_weights(config: Any) -> None:
    from whet.model.load import load_model
    from whet.model.tokenizer import load_tokenizer

    load_model(config, _resolved(config), load_tokenizer(config))


def _check_weights(config: Any) -> None:
    from whet.model.identity import identify
    from whet.model.sizes import refuse_damaged_weights
    from whet.model.weight_files import weight_files

    refuse_damaged_weights(config)
    weight_files(Path(config.model.base_model), pickled=True)
    identify(config, complete=False)


def _describe_with_card(config: Any) -> None:
    from whet.artefacts.card import write_card

    folder = Path(config.output.output_dir)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_card(folder, {"kind": "train", "written": {}, "values": {}}, Path(config.model.base_model))


def part_of_adapter(name: str) -> Callable[[Path, bytes], None]:
    """One file of an adapter is a stranger's: read before training on, and before merging."""

    def target(folder: Path, data: bytes) -> None:
        from whet.model.adapters import adapt

        adapter = _own(folder, "adapter")
        model = _own(folder, "model")
        (adapter / name).write_bytes(data)
        config = _config(folder, base_model=model, lora_model_dir=adapter)
        with judged():
            adapt(_fresh_model(), config, _resolved(config))

    return target


def _fresh_model() -> Any:
    import copy

    return copy.deepcopy(_model())


@functools.cache
def _model() -> Any:
    from tests.models import tiny_model

    return tiny_model(**SIZE)


FAULT = "This is a fault in whet"


def command(name: str, part: str, *words: str) -> Callable[[Path, bytes], None]:
    """The whole command, with one file a stranger's; whatever it says, it is no fault of whet's."""

    def target(folder: Path, data: bytes) -> None:
        from whet.cli.main import run_command

        model, adapter = _own(folder, "model"), _own(folder, "adapter")
        path = folder / part
        path.write_bytes(data)
        given = [word.format(folder=folder, model=model, adapter=adapter) for word in words]
        told = io.StringIO()
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
            code = run_command([name, str(folder / "my.yaml"), "--base-model", str(model), *given])
        assert FAULT not in told.getvalue(), told.getvalue()
        is_right = (model_folder() / part).is_file() and data == (model_folder() / part).read_bytes()
        assert code in ((0,) if is_right else (0, 2)), told.getvalue()
        assert "\x1b" not in told.getvalue()
        for output in ("merged", "out", "gguf"):
            shutil.rmtree(folder / output, ignore_errors=True)

    return target


def _file(part: str) -> Callable[[], Mapping[str, bytes]]:
    return lambda: {"right": (model_folder() / part).read_bytes()}


def _index() -> Mapping[str, bytes]:
    from safetensors import safe_open

    with safe_open(model_folder() / "model" / "model.safetensors", framework="pt") as file:
        names = list(file.keys())
    whole = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    return {"right": json.dumps({"metadata": {"total_size": 9}, "weight_map": whole}).encode()}


def dcp(folder: Path, data: bytes) -> None:
    """The table of contents of a sharded checkpoint, which is a pickle."""
    from whet.artefacts.dcp import open_checkpoint

    place = folder / "dcp"
    if not place.exists():
        place.mkdir()
        (place / "__0_0.distcp").write_bytes(_dcp_files()["__0_0.distcp"])
    (place / ".metadata").write_bytes(data)
    with judged():
        opened = open_checkpoint(place)
        opened.read(list(opened.tensors.values())[:3])


@functools.cache
def _dcp_files() -> Mapping[str, bytes]:
    import warnings

    import torch
    from torch.distributed import checkpoint

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = {"model": {"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.bfloat16)}, "step": 3}
        checkpoint.save(state, checkpoint_id=folder, no_dist=True)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def _dcp_seeds() -> Mapping[str, bytes]:
    import pickle

    right = _dcp_files()[".metadata"]
    return {"right": right, "protocol-0": pickle.dumps(pickle.loads(right), protocol=0)}  # of our own making


GENERATION = b'{"eos_token_id": [1, 4], "temperature": 0.5, "do_sample": true, "transformers_version": "5.0"}'
CARD = b"---\nlicense: apache-2.0\nlanguage: [en, de]\ntags:\n- a\ndate: 2026-01-02\n---\n# Model\n"

TARGETS: Mapping[str, Target] = {
    "model-config": Target(
        part_of_base("config.json", _load_config_and_shape),
        _file("model/config.json"),
        "json",
        runs=2000,
        has_models=True,
    ),
    "tokenizer": Target(
        part_of_base("tokenizer.json", _load_tokenizer),
        _file("model/tokenizer.json"),
        "json",
        runs=2000,
        has_models=True,
    ),
    "tokenizer-config": Target(
        part_of_base("tokenizer_config.json", _load_tokenizer),
        _file("model/tokenizer_config.json"),
        "json",
        runs=2000,
        has_models=True,
    ),
    "weights": Target(
        part_of_base("model.safetensors", _load_weights),
        _file("model/model.safetensors"),
        "safetensors",
        runs=2000,
        has_models=True,
    ),
    "weights-header": Target(
        part_of_base("model.safetensors", _check_weights),
        _file("model/model.safetensors"),
        "safetensors",
        has_models=True,
    ),
    "weights-index": Target(
        part_of_base("model.safetensors.index.json", _load_weights), _index, "json", runs=2000, has_models=True
    ),
    "base-card": Target(
        part_of_base("README.md", _describe_with_card), lambda: {"right": CARD}, "yaml", runs=5000, has_models=True
    ),
    "adapter-config": Target(
        part_of_adapter("adapter_config.json"), _file("adapter/adapter_config.json"), "json", runs=2000, has_models=True
    ),
    "adapter-weights": Target(
        part_of_adapter("adapter_model.safetensors"),
        _file("adapter/adapter_model.safetensors"),
        "safetensors",
        runs=2000,
        has_models=True,
    ),
    "merge-adapter-config": Target(
        command(
            "merge-lora", "adapter/adapter_config.json", "--lora-model-dir", "{adapter}", "--output-dir", "{folder}/out"
        ),
        _file("adapter/adapter_config.json"),
        "json",
        runs=500,
        has_models=True,
    ),
    "merge-tokenizer-config": Target(
        command(
            "merge-lora",
            "adapter/tokenizer_config.json",
            "--lora-model-dir",
            "{adapter}",
            "--output-dir",
            "{folder}/out",
        ),
        _file("model/tokenizer_config.json"),
        "json",
        runs=500,
        has_models=True,
    ),
    "merge-generation-config": Target(
        command(
            "merge-lora",
            "adapter/generation_config.json",
            "--lora-model-dir",
            "{adapter}",
            "--output-dir",
            "{folder}/out",
        ),
        lambda: {"right": GENERATION},
        "json",
        runs=500,
        has_models=True,
    ),
    "chat-generation-config": Target(
        command("chat", "model/generation_config.json", "--untrained", "--prompt", "a", "--max-new-tokens", "1"),
        lambda: {"right": GENERATION},
        "json",
        runs=500,
        has_models=True,
    ),
    "gguf-config": Target(
        command("export-gguf", "model/config.json", "--model-dir", "{model}", "--gguf-dir", "{folder}/gguf"),
        _file("model/config.json"),
        "json",
        runs=500,
        has_models=True,
    ),
    "gguf-tokenizer": Target(
        command("export-gguf", "model/tokenizer.json", "--model-dir", "{model}", "--gguf-dir", "{folder}/gguf"),
        _file("model/tokenizer.json"),
        "json",
        runs=500,
        has_models=True,
    ),
    "gguf-adapter-config": Target(
        command(
            *("export-gguf", "adapter/adapter_config.json", "--adapter", "--lora-model-dir", "{adapter}"),
            *("--gguf-dir", "{folder}/gguf"),
        ),
        _file("adapter/adapter_config.json"),
        "json",
        runs=500,
        has_models=True,
    ),
    "dcp": Target(dcp, _dcp_seeds, "bytes", has_models=True, packages=()),
}
