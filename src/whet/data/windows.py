"""The rows of a stream: windows of samples, each shuffled and packed, read by a thread that keeps ahead of the run.

At most one window's samples are in memory, and one chunk of each dataset: the next window grows as fast as the rows of
the one before it are taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Condition, Thread
from typing import Any, Self

from whet.data.feed import StreamSample
from whet.data.packing import IntArray, Packs
from whet.data.streaming import Stream, StreamMark


@dataclass(frozen=True, slots=True)
class WindowMark:
    """Where a window begins, which decides all that comes after it.

    Attributes:
        number: of the window.
        first_row, first_sample: numbers of its first row and its first sample in the run.
        stream: how far the stream has been read before it.
    """

    number: int
    first_row: int
    first_sample: int
    stream: StreamMark

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        return cls(**{**values, "stream": StreamMark.from_dict(values["stream"])})

    def as_dict(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "first_row": self.first_row,
            "first_sample": self.first_sample,
            "stream": self.stream.as_dict(),
        }


@dataclass(frozen=True, slots=True, eq=False)
class StreamRow:
    """A row: its samples, and the number of each in the run (int64[k])."""

    samples: tuple[StreamSample, ...]
    numbers: IntArray


class _Window:
    """Samples and the rows that they make; a row that is taken is let go of."""

    def __init__(self, begin: WindowMark, end: StreamMark, samples: list[StreamSample], rows: Packs) -> None:
        self.begin, self.rows = begin, rows
        self.end = WindowMark(begin.number + 1, begin.first_row + len(rows), begin.first_sample + len(samples), end)
        self._samples: list[StreamSample | None] = [*samples]
        self.num_left = len(samples)

    def take(self, row: int) -> StreamRow:
        """A row by its number in the run, once."""
        members = self.rows[row - self.begin.first_row]
        taken = []
        for member in members.tolist():
            sample = self._samples[member]
            assert sample is not None, "a row is taken once"
            taken.append(sample)
            self._samples[member] = None
        self.num_left -= len(taken)
        return StreamRow(tuple(taken), members + self.begin.first_sample)


class LookAhead:
    """Gives rows in order while a thread reads on.

    A failure of the thread is raised where the rows that it could not make are asked for, so that it comes at the same
    row in every run and on every rank.

    Args:
        stream: standing at ``begin``.
        rows: the rows of a window, from the lengths of its samples and its number.
        size: samples of a window.
        first: number of the first row that will be taken; what stands before it in its window is passed over.
        read: how far the windows were read that had been begun before; the beginning of this one by default.

    Attributes:
        next_row: number of the row that is taken next.
        most_held: the most samples that were in memory at a time.
        seconds_waited: for rows that were not there yet.
    """

    def __init__(
        self,
        stream: Stream,
        rows: Callable[[Sequence[int], int], Packs],
        size: int,
        begin: WindowMark,
        first: int | None = None,
        read: StreamMark | None = None,
    ) -> None:
        self._stream, self._rows, self._size = stream, rows, size
        self.next_row = begin.first_row if first is None else first
        self._begin = begin
        self._read_before = begin.stream if read is None else read
        self._current: _Window | None = None
        self._ready: _Window | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._changed = Condition()
        self.most_held = 0
        self.seconds_waited = 0.0
        self._thread = Thread(target=self._read, name="whet-stream", daemon=True)
        self._thread.start()

    def take(self, count: int) -> list[StreamRow]:
        """The next ``count`` rows.

        Raises:
            DataError: they cannot be made: a source cannot be read, or a row cannot be used.
        """
        taken = []
        with self._changed:
            for _ in range(count):
                window = self._window()
                taken.append(window.take(self.next_row))
                self.next_row += 1
            self._changed.notify_all()
        return taken

    def mark(self) -> WindowMark:
        """The window that the next row is in."""
        with self._changed:
            if self._current is None:
                return self._begin
            return self._current.end if self.next_row >= self._current.end.first_row else self._current.begin

    def read(self) -> StreamMark:
        """How far the windows that were begun have been read."""
        with self._changed:
            return self._read_before if self._current is None else self._current.end.stream

    def close(self) -> None:
        """End the thread, which finishes what it encodes first, and close the files that are open."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self._stream.close()

    def _window(self) -> _Window:
        """The window of the next row; waits for it."""
        while self._current is None or self.next_row >= self._current.end.first_row:
            if self._ready is not None:
                self._current, self._ready = self._ready, None
                for row in range(self._current.begin.first_row, min(self.next_row, self._current.end.first_row)):
                    self._current.take(row)
                self._changed.notify_all()
            elif self._failure is not None:
                raise self._failure
            else:
                began = time.monotonic()
                self._changed.notify_all()  # the thread may be waiting for the room of rows just taken
                self._changed.wait()
                self.seconds_waited += time.monotonic() - began
        return self._current

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            begin = self._begin
            while (window := self._next_window(begin)) is not None:
                begin = window.end
        except Exception as failure:  # noqa: BLE001  (raised in the thread that asks for the rows)
            with self._changed:
                self._failure = failure
                self._changed.notify_all()

    def _next_window(self, begin: WindowMark) -> _Window | None:
        """Read a window and hand it over; None when closed meanwhile."""
        samples: list[StreamSample] = []
        while len(samples) < self._size:
            self._stream.peek()  # encodes a chunk, if it must, before there is room for its samples
            self._count(samples)
            if not self._wait(lambda: self._num_unread(samples) < self._size):
                return None
            samples.append(self._stream.take())
        rows = self._rows([sample.num_tokens for sample in samples], begin.number)
        window = _Window(begin, self._stream.mark(), samples, rows)
        if not self._wait(lambda: self._ready is None):
            return None
        with self._changed:
            self._ready = window
            self._changed.notify_all()
        return window

    def _count(self, samples: Sequence[StreamSample]) -> None:
        self.most_held = max(self.most_held, self._num_unread(samples) + self._stream.num_held)

    def _num_unread(self, samples: Sequence[StreamSample]) -> int:
        """Samples in memory: of the window that is being read, and of those before it."""
        return len(samples) + sum(window.num_left for window in (self._current, self._ready) if window is not None)

    def _wait(self, ready: Callable[[], bool]) -> bool:
        """Wait until something holds; False when closed meanwhile."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or ready())
            return not self._closed
