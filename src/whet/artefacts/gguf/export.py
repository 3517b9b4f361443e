"""``whet export-gguf``: a model (or an adapter) as GGUF, with an Ollama Modelfile, proved before it is published."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedTokenizerBase

from whet.artefacts.fresh import CannotLoad, CannotTell, FreshProcess, Source
from whet.artefacts.gguf import llama_cpp
from whet.artefacts.gguf.adapter_file import AdapterFiles, base_config, look_at_adapter, prove_deltas, write_adapter
from whet.artefacts.gguf.adapter_proof import longest_prompt, look_at_base, prove_beside
from whet.artefacts.gguf.model_file import Writable, look_at, write_model
from whet.artefacts.gguf.modelfile import write_modelfile
from whet.artefacts.gguf.tensors import opened
from whet.artefacts.gguf.vocabulary import puts_around
from whet.artefacts.gguf.writing import require_gguf
from whet.artefacts.parity import Parity, fresh_reference, limit_for, not_proved, prove, tell, workspace
from whet.artefacts.prompts import CONVERSATIONS, Prompts, encode_prompts
from whet.artefacts.publish import check_replaceable, published
from whet.config import Config
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.model.base_check import check_base
from whet.model.saved import saved_generation_config, saved_tokenizer

MARKER = "whet_gguf.json"
"""Written into each folder made here; only a folder that has it may be replaced."""

MODEL_FILE, ADAPTER_FILE = "model.gguf", "adapter.gguf"

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}


@dataclass(frozen=True)
class Exported:
    """A GGUF file that was written.

    Attributes:
        folder: where it is.
        kind: "model" or "adapter".
        source: the folder it was made of.
        outtype: of the weights.
        bytes: of the file.
        proved_by: "llama.cpp", "transformers", or why by nobody.
        template: whether the Modelfile has the training template, or why not.
    """

    folder: str
    kind: str
    source: str
    outtype: str
    bytes: int
    proved_by: str
    template: str


def export_model(config: Config, model_dir: Path, output: Path, outtype: str | None) -> Exported:
    """Write the model in ``model_dir`` to ``output/model.gguf``, with a Modelfile beside it.

    Args:
        outtype: one of `writing.OUTTYPES`; bf16 for weights stored in bfloat16 (nothing is lost) and f16 for others, if
            not given.

    Raises:
        ModelError: the package gguf is not installed.
        ArtefactError: GGUF has no place for this model or its tokenizer (nothing is written then), ``output`` holds
            something else or cannot be written.
        ParityError: what is read back is another model; it is kept under a name that says so.
    """
    require_gguf()
    check_replaceable(output, MARKER, "GGUF export")
    tokenizer = _tokenizer(model_dir, config)
    with ExitStack() as stack:
        files = stack.enter_context(opened(model_dir))
        model = look_at(model_dir, files, tokenizer, gguf_name(config), config.model.trust_remote_code)
        fresh = stack.enter_context(FreshProcess()) if _proves(config) else None
        partial = stack.enter_context(published(output, "GGUF export"))
        outtype = outtype or files.outtype
        write_model(partial / MODEL_FILE, model, outtype)
        bos = model.vocabulary.adds_bos
        template = write_modelfile(
            partial / "Modelfile", MODEL_FILE, None, tokenizer, _generation(model_dir), config, adds_bos=bos
        )
        proved_by = "nobody: parity: false"
        if fresh is not None:
            parity, proved_by = _prove(fresh, partial, model_dir, model, tokenizer, outtype, config)
        size = (partial / MODEL_FILE).stat().st_size
        result = Exported(str(output), "model", str(model_dir), outtype, size, proved_by, template)
        _write_marker(partial, result)
    _tell(result, MODEL_FILE)
    if fresh is not None:
        tell(f"GGUF ({proved_by})", output, parity)
    return result


def export_adapter(
    config: Config, adapter_dir: Path, output: Path, outtype: str | None, base_gguf: str | None
) -> Exported:
    """Write the adapter alone to ``output/adapter.gguf``, for llama.cpp to put beside a GGUF of its base.

    What is read back from the file is multiplied out and held against PEFT's own product, layer by layer. Where
    llama.cpp is installed it runs base and adapter too: ``base_gguf``, if that is a file, else a GGUF of the base made
    for a while.

    Raises:
        As `export_model`; an adapter that llama.cpp cannot apply (DoRA, whole modules, new tokens), and a
        ``base_gguf`` that it does not belong to, is an ArtefactError.
    """
    require_gguf()
    check_replaceable(output, MARKER, "GGUF export")
    tokenizer = _tokenizer(adapter_dir, config)
    base = base_config(config)
    check_base(adapter_dir, config)
    with ExitStack() as stack:
        adapter = look_at_adapter(AdapterFiles.open(adapter_dir, stack), base, config)
        base_file = look_at_base(base_gguf, adapter)
        fresh = stack.enter_context(FreshProcess()) if _proves(config) and llama_cpp.is_installed() else None
        partial = stack.enter_context(published(output, "GGUF export"))
        outtype = outtype or "f32"  # it is small
        write_adapter(partial / ADAPTER_FILE, adapter, gguf_name(config), outtype)
        prove_deltas(partial / ADAPTER_FILE, adapter, base, outtype, config)
        place, bos = base_gguf or MODEL_FILE, puts_around(tokenizer)[0]
        if base_file is not None:
            place, bos = str(base_file.path.resolve()), base_file.adds_bos  # Ollama looks from where the Modelfile is
        template = write_modelfile(
            partial / "Modelfile", place, ADAPTER_FILE, tokenizer, _generation(adapter_dir), config, adds_bos=bos
        )
        proved_by, parity = "its product, layer by layer", None
        if _proves(config):
            parity = prove_beside(fresh, partial / ADAPTER_FILE, adapter, base_file, tokenizer, outtype, config)
            proved_by = proved_by if parity.mean_kl is None else "llama.cpp"
        size = (partial / ADAPTER_FILE).stat().st_size
        result = Exported(str(output), "adapter", str(adapter_dir), outtype, size, proved_by, template)
        _write_marker(partial, result)
    _tell(result, ADAPTER_FILE)
    if parity is not None:
        tell(f"GGUF adapter ({proved_by})", output, parity)
    if base_gguf is None:
        say(f"gguf: the Modelfile expects the base as {MODEL_FILE} beside it: whet export-gguf with --model-dir "
            f"{config.model.base_model}, or name another by --base-gguf")  # fmt: skip
    return result


def _proves(config: Config) -> bool:
    return config.output.parity


def gguf_name(config: Config) -> str:
    """The model's name in the file. Not a path: it is read by others."""
    return config.output.hub_model_id or Path(config.model.base_model.rstrip("/")).name


