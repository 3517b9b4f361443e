"""Low-rank adapters on a base model, by PEFT; every name the user wrote must be found in the model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, load_peft_weights
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.core.log import say
from whet.core.nearest import nearest
from whet.model.base_check import check_base
from whet.model.pickled import AS_SAFETENSORS, pickles_refused
from whet.model.saved import NOT_READ
from whet.model.startup import unused_put_off

# Ways to start an adapter that leave the base weights as they are, so that base + adapter is the model that was
# trained. PiSSA, OLoRA, LoftQ and the like change the base.
_STARTS = ("gaussian", "orthogonal")

# PEFT's own word for what ``lora_target_linear: true`` says.
_ALL_LINEAR = "all-linear"


def adapt(model: PreTrainedModel, config: Config, resolved: ResolvedRun) -> PreTrainedModel | PeftModel:
    """Put the config's adapter on ``model``; the model itself when the config has none.

    Raises:
        ModelError: a pattern matches nothing, PEFT refuses the combination, or lora_model_dir holds no adapter.
    """
    section = config.adapter
    if section.adapter is None:
        return model
    cast = True if section.peft_autocast_adapter_dtype is None else section.peft_autocast_adapter_dtype
    if section.lora_model_dir:
        adapted = _continued(model, config, cast)
    else:
        lora = lora_config(model, config)
        try:
            with tying_understood(), unused_put_off():
                adapted = get_peft_model(model, lora, autocast_adapter_dtype=cast)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(Problem(config.where("adapter"), f"PEFT refuses this adapter: {error}", "change it",
                                     "adapter")) from error  # fmt: skip
    if cast and resolved.autocast_dtype is not None:
        _train_in_float32(adapted)
    if section.lora_modules_to_save and _shares_embedding_with_head(model, section.lora_modules_to_save):
        say("embedding and head are one tensor in the base model; lora_modules_to_save trains them apart from here on")
    return adapted


def _train_in_float32(model: PeftModel) -> None:
    """Modules trained in full beside the adapter, like its own weights: PEFT 0.21 casts the latter alone.

    In bfloat16 an update below 1/256 of a weight is rounded away; in float16 the gradient scaler refuses to work.
    """
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype in (torch.float16, torch.bfloat16):
            parameter.data = parameter.data.to(torch.float32)


@contextmanager
def tying_understood() -> Iterator[None]:
    """Without PEFT's warning that an adapted head or embedding may be tied: `adapt` says it, merging unties the two."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        yield


def merged_in_place(model: Any) -> torch.nn.Module:
    """The base model with the adapter's product added to its weights; the PEFT model around it computes the same."""
    base: torch.nn.Module = model.merge_and_unload()
    return base


def lora_config(model: PreTrainedModel, config: Config) -> LoraConfig:
    """PEFT's config of the adapter, with every name checked against ``model``.

    Raises:
        ModelError: all the names that match nothing, at once.
    """
    section = config.adapter
    problems = _Problems(config)
    targets = _targets(model, config, problems)
    parameters = _as_list(section.lora_target_parameters)
    problems.check("lora_target_parameters", parameters, [name for name, _ in model.named_parameters()], "parameter")
    if parameters and section.lora_dropout:
        problems.add("lora_target_parameters", "lora_target_parameters needs lora_dropout: 0", "set it")
    modules = [name for name, _ in model.named_modules() if name]
    excluded = _as_list(section.lora_exclude_modules)
    problems.check("lora_exclude_modules", excluded, modules, "module")
    problems.check("lora_modules_to_save", section.lora_modules_to_save or (), modules, "module")
    for key in ("lora_rank_pattern", "lora_alpha_pattern"):
        problems.check(key, tuple(getattr(section, key) or ()), targets.names, "adapted layer")
    _check_layers(model, config, targets, problems)
    _check_start(config, problems)
    _check_token_indices(model, config, problems)
    problems.raise_any()
    return LoraConfig(
        task_type="CAUSAL_LM",
        r=section.lora_r,
        lora_alpha=section.lora_alpha,
        lora_dropout=section.lora_dropout,
        target_modules=targets.for_peft,
        target_parameters=list(parameters) or None,
        exclude_modules=_for_peft(excluded),
        modules_to_save=list(section.lora_modules_to_save) if section.lora_modules_to_save else None,
        fan_in_fan_out=section.lora_fan_in_fan_out or targets.are_conv1d,
        rank_pattern=dict(section.lora_rank_pattern or {}),
        alpha_pattern=dict(section.lora_alpha_pattern or {}),
        use_dora=section.peft_use_dora,
        use_rslora=section.peft_use_rslora,
        init_lora_weights=True if section.peft_init_lora_weights is None else section.peft_init_lora_weights,
        layers_to_transform=list(section.peft_layers_to_transform) if section.peft_layers_to_transform else None,
        layers_pattern=list(section.peft_layers_pattern) if section.peft_layers_pattern else None,
        trainable_token_indices=_token_indices(section.peft_trainable_token_indices),
    )


