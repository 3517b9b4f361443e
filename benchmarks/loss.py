"""The output head with its loss, forward and backward: whet's chunks against PyTorch's `linear` and `cross_entropy`.

    python benchmarks/loss.py [--positions 1700] [--rounds 5] [--device cpu] [--out FILE.json]

Both run in one process on the same numbers, alternated; the median of the rounds is shown. Peak bytes are those of
tensors made within the call (PyTorch's own count on CUDA), the gradient of the head included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from whet.model.head_loss import HeadWeights, head_loss

SHAPES = ((8_192, 256), (8_192, 512), (32_000, 512), (128_000, 256), (128_000, 512), (256_000, 512))


class PeakBytes(TorchDispatchMode):
    """The most bytes that storages made within it held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._held = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {
            each.untyped_storage()._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor) and each.untyped_storage()._cdata not in given | self._known:
                self._hold(each.untyped_storage())
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        size, name = storage.nbytes(), storage._cdata
        self._known.add(name)
        self._held += size
        self.peak = max(self.peak, self._held)

        def released() -> None:
            self._known.discard(name)
            self._held -= size

        weakref.finalize(storage, released)


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(linear(hidden, weight).float(), targets, reduction="sum")


def chunked(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return head_loss(hidden, HeadWeights(weight), targets)[0]


def measure(
    loss: Callable[..., torch.Tensor], given: list[torch.Tensor], dtype: torch.dtype, *, count_bytes: bool
) -> tuple[float, int]:
    """Seconds of one forward and backward pass, and its peak bytes where they are counted."""
    hidden, weight, targets = given
    hidden.grad = weight.grad = None
    on_cuda = hidden.is_cuda
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() if on_cuda else 0
    counter = PeakBytes() if count_bytes and not on_cuda else None
    began = time.perf_counter()
    if counter is not None:
        counter.__enter__()
    with torch.autocast(hidden.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        total = loss(hidden, weight, targets)
    (total / len(targets)).backward()
    if counter is not None:
        counter.__exit__(None, None, None)
    if on_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated() - before if on_cuda else (counter.peak if counter else 0)
    return seconds, peak


def compare(
    vocabulary: int, hidden_size: int, dtype: torch.dtype, *, frozen: bool, options: argparse.Namespace
) -> dict[str, Any]:
    """One line of the table."""
    device = torch.device(options.device)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.positions, hidden_size, generator=random).to(device).requires_grad_()
    weight = (torch.randn(vocabulary, hidden_size, generator=random) * 0.02).to(device).requires_grad_(not frozen)
    given = [hidden, weight, torch.randint(vocabulary, (options.positions,), generator=random).to(device)]
    forms = {"plain": plain, "whet": chunked}
    peaks = {name: measure(loss, given, dtype, count_bytes=True)[1] for name, loss in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, loss in forms.items():
            times[name].append(measure(loss, given, dtype, count_bytes=False)[0])
    line: dict[str, Any] = {"vocabulary": vocabulary, "hidden": hidden_size, "dtype": str(dtype)[6:], "frozen": frozen}
    for name in forms:
        line[f"{name}_ms"] = round(1e3 * statistics.median(times[name]), 1)
        line[f"{name}_peak_mib"] = round(peaks[name] / 2**20, 1)
    line["speed"] = round(line["plain_ms"] / line["whet_ms"], 2)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=1700)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        for vocabulary, hidden_size in SHAPES:
            for frozen in (False, True):
                lines.append(compare(vocabulary, hidden_size, dtype, frozen=frozen, options=options))
                print(json.dumps(lines[-1]), flush=True)
    if options.out:
        result = {"torch": torch.__version__, "threads": torch.get_num_threads(), **vars(options), "lines": lines}
        options.out.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