def _tokenizer(folder: Path, config: Config) -> PreTrainedTokenizerBase:
    if not folder.is_dir():
        raise ArtefactError(
            Problem("", f"there is no folder '{folder}'", "give one that whet wrote: --model-dir, --lora-model-dir")
        )
    if not (folder / "tokenizer.json").is_file():
        raise ArtefactError(
            Problem("", f"'{folder}' has no tokenizer.json, and a GGUF holds the tokenizer",
                    "copy the tokenizer's files there, or give a folder that whet wrote: --model-dir")
        )  # fmt: skip
    return saved_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)


def _generation(folder: Path) -> GenerationConfig:
    return saved_generation_config(folder) or GenerationConfig()


def _prove(
    fresh: FreshProcess,
    partial: Path,
    model_dir: Path,
    model: Writable,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    config: Config,
) -> tuple[Parity, str]:
    """Both models, each in a process of its own, on the same prompts."""
    by_llama_cpp = llama_cpp.is_installed()
    prompts = _prompts(tokenizer, model, by_llama_cpp, config)
    live = Source(folder=str(model_dir), trust_remote_code=config.model.trust_remote_code)
    source = Source(
        folder=str(partial),
        gguf_file=MODEL_FILE,
        llama_cpp=by_llama_cpp,
        dtype="float32",
        options={"texts": _texts(tokenizer, config)} if by_llama_cpp else {},
    )
    with workspace(partial.parent) as space:
        try:
            reference = fresh_reference(fresh, live, prompts, space, "cpu")
        except CannotTell as error:
            reason = f"the model in '{model_dir}' could not be asked: {error}"
            return not_proved("GGUF", partial, reason), f"nobody: {reason}"
        except CannotLoad as error:
            raise ArtefactError(
                Problem("", f"the model in '{model_dir}' cannot be loaded to be compared with ({error})",
                        "nothing was written; write parity: false to export without a proof")
            ) from error  # fmt: skip
        if not by_llama_cpp and (why := _not_read_by_transformers(model)):
            cure = "pip install xllamacpp proves it by llama.cpp itself"
            return not_proved("GGUF", partial, f"{why}; {cure}"), f"nobody: {why}"
        dtypes = (str(reference.facts["dtype"]), _DTYPES[outtype])
        parity = prove(fresh, "GGUF", partial, source, reference, limit_for(*dtypes))
    return parity, "llama.cpp" if by_llama_cpp else "transformers"


