"""A checkpoint whose parts each rank wrote (FSDP, by torch's DCP), made a folder that transformers or PEFT loads alone.

One shard of the result is in memory at a time, whatever the size of the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from peft import PeftConfig, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from whet.artefacts.dcp import METADATA, DistributedCheckpoint, Stored, open_checkpoint
from whet.artefacts.fresh import FreshProcess, Source
from whet.artefacts.fresh_script import ROOM
from whet.artefacts.parity import Parity, limit_for, live_reference, not_proved, prove, tell, workspace
from whet.artefacts.prove_saved import prompts_of, proving
from whet.artefacts.publish import check_replaceable, published
from whet.artefacts.save import generation_config
from whet.artefacts.shard_files import divide, stored_bytes, write_shards
from whet.config import Config
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say
from whet.core.nearest import nearest
from whet.distributed.hardware import available_memory_bytes
from whet.model.adapters import lora_config
from whet.model.load import load_model_config
from whet.model.saved import saved_adapter_config, saved_generation_config, saved_tokenizer
from whet.model.source import locate
from whet.record import versions_of
from whet.training.checkpoint import checkpoints, what_is_wrong
from whet.training.tokenizer import run_tokenizer

MARKER = "whet_sharded.json"
"""Written into each folder made here; only a folder that has it may be replaced."""

FSDP_FOLDER = "pytorch_model_fsdp_0"
"""What accelerate calls the model's part of a sharded checkpoint."""

DTYPES = ("float32", "bfloat16", "float16")

_PREFIXES = ("", "model.", "state_dict.", "app.", "app.model.")
"""What the names may have in front, by the dictionary that was given to DCP."""

_PEFT = "base_model.model."


@dataclass(frozen=True)
class Gathered:
    """A model or adapter made of a sharded checkpoint.

    Attributes:
        folder: where it is.
        checkpoint: what it was made of.
        kind: "model" or "adapter".
        dtype: of the stored weights; of the most, where they differ.
        tensors, shards, bytes: how much was written.
    """

    folder: str
    checkpoint: str
    kind: str
    dtype: str
    tensors: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class _Target:
    """What has to be in the checkpoint: the shape of every tensor by its name, and which are others' doubles."""

    shapes: Mapping[str, tuple[int, ...]]
    doubles: Mapping[str, str]


