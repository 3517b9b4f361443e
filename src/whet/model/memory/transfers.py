"""How bytes go from the device to their room on the host, and back."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

IN_FLIGHT = 4
"""Copies to the host that may run at once; each keeps its source alive."""


class Transfers(Protocol):
    """One way to copy. ``source`` and results are uint8[n] on the device, ``room`` is uint8[n] on the host."""

    ahead: int
    """How many tensors are to be on their way back before they are asked for."""

    def put(self, source: torch.Tensor, room: torch.Tensor) -> Any:
        """Copy to the host; returns a ticket, with which the copy can be waited for."""

    def begin(self, room: torch.Tensor, ticket: Any, device: torch.device) -> Any:
        """Start the copy back; returns what `finish` takes."""

    def finish(self, begun: Any) -> torch.Tensor:
        """The tensor, ready to be used by what the caller runs next."""


class Waiting:
    """Copy, and wait for it."""

    ahead = 0

    def put(self, source: torch.Tensor, room: torch.Tensor) -> None:
        room.copy_(source)

    def begin(self, room: torch.Tensor, ticket: None, device: torch.device) -> torch.Tensor:
        return room.to(device, copy=True)

    def finish(self, begun: torch.Tensor) -> torch.Tensor:
        return begun


class Streams:
    """Copies on a stream of their own beside the computing of a GPU. ``room`` must be page-locked."""

    ahead = 2

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._leaving: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()

    def put(self, source: torch.Tensor, room: torch.Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(source.device))
        with torch.cuda.stream(self._stream):
            room.copy_(source, non_blocking=True)
            self._leaving.append((self._stream.record_event(), source))
        while len(self._leaving) > IN_FLIGHT:
            self._let_go(source.device)

    def begin(self, room: torch.Tensor, ticket: None, device: torch.device) -> tuple[torch.Tensor, torch.cuda.Event]:
        while self._leaving:
            self._let_go(device)
        # Copies of one stream are in order, so what `put` wrote is there. The memory is the copying stream's.
        with torch.cuda.stream(self._stream):
            back = torch.empty(room.numel(), dtype=torch.uint8, device=device)
            back.copy_(room, non_blocking=True)
            return back, self._stream.record_event()

    def finish(self, begun: tuple[torch.Tensor, torch.cuda.Event]) -> torch.Tensor:
        back, arrived = begun
        current = torch.cuda.current_stream(back.device)
        current.wait_event(arrived)
        back.record_stream(current)  # so that its memory is not given away while the computing stream reads it
        return back

    def _let_go(self, device: torch.device) -> None:
        """Forget the oldest source: what the computing stream runs from now on comes after its copy."""
        copied, _ = self._leaving.popleft()
        torch.cuda.current_stream(device).wait_event(copied)


class Background:
    """A thread that writes files and reads them ahead, while the caller computes."""

    ahead = 2

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="activations")
        self._leaving: deque[Future[None]] = deque()

    def put(self, source: torch.Tensor, room: torch.Tensor) -> Future[None]:
        computed = torch.cuda.current_stream(source.device).record_event() if source.is_cuda else None

        def write() -> None:
            if computed is not None:
                computed.synchronize()
            room.copy_(source)

        written = self._thread.submit(write)
        self._leaving.append(written)
        while len(self._leaving) > IN_FLIGHT:
            self._leaving.popleft().result()
        return written

    def begin(self, room: torch.Tensor, ticket: Future[None], device: torch.device) -> tuple[Any, torch.device]:
        def read() -> torch.Tensor:
            ticket.result()
            return room.clone()

        return self._thread.submit(read), device

    def finish(self, begun: tuple[Future[torch.Tensor], torch.device]) -> torch.Tensor:
        read, device = begun
        return read.result().to(device)