def _prompts(tokenizer: PreTrainedTokenizerBase, model: Writable, by_llama_cpp: bool, config: Config) -> Prompts:
    rows, longest = len(model.vocabulary.tokens), model.context_length
    longest = min(longest, longest_prompt(rows)) if by_llama_cpp else longest
    return encode_prompts(tokenizer, config.template.chat_template_kwargs, longest, rows)


def _texts(tokenizer: PreTrainedTokenizerBase, config: Config) -> list[tuple[str, list[int]]]:
    """What llama.cpp has to cut as the tokenizer does: chats as the template writes them, or plain texts."""
    texts = ["\n".join(turns) for turns in CONVERSATIONS]
    if tokenizer.chat_template:
        kwargs: Mapping[str, Any] = config.template.chat_template_kwargs or {}
        chats = [[{"role": "user", "content": turns[0]}, {"role": "assistant", "content": turns[1]}]
                 for turns in CONVERSATIONS]  # fmt: skip
        texts = [str(tokenizer.apply_chat_template(chat, tokenize=False, **kwargs)) for chat in chats]
    return [(text, list(tokenizer(text, add_special_tokens=False).input_ids)) for text in texts]


def _not_read_by_transformers(model: Writable) -> str | None:
    """Why transformers' reader of GGUF would make another model of the file: it knows fewer numbers than the format."""
    kind = (model.config.rope_parameters or {}).get("rope_type", "default")
    if model.row.name not in ("llama", "qwen2", "qwen3", "phi3"):
        return f"transformers does not read all numbers of a GGUF of {model.row.name}"
    if kind != "default":
        return f"transformers does not read positions of the kind '{kind}' from a GGUF"
    if model.row.experts and model.row.name == "llama":
        return "transformers does not read Mixtral's experts from a GGUF"
    if model.row.name == "qwen3" and model.config.head_dim != 128:
        return "transformers takes the heads of a GGUF of qwen3 for 128 wide"
    return None


def _write_marker(folder: Path, result: Exported) -> None:
    versions = {name: version(name) for name in ("whet", "gguf", "transformers")}
    (folder / MARKER).write_text(json.dumps(asdict(result) | versions, indent=2) + "\n", encoding="utf-8")


def _tell(result: Exported, file: str) -> None:
    size = f"{result.bytes / 2**20:,.1f} MiB"
    say(f"gguf: '{result.folder}/{file}', {result.outtype}, {size}; Modelfile {result.template}")