@dataclass(frozen=True)
class _Targets:
    """The layers to adapt: as PEFT takes them, by full name, and whether all are GPT-2's transposed linear layers."""

    for_peft: list[str] | str | None
    names: tuple[str, ...]
    are_conv1d: bool


def _targets(model: PreTrainedModel, config: Config, problems: _Problems) -> _Targets:
    section = config.adapter
    patterns = [each for each in _as_list(section.lora_target_modules) if each != _ALL_LINEAR]
    layers = {name: module for name, module in model.named_modules() if _can_be_adapted(module)}
    linear = _linear_layers(model, layers)
    patterns = problems.check("lora_target_modules", patterns, list(layers), "layer", show=linear)
    if section.lora_target_linear or _ALL_LINEAR in _as_list(section.lora_target_modules):
        patterns += [leaf for leaf in _leaves(linear) if leaf not in patterns]
    if not patterns and not section.lora_target_modules and not section.lora_target_parameters:
        problems.add(
            "lora_target_modules",
            f"adapter: {section.adapter} does not say which layers to adapt",
            f"write lora_target_linear: true, or lora_target_modules with some of {', '.join(_leaves(linear))}",
        )
    names = tuple(name for name in layers if any(_matches(pattern, name) for pattern in patterns))
    are_conv1d = bool(names) and all(isinstance(layers[name], Conv1D) for name in names)
    return _Targets(_for_peft(patterns), names, are_conv1d)


def _shares_embedding_with_head(model: PreTrainedModel, trained: Sequence[str]) -> bool:
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    names = [name for name, module in model.named_modules() if any(module is end for end in ends)]
    touched = any(_matches(pattern, name.split(".modules_to_save")[0]) for pattern in trained for name in names)
    return bool(touched and getattr(model.config.get_text_config(decoder=True), "tie_word_embeddings", False))


def _can_be_adapted(module: torch.nn.Module) -> bool:
    """bitsandbytes' layers are subclasses of Linear."""
    return isinstance(module, torch.nn.Linear | torch.nn.Embedding | Conv1D)


def _linear_layers(model: PreTrainedModel, layers: dict[str, torch.nn.Module]) -> list[str]:
    """Every linear layer but the output head."""
    head = model.get_output_embeddings()
    return [
        name for name, module in layers.items() if not isinstance(module, torch.nn.Embedding) and module is not head
    ]


def _leaves(names: Iterable[str]) -> list[str]:
    """Last parts of module names, each once; the whole name where the last part is a mere number."""
    leaves = (name if name.rpartition(".")[2].isdigit() else name.rpartition(".")[2] for name in names)
    return list(dict.fromkeys(leaves))


def _matches(pattern: str, name: str) -> bool:
    """As PEFT: the name, its ending after a dot, or all of it as a regular expression."""
    return name == pattern or name.endswith(f".{pattern}") or bool(re.fullmatch(rf"(?:.*\.)?(?:{pattern})", name))


def _for_peft(patterns: Sequence[str]) -> list[str] | str | None:
    """A list of plain names as it is; with regular expressions among them, one expression for all."""
    if not patterns:
        return None
    if all(re.fullmatch(r"[\w.]+", pattern) for pattern in patterns):
        return list(patterns)
    return r"(?:.*\.)?(?:" + "|".join(patterns) + ")"


def _check_layers(model: PreTrainedModel, config: Config, targets: _Targets, problems: _Problems) -> None:
    wanted = config.adapter.peft_layers_to_transform
    if not wanted:
        return
    num_layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    beyond = [index for index in wanted if index >= num_layers]
    if beyond:
        problems.add(
            "peft_layers_to_transform",
            f"the model has {num_layers} layers, there is no layer {', '.join(map(str, beyond))}",
            f"write numbers from 0 to {num_layers - 1}",
        )
    if isinstance(targets.for_peft, str):
        problems.add(
            "peft_layers_to_transform",
            "peft_layers_to_transform is not obeyed by PEFT beside a regular expression in lora_target_modules",
            "write plain module names, or put the layer numbers into the expression",
        )


def _check_start(config: Config, problems: _Problems) -> None:
    start = config.adapter.peft_init_lora_weights
    if isinstance(start, str) and start not in _STARTS:
        problems.add(
            "peft_init_lora_weights",
            f"'{start}' is not supported yet: it changes the base weights, or needs data before the first step",
            f"write true, {' or '.join(_STARTS)}",
        )


def _check_token_indices(model: PreTrainedModel, config: Config, problems: _Problems) -> None:
    indices = config.adapter.peft_trainable_token_indices
    if indices is None:
        return
    rows = model.get_input_embeddings().weight.shape[0]
    listed = indices.values() if isinstance(indices, dict) else (indices,)
    beyond = [index for each in listed for index in each if index >= rows]
    if beyond:
        problems.add(
            "peft_trainable_token_indices",
            f"the embedding has {rows:,} rows, there is no token {', '.join(map(str, beyond[:5]))}",
            f"write ids from 0 to {rows - 1}",
        )


