"""A GGUF adapter, run by llama.cpp beside a GGUF of its base, against base and adapter in PEFT."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from whet.artefacts.base_files import find_shards
from whet.artefacts.fresh import CannotLoad, CannotTell, FreshProcess, Source
from whet.artefacts.fresh_script import ROOM
from whet.artefacts.gguf.adapter_file import WritableAdapter
from whet.artefacts.gguf.model_file import look_at, write_model
from whet.artefacts.gguf.tensors import opened
from whet.artefacts.gguf.writing import file_bytes
from whet.artefacts.parity import Parity, fresh_reference, limit_for, not_proved, prove, workspace
from whet.artefacts.prompts import MOST_TOKENS, encode_prompts
from whet.config import Config
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.distributed.hardware import available_memory_bytes
from whet.model.load import load_model_config
from whet.model.source import locate

_LARGE_VOCABULARY, _LONGEST_FOR_LARGE = 50_000, 24
"""Above so many tokens fewer of each prompt are compared: llama.cpp tells the probability of each token in JSON."""

_DTYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "q8_0": "q8_0"}

_SPARE = 1.1
"""Room left on the disk for others, as a share of what a base made for a while takes."""


@dataclass(frozen=True)
class BaseFile:
    """A GGUF that an adapter stands beside.

    Attributes:
        dtype: of its coarsest matrices, "" where they have fewer than 16 bits.
        rows: tokens of its vocabulary.
        longest: tokens of a text up to which llama.cpp computes what transformers does.
        adds_bos: it has BOS put in front of every text.
    """

    path: Path
    dtype: str
    rows: int
    longest: int
    adds_bos: bool


class _NoBase(Exception):
    """Why there is no base to run the adapter beside, and what to do."""


def longest_prompt(rows: int) -> int:
    """Tokens of each prompt that llama.cpp is asked about, with so many tokens of vocabulary."""
    return _LONGEST_FOR_LARGE if rows > _LARGE_VOCABULARY else MOST_TOKENS


def look_at_base(base_gguf: str | None, adapter: WritableAdapter) -> BaseFile | None:
    """The file that ``--base-gguf`` names; None where it names a model of Ollama's, or nothing.

    Raises:
        ArtefactError: there is no such file, it is no GGUF, or one of a model that the adapter is not for.
    """
    if base_gguf is None or not (base_gguf.endswith(".gguf") or Path(base_gguf).is_file()):
        return None
    if not Path(base_gguf).is_file():
        raise _refused(f"there is no file '{base_gguf}'", "give the base as GGUF, or leave it out")
    from gguf import GGMLQuantizationType as Type
    from gguf import GGUFReader, Keys

    try:
        file = GGUFReader(base_gguf)
        name = str(file.fields[Keys.General.ARCHITECTURE].contents())
        rows = len(file.fields[Keys.Tokenizer.LIST].contents())
        longest = int(file.fields[Keys.LLM.CONTEXT_LENGTH.format(arch=name)].contents())
    except (ValueError, KeyError, IndexError, TypeError, OSError, OverflowError) as error:
        found = f"'{base_gguf}' is no GGUF of a model ({type(error).__name__}: {error})"
        raise _refused(found, "give the base as GGUF, or leave it out") from error
    shapes = {each.name: tuple(int(size) for size in each.shape) for each in file.tensors}
    if name != adapter.row.name:
        found = f"'{base_gguf}' is a {name}, and the adapter's base a {adapter.row.name}"
        raise _refused(found, "give the base that the adapter was trained on")
    for pair in adapter.pairs:
        if shapes.get(pair.name) != (pair.columns, pair.rows):
            found = f"'{base_gguf}' has no {pair.name} of {pair.rows} x {pair.columns}, which the adapter changes"
            raise _refused(found, "give the base that the adapter was trained on")
    kinds = {each.tensor_type for each in file.tensors}
    dtype = "" if kinds - {Type.F32, Type.F16, Type.BF16} else "float32" if kinds == {Type.F32} else "bfloat16"
    says = file.fields.get(Keys.Tokenizer.ADD_BOS)
    return BaseFile(Path(base_gguf), dtype, rows, longest, bool(says.contents()) if says is not None else False)


def _refused(found: str, fix: str) -> ArtefactError:
    return ArtefactError(Problem("--base-gguf", found, fix))


def prove_beside(
    fresh: FreshProcess | None,
    file: Path,
    adapter: WritableAdapter,
    base: BaseFile | None,
    tokenizer: PreTrainedTokenizerBase,
    outtype: str,
    config: Config,
) -> Parity:
    """Base and adapter together, by PEFT and by llama.cpp; a record that says why not, where they cannot be.

    Args:
        fresh: None where llama.cpp is not installed.
        file: the adapter as GGUF.
        base: None to make one for a while.
        outtype: of the file.

    Raises:
        ParityError: they are not the same model.
    """
    kind, folder = "GGUF adapter", file.parent
    with workspace(folder.parent) as space:
        try:
            if fresh is None:
                raise _NoBase("llama.cpp is not installed; pip install xllamacpp, and run this again")
            base = base or _base_for_a_while(space, tokenizer, config)
            longest = min(base.longest, longest_prompt(base.rows))
            prompts = encode_prompts(tokenizer, config.template.chat_template_kwargs, longest, base.rows)
            reference = fresh_reference(fresh, _in_peft(adapter.files.folder, space, config), prompts, space, "cpu")
        except (_NoBase, CannotLoad, CannotTell) as error:
            compared = (
                "every product was read back and compared with PEFT's, but base and adapter were not run together"
            )
            return not_proved(kind, folder, f"{compared}: {error}")
        source = Source(
            folder=str(base.path.resolve().parent),
            gguf_file=base.path.name,
            llama_cpp=True,
            gguf_adapter=str(file),
        )
        limit = limit_for(str(reference.facts["dtype"]), base.dtype, _DTYPES[outtype]) if base.dtype else None
        return prove(fresh, kind, folder, source, reference, limit)


def _in_peft(adapter: Path, space: Path, config: Config) -> Source:
    section = config.model
    (space / "config").mkdir()
    load_model_config(config).save_pretrained(space / "config")
    return Source(
        base=locate(section.base_model, config, "base_model"),
        adapter=str(adapter),
        model_class=section.model_type or "AutoModelForCausalLM",
        config=str(space / "config"),
        revision=section.revision_of_model or "",
        trust_remote_code=section.trust_remote_code,
        options=section.overrides_of_model_kwargs or {},
    )


def _base_for_a_while(space: Path, tokenizer: PreTrainedTokenizerBase, config: Config) -> BaseFile:
    """The base as GGUF, in a type that holds its numbers as they are."""
    name = config.model.base_model
    cure = f"whet export-gguf {config.file} --model-dir {name} writes it, --base-gguf FILE takes it"
    try:
        shards = find_shards(locate(name, config, "base_model"), config.model.revision_of_model)
        if shards is None:
            raise _NoBase(f"'{name}' has no safetensors to make a GGUF of; {cure}")
        with opened(shards[0].path.parent) as files:
            model = look_at(shards[0].path.parent, files, tokenizer, "base", config=load_model_config(config))
            outtype = files.lossless
            size = file_bytes(model.tensors, outtype)
            free, memory = shutil.disk_usage(space).free, available_memory_bytes()
            if _SPARE * size > free:
                wants = f"{_SPARE * size / 2**30:,.1f} GiB beside the adapter, and {free / 2**30:,.1f} are free"
                raise _NoBase(f"'{name}' as GGUF needs {wants}; {cure}, from another disk")
            if ROOM * size > memory:
                wants = f"{ROOM * size / 2**30:,.1f} GiB of memory, and {memory / 2**30:,.1f} are free"
                raise _NoBase(f"to run '{name}' takes {wants}; export it again on a machine that has them")
            say(
                f"gguf: base and adapter are run on the CPU, by PEFT and by llama.cpp; '{name}' is written as GGUF for "
                f"that, {size / 2**30:,.1f} GiB, and removed again (parity: false leaves it out)"
            )
            write_model(space / "base.gguf", model, outtype)
    except (ArtefactError, OSError) as error:
        raise _NoBase(f"no GGUF can be made of '{name}' ({str(error).splitlines()[0]}); {cure}") from error
    rows, bos = len(model.vocabulary.tokens), model.vocabulary.adds_bos
    return BaseFile(space / "base.gguf", _DTYPES[outtype], rows, model.context_length, bos)
