"""numpy arrays as Arrow arrays and back, by their buffers: no byte is copied.

``pyarrow.array`` and ``Array.to_numpy`` would do, and import pandas on the way where it is installed (0.2 CPU
seconds in every process, one run).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_TYPES = {
    np.dtype(np.int16): pa.int16(),
    np.dtype(np.int32): pa.int32(),
    np.dtype(np.int64): pa.int64(),
    np.dtype(np.uint64): pa.uint64(),
}


def as_arrow(values: npt.NDArray[Any]) -> pa.Array:
    """An Arrow array of numbers, or of flags (a bit each)."""
    if values.dtype == np.bool_:
        bits = np.packbits(values, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(bits)])
    contiguous = np.ascontiguousarray(values)
    return pa.Array.from_buffers(_TYPES[contiguous.dtype], len(contiguous), [None, pa.py_buffer(contiguous)])


def as_lists(parts: list[npt.NDArray[Any]], dtype: type[np.generic]) -> pa.ListArray:
    """An Arrow array of lists."""
    offsets = np.zeros(len(parts) + 1, dtype=np.int32)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    values = np.concatenate([np.zeros(0, dtype), *parts])
    return pa.ListArray.from_arrays(as_arrow(offsets), as_arrow(values))


def as_digests(digests: list[bytes]) -> pa.Array:
    """An Arrow array of 16 bytes each."""
    return pa.Array.from_buffers(pa.binary(16), len(digests), [None, pa.py_buffer(b"".join(digests))])


def as_texts(texts: list[bytes]) -> pa.Array:
    """An Arrow array of bytes of any length."""
    offsets = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum([len(text) for text in texts], out=offsets[1:])
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.binary(), len(texts), buffers)


def as_numpy(column: pa.Array, dtype: type[np.generic]) -> npt.NDArray[Any]:
    """The numbers of an Arrow array without nulls, as a view of its buffer."""
    buffer = column.buffers()[1]
    if buffer is None or not len(column):
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype=dtype, count=len(column), offset=column.offset * np.dtype(dtype).itemsize)