def gather(
    config: Config,
    output: Path | None,
    *,
    checkpoint: Path,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> Gathered:
    """Write the weights of a sharded checkpoint to ``output``, with all that is needed to load and to talk to them.

    Args:
        output: `merged` in the output folder, `adapter` for an adapter, if not given.
        checkpoint: the folder with DCP's `.metadata` (see `find_checkpoint`).
        dtype: of the written weights; as stored if not given.
        shard_bytes: largest size of a file, of more than one tensor.

    Raises:
        ArtefactError: it is no such checkpoint, its tensors are not those of the config's model, or ``output`` holds
            something else or cannot be written.
        ModelError: the config's base model cannot be found.
    """
    opened = open_checkpoint(checkpoint)
    is_adapter = any(_PEFT in name or ".lora_" in name for name in opened.tensors)
    output = output or Path(config.output.output_dir) / ("adapter" if is_adapter else "merged")
    check_replaceable(output, MARKER, "gathered model")
    model = _skeleton(config)
    if is_adapter:
        peft_config = _peft_config(checkpoint, model, config)
        expected = _adapter_target(model, peft_config)
        everything = _adapter_tensors(opened)
        named = {name: each for name, each in everything.items() if name in expected.shapes or _is_adapters(name)}
    else:
        named, expected = _model_tensors(opened, model)
    chosen = _chosen(named, expected, checkpoint, config)
    tokenizer = _tokenizer(checkpoint, config)
    process = nullcontext() if is_adapter else proving(config)
    with process as fresh, published(output, "gathered model") as partial:
        stem = "adapter_model" if is_adapter else "model"
        chosen = _without_doubles(chosen, named, expected, opened, model)
        written = write_shards(partial, stem, chosen, opened, dtype, shard_bytes if not is_adapter else None)
        if is_adapter:
            peft_config.save_pretrained(partial)
        else:
            model.config.dtype = getattr(torch, written.dtype)
            model.config.use_cache = True
            model.config.architectures = [type(model).__name__]
            model.config.save_pretrained(partial)
        _generation(checkpoint, model, tokenizer, config).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        result = Gathered(str(output), str(checkpoint), "adapter" if is_adapter else "model", **asdict(written))
        record = asdict(result) | versions_of(("whet", "torch", "transformers"))
        (partial / MARKER).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        parity = None
        if is_adapter and config.output.parity:
            proves = f"whet merge-lora {config.file} --lora-model-dir {output} runs it beside its base"
            not_proved("gathered adapter", partial, f"its tensors were compared, and no model was computed; {proves}")
        if fresh is not None:
            parity = _prove(fresh, partial, chosen, opened, model, tokenizer, written.dtype, config)
    say(
        f"gathered: {result.tensors:,} tensors ({result.bytes / 2**20:,.1f} MiB, {result.dtype}) of '{checkpoint}' "
        f"into {result.shards} file{'s' if result.shards > 1 else ''} in '{output}'; every one read back and equal"
    )
    if parity is not None:
        tell("gathered model", output, parity)
    return result


def find_checkpoint(config: Config, folder: Path | None) -> Path:
    """Where DCP's `.metadata` is: in ``folder`` or a place of it, else in `output_dir` or its newest checkpoint.

    Raises:
        ArtefactError: nowhere; what lies there instead is named with what to do about it.
    """
    places = [folder] if folder is not None else [Path(config.output.output_dir)]
    if folder is None:
        newest_first = reversed(checkpoints(places[0]))
        places += [
            path for path in newest_first if not (path / "whet-checkpoint.json").is_file() or not what_is_wrong(path)
        ]
    for place in places:
        for candidate in (place, place / FSDP_FOLDER):
            if (candidate / METADATA).is_file():
                return candidate
    raise ArtefactError(_nothing_there(places, config, named=folder is not None))


def _nothing_there(places: Sequence[Path], config: Config, *, named: bool) -> Problem:
    where = "--model-dir" if named else config.where("output_dir")
    first = places[0]
    if not first.is_dir():
        return Problem(where, f"there is no folder '{first}'", "give the folder of a sharded checkpoint: --model-dir")
    for place in places:
        if found := sorted(place.glob("pytorch_model_fsdp*.bin")):
            return Problem(
                where, f"'{place}' holds {found[0].name}: pickles, one for each rank (LOCAL_STATE_DICT) or all in one",
                "save again with fsdp_config: {state_dict_type: SHARDED_STATE_DICT}; whet loads no pickled weights",
            )  # fmt: skip
        if found := sorted(place.glob("pytorch_model*.bin")):
            return Problem(
                where, f"'{place}' holds {found[0].name}: a model in torch's own files, not the parts of ranks",
                "write it with transformers: from_pretrained(...).save_pretrained(...), which makes safetensors of it",
            )  # fmt: skip
    for place in places:
        if list(place.glob("*.safetensors")):
            return Problem(where, f"'{place}' holds safetensors: it is gathered already", "use that folder as it is")
    return Problem(
        where, f"there is no sharded checkpoint in '{first}' ({FSDP_FOLDER}/{METADATA})",
        "give its folder: --model-dir; only runs with SHARDED_STATE_DICT write one",
    )  # fmt: skip


def _skeleton(config: Config) -> PreTrainedModel:
    """The config's model without memory for its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            load_model_config(config), trust_remote_code=config.model.trust_remote_code
        )
    model.name_or_path = config.model.base_model
    return model


def _model_tensors(opened: DistributedCheckpoint, model: PreTrainedModel) -> tuple[dict[str, Stored], _Target]:
    names = set(model.state_dict())
    prefix = max(_PREFIXES, key=lambda each: sum(each + name in opened.tensors for name in names))
    named = {name.removeprefix(prefix): stored for name, stored in opened.tensors.items() if name.startswith(prefix)}
    _fit_vocabulary(model, named)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    # Names on the left share the tensor of the name on the right, where the config ties them.
    tied = model.all_tied_weights_keys or {}
    return named, _Target(shapes, dict(tied))


def _fit_vocabulary(model: PreTrainedModel, named: Mapping[str, Stored]) -> None:
    """Tokens may have been added in training: the embedding has the rows that were saved."""
    embedding = model.get_input_embeddings()
    (name,) = [name for name, module in model.named_modules() if module is embedding]
    stored = named.get(f"{name}.weight")
    rows = embedding.weight.shape[0]
    if stored is not None and len(stored.shape) == 2 and stored.shape[0] != rows:
        say(f"the embedding was saved with {stored.shape[0]:,} rows, the base model has {rows:,}")
        model.resize_token_embeddings(stored.shape[0], mean_resizing=False)


def _peft_config(checkpoint: Path, model: PreTrainedModel, config: Config) -> PeftConfig:
    """What was saved beside the checkpoint, else what the config says."""
    for folder in (checkpoint, checkpoint.parent, Path(config.output.output_dir)):
        if (folder / "adapter_config.json").is_file():
            return saved_adapter_config(folder)
    if config.adapter.adapter is None:
        raise ArtefactError(
            Problem(config.where("adapter"), f"'{checkpoint}' holds an adapter, and the config has none",
                    "give the config of the run that wrote it", "adapter")
        )  # fmt: skip
    made = lora_config(model, config)
    made.base_model_name_or_path = config.model.base_model
    made.inference_mode = True
    return made


def _adapter_tensors(opened: DistributedCheckpoint) -> dict[str, Stored]:
    """By the names PEFT saves them under. Base weights may lie beside them, by names that no adapter's tensor has."""
    found = {}
    for name, stored in opened.tensors.items():
        if ".original_module." not in name and ".base_layer." not in name:
            peft_name = name[name.index(_PEFT) :] if _PEFT in name else name
            found[peft_name.replace(".modules_to_save.default", "").replace(".default", "")] = stored
    return found


def _is_adapters(name: str) -> bool:
    return any(part.startswith(("lora_", "modules_to_save", "token_adapter")) for part in name.split("."))


def _adapter_target(model: PreTrainedModel, peft_config: PeftConfig) -> _Target:
    with torch.device("meta"):
        adapted = get_peft_model(model, peft_config)
    state = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    return _Target({name: tuple(tensor.shape) for name, tensor in state.items()}, {})


def _chosen(named: Mapping[str, Stored], expected: _Target, checkpoint: Path, config: Config) -> dict[str, Stored]:
    """The tensors to write, after it is sure that they are the model's: none missing, none of another shape."""
    missing = [name for name in expected.shapes if name not in named and name not in expected.doubles]
    unknown = [name for name in named if name not in expected.shapes]
    wrong = [n for n, shape in expected.shapes.items() if n in named and named[n].shape != shape]
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        near = nearest(missing[0], unknown)
        seen = f"; it has '{near}'" if near else ""
        found = f"'{checkpoint}' has no {shown}, which '{config.model.base_model}' needs{seen}"
    elif wrong:
        name = wrong[0]
        found = f"'{checkpoint}' has {name} as {list(named[name].shape)}, the model as {list(expected.shapes[name])}"
    elif unknown:
        shown = ", ".join(unknown[:3]) + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        found = f"'{checkpoint}' has {shown}, for which '{config.model.base_model}' has no place"
    else:
        return {name: named[name] for name in expected.shapes if name in named}
    fix = "give the config of the run that wrote it, or the checkpoint of this config's run: --model-dir"
    raise ArtefactError(Problem(config.where("base_model"), found, fix, "base_model"))


def _without_doubles(
    chosen: Mapping[str, Stored],
    named: Mapping[str, Stored],
    expected: _Target,
    opened: DistributedCheckpoint,
    model: PreTrainedModel,
) -> dict[str, Stored]:
    """Tied weights once. Where training has moved them apart they are both kept, and no longer tied."""
    kept = dict(chosen)
    for double, source in expected.doubles.items():
        if double not in named or source not in named:
            continue
        pair = opened.read([named[double], named[source]])
        if torch.equal(pair[named[double].key], pair[named[source].key]):
            del kept[double]
        else:
            model.config.tie_word_embeddings = model.config.get_text_config(decoder=True).tie_word_embeddings = False
            say(f"{double} and {source} were trained apart, so the model no longer ties them")
    return kept


def _prove(
    fresh: FreshProcess,
    folder: Path,
    tensors: Mapping[str, Stored],
    opened: DistributedCheckpoint,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dtype: str,
    config: Config,
) -> Parity:
    """Hold the folder against a model filled from the checkpoint itself, which is in memory as a whole for that."""
    needed = ROOM * sum(stored_bytes(stored, None) for stored in tensors.values())
    available = available_memory_bytes()
    if available < needed:
        reason = (
            f"a model filled from the checkpoint needs {needed / 2**30:.1f} GiB of memory, and "
            f"{available / 2**30:.1f} are free; every tensor was compared all the same"
        )
        return not_proved("gathered model", folder, reason)
    live = _filled(model, tensors, opened, config)
    limit = limit_for(dtype, str(live.dtype).removeprefix("torch."))
    with workspace(folder.parent) as space:
        prompts = prompts_of(config, tokenizer, live)
        reference = live_reference(live, prompts, space, what=f"the checkpoint '{opened.folder}'")
        del live
        source = Source(folder=str(folder), trust_remote_code=config.model.trust_remote_code)
        return prove(fresh, "gathered model", folder, source, reference, limit)


def _filled(
    model: PreTrainedModel, tensors: Mapping[str, Stored], opened: DistributedCheckpoint, config: Config
) -> PreTrainedModel:
    with init_empty_weights(include_buffers=False):
        filled: PreTrainedModel = AutoModelForCausalLM.from_config(
            model.config, trust_remote_code=config.model.trust_remote_code
        )
    for names in divide(tensors, None, 10**9):
        read = opened.read([tensors[name] for name in names])
        filled.load_state_dict({name: read[tensors[name].key] for name in names}, strict=False, assign=True)
    filled.tie_weights()
    return filled


def _tokenizer(checkpoint: Path, config: Config) -> PreTrainedTokenizerBase:
    """The one saved by the run, else the config's with the template of training."""
    for folder in _beside(checkpoint, config):
        if (folder / "tokenizer_config.json").is_file():
            return saved_tokenizer(folder, trust_remote_code=config.model.trust_remote_code)
    return run_tokenizer(config)


def _generation(
    checkpoint: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: Config
) -> GenerationConfig:
    """Saved by the run, else the base model's; with the stop tokens of the template."""
    base = locate(config.model.base_model, config, "base_model")
    for source in (*_beside(checkpoint, config), Path(base)):
        if (saved := saved_generation_config(source)) is not None:
            model.generation_config = saved
            break
    return generation_config(model, tokenizer, config.template.eot_tokens or ())


def _beside(checkpoint: Path, config: Config) -> Iterable[Path]:
    return dict.fromkeys((checkpoint, checkpoint.parent, Path(config.output.output_dir)))