def _continued(model: PreTrainedModel, config: Config, cast: bool) -> PeftModel:
    """The adapter of ``lora_model_dir``, trained further; its own rank and targets hold."""
    folder = Path(str(config.adapter.lora_model_dir)).expanduser()
    where = config.where("lora_model_dir")
    if not (folder / "adapter_config.json").is_file():
        raise ModelError(
            Problem(where, f"lora_model_dir: '{folder}' holds no adapter (adapter_config.json)",
                    "give the folder that a LoRA run wrote", "lora_model_dir")
        )  # fmt: skip
    check_base(folder, config)
    try:
        with tying_understood():
            return load_adapter(model, folder, is_trainable=True, autocast_adapter_dtype=cast)
    except (RuntimeError, *NOT_READ) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ModelError(
            Problem(where, f"lora_model_dir: the adapter in '{folder}' does not fit '{config.model.base_model}' "
                    f"({lines[min(1, len(lines) - 1)].strip()})",
                    "use the base model that it was trained on", "lora_model_dir")
        ) from error  # fmt: skip


def load_adapter(model: PreTrainedModel, folder: Path, **options: Any) -> PeftModel:
    """The model with the adapter of a folder.

    Raises:
        ValueError, RuntimeError, OSError, KeyError: as PEFT; also where a tensor of the adapter is not in its file, or
            one in the file has no place in the model (PEFT would only warn, and leave the former as it was
            initialised), where the vocabularies differ, and where the file is damaged.
    """
    names = {f"base_model.model.{name}" for name, _ in model.named_parameters(remove_duplicate=False)}
    try:
        rows, own = trained_rows(model, folder), model.get_input_embeddings().weight.shape[0]
        if rows is not None and rows != own:
            raise ValueError(f"its embedding has {rows:,} rows and the model's {own:,}: their vocabularies differ")
        with warnings.catch_warnings(), pickles_refused(folder, str(folder), AS_SAFETENSORS, key="lora_model_dir"):
            warnings.filterwarnings("ignore", message="Found missing adapter keys")  # an error below
            adapted = PeftModel.from_pretrained(model, str(folder), **options)
    except SafetensorError as error:
        raise ValueError(f"its file is damaged: {error}") from error
    wanted = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
    found = set(load_peft_weights(str(folder), device="cpu"))
    # In its files PEFT leaves out what the adapter is called.
    names |= {name.replace(".default.", ".") for name, _ in adapted.named_parameters(remove_duplicate=False)}
    _refuse(wanted - found, "lacks", "which its config asks for", found)
    _refuse(found - wanted - names, "holds", "for which the model has no place", wanted | names)
    return adapted


def _refuse(faults: set[str], word: str, why: str, others: set[str]) -> None:
    if not faults:
        return
    first, more = min(faults), f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    close = nearest(first, others)
    raise ValueError(f"its file {word} {first}{more}, {why}" + (f"; the nearest name is {close}" if close else ""))


def trained_rows(base: PreTrainedModel, adapter: Path) -> int | None:
    """Rows of the input embedding that the adapter's file holds, if it does."""
    embedding = base.get_input_embeddings()
    (name,) = [name for name, module in base.named_modules() if module is embedding]
    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return None
    width = embedding.weight.shape[1]
    with safe_open(file, framework="pt") as tensors:
        shapes = [
            tensors.get_slice(key).get_shape()
            for key in tensors.keys()  # noqa: SIM118  # a safetensors file is no mapping
            if key.startswith(f"base_model.model.{name}.") and key.endswith("weight")
        ]
    return next((int(shape[0]) for shape in shapes if len(shape) == 2 and shape[1] == width), None)


class _Problems:
    """What is wrong with the adapter's keys, gathered so that all can be told at once."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._found: list[Problem] = []

    def add(self, key: str, found: str, fix: str) -> None:
        where = self._config.where(key) if self._config.is_set(key) else self._config.where("adapter")
        self._found.append(Problem(where, found, fix, key))

    def check(
        self, key: str, patterns: Sequence[str], names: Sequence[str], what: str, show: Sequence[str] | None = None
    ) -> list[str]:
        """Each pattern must match one of ``names``; those that do. ``show`` is what to offer for the others."""
        good: list[str] = []
        for pattern in patterns:
            try:
                matched = any(_matches(pattern, name) for name in names)
            except re.error as error:
                self.add(key, f"'{pattern}' is neither a name nor a regular expression ({error})", "correct it")
                continue
            if matched:
                good.append(pattern)
            else:
                leaves = _leaves(names if show is None else show)
                close = nearest(pattern, leaves)
                advice = f"did you mean '{close}'? " if close else ""
                offered = ", ".join(leaves[:12]) + (", ..." if len(leaves) > 12 else "")
                model = self._config.model.base_model
                self.add(key, f"{key}: '{pattern}' matches no {what} of {model}", f"{advice}This model has {offered}")
        return good

    def raise_any(self) -> None:
        if self._found:
            raise ModelError(self._found)


def _as_list(value: str | Sequence[str] | None) -> tuple[str, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else tuple(value)


def _token_indices(value: Any) -> list[int] | dict[str, list[int]] | None:
    if value is None:
        return None
    if isinstance(value, dict):
        return {name: list(indices) for name, indices in value.items()}
    return list(value)
