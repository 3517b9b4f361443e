"""Writing a GGUF file: first everything but the weights, then these, one tensor in memory at a time."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from whet.artefacts.gguf.architectures import Numbers
from whet.core.disk import sync
from whet.core.errors import ArtefactError, ModelError, Problem

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

OUTTYPES = ("f32", "f16", "bf16", "q8_0")
"""By the names of llama.cpp's own converter."""

_LARGEST_HALF = 65504.0


def require_gguf() -> None:
    """Raises a ModelError that says what to install."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise ModelError(
            Problem("", "writing GGUF needs the package gguf, which is not installed", "pip install gguf")
        ) from error
    logging.getLogger("gguf").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: its numbers are made when their turn comes."""

    name: str
    shape: tuple[int, ...]
    numbers: Callable[[], Numbers]


def type_of(name: str, shape: Sequence[int], outtype: str) -> GGMLQuantizationType:
    """The stored type of a tensor.

    llama.cpp wants vectors and routers in float32. A row that is no multiple of a block of 32 stays in float16.
    """
    from gguf import GGMLQuantizationType as Type

    if len(shape) < 2 or name.endswith(("ffn_gate_inp.weight", ".bias")):
        return Type.F32
    wanted = {"f32": Type.F32, "f16": Type.F16, "bf16": Type.BF16, "q8_0": Type.Q8_0}[outtype]
    return Type.F16 if wanted is Type.Q8_0 and shape[-1] % 32 else wanted


def stored(name: str, numbers: Numbers, kind: GGMLQuantizationType) -> npt.NDArray[Any]:
    """The numbers in their stored type.

    Raises:
        ArtefactError: a number is too large for float16.
    """
    from gguf import GGMLQuantizationType as Type
    from gguf import quants

    if kind is Type.F32:
        return numbers
    if kind is Type.F16:
        if not np.isfinite(numbers).all() or np.abs(numbers).max(initial=0) > _LARGEST_HALF:
            raise ArtefactError(
                Problem("", f"{name} has numbers that float16 cannot hold (above {_LARGEST_HALF:g})",
                        "write --outtype bf16 or f32")
            )  # fmt: skip
        return numbers.astype(np.float16)
    return quants.quantize(numbers, kind)


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise ArtefactError(
            Problem("", f"the file needs {needed / 2**20:,.1f} MiB, and '{path.parent.parent}' has {free / 2**20:,.1f} "
                    "free", "make room, or choose fewer bits (--outtype q8_0) or another place (--gguf-dir)")
        )  # fmt: skip


def file_bytes(tensors: Iterable[Tensor], outtype: str) -> int:
    """Of the tensors in their stored types; the rest of a file is small."""
    return sum(_size(_byte_shape(tensor, outtype)) for tensor in tensors)


def _byte_shape(tensor: Tensor, outtype: str) -> tuple[int, ...]:
    from gguf.quants import quant_shape_to_byte_shape

    shape: tuple[int, ...] = quant_shape_to_byte_shape(tensor.shape, type_of(tensor.name, tensor.shape, outtype))
    return shape


def _size(byte_shape: tuple[int, ...]) -> int:
    return int(np.prod(byte_shape, dtype=np.int64))


def write_file(path: Path, writer: GGUFWriter, tensors: Iterable[Tensor], outtype: str) -> None:
    """Write ``writer``'s fields and the tensors to ``path``, and wait until they are on the disk.

    Raises:
        ArtefactError: the disk has no room for it, or a number does not fit the type.
    """
    tensors = list(tensors)
    for tensor in tensors:
        kind, byte_shape = type_of(tensor.name, tensor.shape, outtype), _byte_shape(tensor, outtype)
        writer.add_tensor_info(tensor.name, byte_shape, np.dtype(np.uint8), _size(byte_shape), raw_dtype=kind)
    _check_room(path, file_bytes(tensors, outtype))
    writer.open_output_file(path)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            numbers = tensor.numbers()
            assert numbers.shape == tensor.shape, f"{tensor.name}: {numbers.shape}, planned {tensor.shape}"
            writer.write_tensor_data(stored(tensor.name, numbers, type_of(tensor.name, tensor.shape, outtype)))
    finally:
        writer.close()
    sync(path)
