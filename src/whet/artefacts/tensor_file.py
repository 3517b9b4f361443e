"""A safetensors file written one tensor at a time; the library's own writer wants all of them in memory at once.

The format (https://github.com/huggingface/safetensors#format): 8 bytes with the length of the header, the header as
JSON (dtype, shape and place of each tensor), then the bytes of the tensors without gaps.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""What safetensors calls torch's dtypes."""

_BITS = {"F8_E4M3": 8, "F8_E5M2": 8, "BOOL": 8} | {name: int(name.lstrip("BFIU")) for name in
         ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8")}  # fmt: skip


def size_of(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor."""
    return torch.Size(shape).numel() * _BITS[dtype] // 8


class TensorFile:
    """Give it every tensor it was promised, in the order of the promise.

    Args:
        path: of the file.
        promised: dtype (safetensors' name) and shape of each tensor.
    """

    def __init__(self, path: Path, promised: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
        self._promised = dict(promised)
        self._file = path.open("wb")
        header, place = {"__metadata__": {"format": "pt"}}, 0
        for name, (dtype, shape) in promised.items():
            size = size_of(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, place + size]}  # type: ignore[dict-item]
            place += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of 8 bytes
        self._file.write(struct.pack("<Q", len(text)) + text)
        self.num_bytes = place

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()
        assert kind is not None or not self._promised, f"promised and not written: {list(self._promised)[:3]}"

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """The next tensor."""
        expected = next(iter(self._promised.items()), None)
        assert expected == (name, (DTYPES[tensor.dtype], tuple(tensor.shape))), f"{name} was not promised like this"
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        self._file.write(flat.view(torch.uint8).numpy().data)
        del self._promised[name]
