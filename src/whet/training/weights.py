"""The weights of a checkpoint into the model that is trained, every one of them.

transformers' Trainer loads what has the right name and leaves the rest as it was, without a word. Some models are
written under other names than they have in memory (fused experts, in the published format of one tensor an expert):
there a resumed run would go on from the base model's weights with the checkpoint's optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from whet.core.errors import ArtefactError, Problem
from whet.model.weight_files import weight_files


@torch.no_grad()
def load_weights(model: PreTrainedModel, checkpoint: Path) -> None:
    """Every tensor of a model from the safetensors of a checkpoint, in the type that it has in the model.

    Raises:
        ArtefactError: a tensor is not in the checkpoint, or has another shape there.
    """
    files = weight_files(checkpoint)
    names = {name: file for file in files for name in _names(file)}
    wanted = _tensors_once(model)
    if all(any(alias in names for alias in aliases) for aliases, _ in wanted):
        _copy(wanted, names, checkpoint)
        return
    # Written under other names: transformers reads them back into a second model.
    of_all = {tensor.dtype for _, tensor in wanted if tensor.is_floating_point()}
    dtype = of_all.pop() if len(of_all) == 1 else torch.float32
    loaded, report = type(model).from_pretrained(
        checkpoint, dtype=dtype, config=model.config, output_loading_info=True, local_files_only=True
    )
    missing = sorted({*report["missing_keys"], *(str(each[0]) for each in report["mismatched_keys"])})
    if missing:
        raise _not_all(checkpoint, missing)
    state = loaded.state_dict()
    for aliases, tensor in wanted:
        found = next((state[alias] for alias in aliases if alias in state), None)
        if found is None or found.shape != tensor.shape:
            raise _not_all(checkpoint, aliases[:1])
        tensor.copy_(found)


def check_adapter(model: Any, checkpoint: Path) -> None:
    """Whether every trained tensor of an adapter was in the checkpoint that it has been loaded from.

    Raises:
        ArtefactError: one was not; it would have begun anew beside the old optimizer state.
    """
    from peft import get_peft_model_state_dict

    path = checkpoint / "adapter_model.safetensors"
    if not path.is_file():
        return
    held = set(_names(path))
    # Whether embeddings are saved besides PEFT decides by asking the hub; what is trained is here without them.
    missing = sorted(set(get_peft_model_state_dict(model, save_embedding_layers=False)) - held)
    if missing:
        raise _not_all(checkpoint, missing)


def _tensors_once(model: torch.nn.Module) -> list[tuple[list[str], torch.Tensor]]:
    """Each tensor of the model's state with all the names that it has."""
    once: dict[tuple[int, torch.Size, tuple[int, ...]], tuple[list[str], torch.Tensor]] = {}
    for number, (name, tensor) in enumerate(model.state_dict(keep_vars=True).items()):
        place = tensor.data_ptr() or -number - 1  # without memory it shares none
        once.setdefault((place, tensor.shape, tensor.stride()), ([], tensor.data))[0].append(name)
    return list(once.values())


def _copy(wanted: list[tuple[list[str], torch.Tensor]], names: Mapping[str, Path], checkpoint: Path) -> None:
    by_file: dict[Path, list[tuple[str, torch.Tensor]]] = {}
    for aliases, tensor in wanted:
        name = next(alias for alias in aliases if alias in names)
        by_file.setdefault(names[name], []).append((name, tensor))
    for file, tensors in by_file.items():
        with safe_open(file, framework="pt") as opened:
            for name, tensor in tensors:
                saved = opened.get_tensor(name)
                if saved.shape != tensor.shape:
                    raise _not_all(checkpoint, [f"{name} {list(saved.shape)}, in the model {list(tensor.shape)}"])
                tensor.copy_(saved)


def _names(file: Path) -> Iterator[str]:
    with safe_open(file, framework="pt") as opened:
        yield from opened.keys()


def _not_all(checkpoint: Path, names: list[str]) -> ArtefactError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    found = f"it does not hold the weights of this model: {shown}"
    return ArtefactError(Problem(str(checkpoint), found, "resume with the model and the config that the run had"))
