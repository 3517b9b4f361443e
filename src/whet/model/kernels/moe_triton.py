"""Grouped products in Triton, for where PyTorch's have no form: float32 and float16, odd widths, older GPUs.

Imported only when one of them really runs. A tile of rows finds its expert on the device, from the places where the
experts' rows end, so that the host waits for nothing; the grid has room for the worst case, one partly filled tile for
each expert, and tiles beyond the last return at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

BLOCK_ROWS = 64
BLOCK_COLUMNS = 64
BLOCK_INNER = 32


@triton.jit  # type: ignore[untyped-decorator]
def _tile_of(ends_ptr, tile, num_experts, EXPERTS: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Expert of a tile of rows, its first row, and where the expert's rows end."""
    each = tl.arange(0, EXPERTS)
    is_real = each < num_experts
    ends = tl.load(ends_ptr + each, mask=is_real, other=0)
    starts = tl.load(ends_ptr + each - 1, mask=is_real & (each > 0), other=0)
    tiles = (ends - starts + BLOCK - 1) // BLOCK
    until = tl.cumsum(tiles, 0)
    expert = tl.sum((until <= tile).to(tl.int32), 0)
    is_it = each == expert
    first = tl.sum(tl.where(is_it, starts + (tile - until + tiles) * BLOCK, 0), 0)
    end = tl.sum(tl.where(is_it, ends, 0), 0)
    return expert, first, end


@triton.jit  # type: ignore[untyped-decorator]
def _rows_kernel(  # type: ignore[no-untyped-def]
    x_ptr, weight_ptr, out_ptr, ends_ptr, num_experts, num_inner, num_outer,
    x_row, x_inner, weight_expert, weight_inner, weight_outer,
    EXPERTS: tl.constexpr, ROWS: tl.constexpr, OUTER: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (S, O), contiguous = x (S, I) times the matrix (I, O) of each row's expert."""
    expert, first, end = _tile_of(ends_ptr, tl.program_id(0), num_experts, EXPERTS, ROWS)
    if expert < num_experts:
        rows = (first + tl.arange(0, ROWS)).to(tl.int64)
        outer = tl.program_id(1) * OUTER + tl.arange(0, OUTER)
        weight_ptr += expert.to(tl.int64) * weight_expert
        total = tl.zeros((ROWS, OUTER), dtype=tl.float32)
        for start in range(0, num_inner, INNER):
            inner = start + tl.arange(0, INNER)
            x = tl.load(
                x_ptr + rows[:, None] * x_row + inner[None, :] * x_inner,
                mask=(rows[:, None] < end) & (inner[None, :] < num_inner), other=0.0,
            )  # fmt: skip
            weight = tl.load(
                weight_ptr + inner[:, None] * weight_inner + outer[None, :] * weight_outer,
                mask=(inner[:, None] < num_inner) & (outer[None, :] < num_outer), other=0.0,
            )  # fmt: skip
            total += tl.dot(x, weight, input_precision=PRECISION)
        tl.store(
            out_ptr + rows[:, None] * num_outer + outer[None, :], total.to(out_ptr.dtype.element_ty),
            mask=(rows[:, None] < end) & (outer[None, :] < num_outer),
        )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _columns_kernel(  # type: ignore[no-untyped-def]
    x_ptr, y_ptr, out_ptr, ends_ptr, num_m, num_n, x_row, x_column, y_row, y_column,
    M: tl.constexpr, N: tl.constexpr, INNER: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """out (E, M, N), contiguous = x^T y over the rows of each expert."""
    expert = tl.program_id(0)
    start = tl.load(ends_ptr + expert - 1, mask=expert > 0, other=0)
    end = tl.load(ends_ptr + expert)
    m = tl.program_id(1) * M + tl.arange(0, M)
    n = tl.program_id(2) * N + tl.arange(0, N)
    total = tl.zeros((M, N), dtype=tl.float32)
    for first in range(start, end, INNER):
        rows = (first + tl.arange(0, INNER)).to(tl.int64)
        x = tl.load(
            x_ptr + rows[None, :] * x_row + m[:, None] * x_column,
            mask=(rows[None, :] < end) & (m[:, None] < num_m), other=0.0,
        )  # fmt: skip
        y = tl.load(
            y_ptr + rows[:, None] * y_row + n[None, :] * y_column,
            mask=(rows[:, None] < end) & (n[None, :] < num_n), other=0.0,
        )  # fmt: skip
        total += tl.dot(x, y, input_precision=PRECISION)
    places = expert.to(tl.int64) * num_m * num_n + m[:, None] * num_n + n[None, :]
    tl.store(out_ptr + places, total.to(out_ptr.dtype.element_ty), mask=(m[:, None] < num_m) & (n[None, :] < num_n))


class TritonProducts:
    """`whet.model.kernels.moe_grouped.Products` by the kernels above; sums in float32."""

    def rows(self, x_SI: torch.Tensor, weight_EIO: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """Each row times its expert's matrix, (S, O)."""
        (num_rows, num_inner), (experts, _, num_outer) = x_SI.shape, weight_EIO.shape
        out_SO = x_SI.new_empty(num_rows, num_outer)
        grid = (triton.cdiv(num_rows, BLOCK_ROWS) + experts, triton.cdiv(num_outer, BLOCK_COLUMNS))
        _launch(_rows_kernel, grid)(
            x_SI, weight_EIO, out_SO, ends_E, experts, num_inner, num_outer, *x_SI.stride(), *weight_EIO.stride(),
            EXPERTS=triton.next_power_of_2(experts), ROWS=BLOCK_ROWS, OUTER=BLOCK_COLUMNS, INNER=BLOCK_INNER,
            PRECISION=_precision(x_SI),
        )  # fmt: skip
        return out_SO

    def columns(self, x_SM: torch.Tensor, y_SN: torch.Tensor, ends_E: torch.Tensor) -> torch.Tensor:
        """x^T y over each expert's rows, (E, M, N); zeros for an expert without rows."""
        num_m, num_n = x_SM.shape[1], y_SN.shape[1]
        out_EMN = x_SM.new_empty(len(ends_E), num_m, num_n)
        grid = (len(ends_E), triton.cdiv(num_m, BLOCK_ROWS), triton.cdiv(num_n, BLOCK_COLUMNS))
        _launch(_columns_kernel, grid)(
            x_SM, y_SN, out_EMN, ends_E, num_m, num_n, *x_SM.stride(), *y_SN.stride(),
            M=BLOCK_ROWS, N=BLOCK_COLUMNS, INNER=BLOCK_INNER, PRECISION=_precision(x_SM),
        )  # fmt: skip
        return out_EMN


def _launch(kernel: Any, grid: tuple[int, ...]) -> Any:
    return kernel[grid]


def _precision(x: torch.Tensor) -> str:
    """How float32 is multiplied: as the rest of the model does it."""
    # Not by `allow_tf32`: reading it is an error where, as transformers does, TF32 was allowed in PyTorch's newer way.
    return "tf32" if x.dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
