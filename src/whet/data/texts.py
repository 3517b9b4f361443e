"""Many rendered texts -> their ids, and which tokens of them are trained."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.core.errors import DataError, Problem, RowError
from whet.core.log import warn
from whet.core.types import Conversation
from whet.data.engines import Choice, Ids, Offsets, Reference, attempt, choose_engine, find_difference, flat
from whet.data.placing import ByteLengths, Flags, Positions, SpanList, byte_lengths, first_token, mark, overlapping
from whet.data.templates.regions import Span
from whet.data.templates.render import Rendered
from whet.data.templates.skeleton import Skeleton

SAMPLE_TEXTS = 128
"""Texts of the user's own on which a fast engine is proved at first."""

CHECKED_TEXTS = 4
"""Texts of every later batch that are encoded by the reference too."""


CHARS_PER_TOKEN_BEFORE_FAST = 15
"""Characters, for each token of the vocabulary, below which the reference encodes: loading fastokens took 0.8 s for
131,072 tokens, in which tokenizers encodes some 4 million characters. Half of that: more is usually to come."""


class TextBatch:
    """Texts to be encoded together, with their trained spans and those that come from the row.

    Args:
        unit: what places in a text are counted in: "bytes" of UTF-8, or "chars".

    Attributes:
        texts: in order of their numbers.
        num_bytes: of each in UTF-8.
        num_chars: of all.
        first: the first conversation among them and the number of its text, to be compared with another render.
    """

    def __init__(self, unit: str) -> None:
        self.unit = unit
        self.texts: list[str] = []
        self.num_bytes = array("q")
        self.num_chars = 0
        self.first: tuple[Conversation, int] | None = None
        self._trained: list[tuple[int, int, int]] = []
        self._written: list[tuple[int, int, int]] = []
        self._filled: dict[Skeleton, tuple[list[int], list[int]]] = {}

    def add(self, rendered: Rendered) -> int:
        """Add a text; returns its number. Raises RowError as `fill`."""
        number = self._added(rendered.text)
        at = _identity if self.unit == "chars" or rendered.text.isascii() else _BytesBefore(rendered.text)
        self._trained += [(number, at(span.begin), at(span.end)) for span in rendered.spans]
        self._written += [(number, at(span.begin), at(span.end)) for span in rendered.written]
        return number

    def fill(self, skeleton: Skeleton, texts: Sequence[str]) -> int:
        """Add the text that a skeleton makes of the texts of its slots; returns its number.

        Raises:
            RowError: it holds half of a surrogate pair, which is no character.
        """
        number = self._added(skeleton.write(texts))
        numbers, lengths = self._filled.setdefault(skeleton, ([], []))
        numbers.append(number)
        if self.unit == "chars":
            lengths += map(len, texts)
        else:
            lengths += [len(text) if text.isascii() else len(text.encode()) for text in texts]
        return number

    def _added(self, text: str) -> int:
        self.num_bytes.append(_num_bytes(text))
        self.num_chars += len(text)
        self.texts.append(text)
        return len(self.texts) - 1

    def trained_of(self, text: int) -> list[tuple[int, int]]:
        """The trained spans of one text."""
        return self._by_text[0][text]

    def written_of(self, text: int) -> list[tuple[int, int]]:
        """The spans of one text that come from the row."""
        return self._by_text[1][text]

    @cached_property
    def _by_text(self) -> tuple[list[list[tuple[int, int]]], list[list[tuple[int, int]]]]:
        trained, written = self.spans
        return trained.by_text(len(self.texts)), written.by_text(len(self.texts))

    @cached_property
    def spans(self) -> tuple[SpanList, SpanList]:
        """The trained and the written spans of all texts."""
        trained, written = [SpanList.of(self._trained)], [SpanList.of(self._written)]
        for skeleton, (numbers, lengths) in self._filled.items():
            shaped = np.array(lengths, dtype=np.int64).reshape(len(numbers), len(skeleton.slots))
            begins, ends, slot_begins, slot_ends = skeleton.spans(shaped, self.unit)
            for found, first, last in ((trained, begins, ends), (written, slot_begins, slot_ends)):
                texts = np.repeat(np.array(numbers, dtype=np.int64), first.shape[1])
                found.append(SpanList(texts, first.ravel(), last.ravel()))
        return SpanList.joined(trained), SpanList.joined(written)


@dataclass(frozen=True, eq=False)
class Coded:
    """Encoded texts.

    Attributes:
        ids: int32[T] of all texts.
        offsets: int64[N + 1]; text n has ``ids[offsets[n]:offsets[n + 1]]``.
        supervised: bool[T].
        refused: text number -> why it cannot be used.
    """

    ids: Ids
    offsets: Offsets
    supervised: Flags
    refused: dict[int, RowError]
    _texts: Sequence[str]
    _begins: Positions | None
    _encodings: dict[int, Any] = field(default_factory=dict)

    def sequence(self, text: int) -> tuple[Ids, Flags]:
        """ids int32[t] and supervised bool[t] of one text, as views."""
        begin, end = self.offsets[text], self.offsets[text + 1]
        return self.ids[begin:end], self.supervised[begin:end]

    @cached_property
    def num_trained(self) -> npt.NDArray[np.int64]:
        """int64[N]: trained tokens of each text."""
        before = np.concatenate([[0], np.cumsum(self.supervised)])
        counts: npt.NDArray[np.int64] = np.diff(before[self.offsets])
        return counts

    def first_token(self, text: int, char: int) -> int:
        """Number of the text's first token that begins at the character or after it."""
        begin, end = int(self.offsets[text]), int(self.offsets[text + 1])
        encoding = self._encodings.get(text)
        if encoding is not None or self._begins is None:
            return first_token(encoding, char, end - begin)
        before = len(self._texts[text][:char].encode())
        own = self._begins[begin:end]
        return int(np.searchsorted(own - own[0], before)) if len(own) else 0


class TextEncoder:
    """Rendered texts -> ids and labels.

    A control token in what comes from a row is refused: as an id it would let a row speak for the template, and cut
    into pieces it would not be what ``apply_chat_template`` makes of the row.

    Args:
        tokenizer: a fast tokenizer of transformers.
        control: tokens, beside those the tokenizer calls special, that only a template may write.

    Raises:
        DataError: the tokenizer does not tell which characters a token stands for.
    """

    def __init__(self, tokenizer: Any, control: Sequence[str] = ()) -> None:
        if not getattr(tokenizer, "is_fast", False):
            found = f"{type(tokenizer).__name__} does not say which characters a token stands for"
            raise DataError(Problem("", found, "use a fast tokenizer (one with a tokenizer.json)", "tokenizer_type"))
        if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
            found = "the tokenizer merges at random (`dropout` in its tokenizer.json), so a text has no certain ids"
            raise DataError(Problem("", found, "set `dropout` to null there", "tokenizer_config"))
        self._reference = Reference(tokenizer)
        self._tokenizer = tokenizer
        self._choice: Choice | None = None
        self._chars = 0
        arithmetic = byte_lengths(tokenizer)
        self._bytes = arithmetic if isinstance(arithmetic, ByteLengths) else None
        self._no_bytes = arithmetic if isinstance(arithmetic, str) else ""
        added = tokenizer.added_tokens_decoder
        self._control_names = {i: t.content for i, t in added.items() if t.special or t.content in control}
        self._is_control = np.zeros(max(len(tokenizer), max(added, default=0) + 1), dtype=np.bool_)
        self._is_control[list(self._control_names)] = True

    @property
    def engine(self) -> str:
        """The engine in use and why, for the manifest; empty before the first text."""
        if self._choice is None:
            return "tokenizers: too little text to be worth loading fastokens" if self._chars else ""
        return f"{self._choice.engine.name}: {self._choice.why}"

    def batch(self) -> TextBatch:
        """An empty batch for this encoder."""
        return TextBatch("chars" if self._bytes is None else "bytes")

    def encode(self, batch: TextBatch) -> Coded:
        """Ids and labels of a batch of texts."""
        if self._bytes is None:
            return self._encoded_by_reference(batch)
        ids, offsets = self._ids(batch.texts)
        num_bytes = np.frombuffer(batch.num_bytes, dtype=np.int64)
        borders = self._bytes.borders(ids)
        unsure = self._bytes.unsure(batch.texts, num_bytes, borders, offsets)
        encodings = dict(zip(unsure.tolist(), self._reference.encodings([batch.texts[n] for n in unsure]), strict=True))
        for text, encoding in encodings.items():
            if self._is_fast and encoding.ids != ids[offsets[text] : offsets[text + 1]].tolist():
                self._give_up(batch.texts[text][:60])
                return self.encode(batch)
        begins, text_begins = borders[:-1], borders[offsets[:-1]]
        trained, written = batch.spans
        supervised = mark(begins, text_begins, trained.without(unsure))
        refused = self._refused_by_bytes(batch, ids, offsets, begins, text_begins, written.without(unsure))
        for text, encoding in encodings.items():
            self._place(batch, text, encoding, supervised[offsets[text] : offsets[text + 1]], refused)
        return Coded(ids, offsets, supervised, refused, batch.texts, begins, encodings)

    def _ids(self, texts: list[str]) -> tuple[Ids, Offsets]:
        """By the chosen engine; given up for good when a text shows that it differs from the reference."""
        self._chars += sum(map(len, texts))
        if self._choice is None and self._chars < CHARS_PER_TOKEN_BEFORE_FAST * len(self._is_control):
            return self._reference.encode(texts)
        if self._choice is None:
            self._choice = choose_engine(self._tokenizer, texts[:SAMPLE_TEXTS])
        if self._is_fast:
            some = texts[:: max(1, len(texts) // CHECKED_TEXTS)][:CHECKED_TEXTS]
            difference = find_difference(self._choice.engine, self._reference, some)
            encoded = attempt(self._choice.engine, texts) if difference is None else None
            if encoded is not None and not isinstance(encoded, str):
                return encoded
            self._give_up(difference or str(encoded))
        return self._reference.encode(texts)

    @property
    def _is_fast(self) -> bool:
        return self._choice is not None and not isinstance(self._choice.engine, Reference)

    def _give_up(self, difference: str) -> None:
        name = self._choice.engine.name if self._choice else "the engine"
        warn(f"{name} gives other ids than tokenizers for {difference!r}; using tokenizers from here on")
        self._choice = Choice(self._reference, f"{name} gave other ids for {difference!r}")

    def _refused_by_bytes(
        self,
        batch: TextBatch,
        ids: Ids,
        offsets: Offsets,
        begins: Positions,
        text_begins: Positions,
        written: SpanList,
    ) -> dict[int, RowError]:
        assert self._bytes is not None
        control = np.flatnonzero(self._is_control[ids])
        ends = begins[control] + self._bytes.of_token[ids[control]]
        bad = control[overlapping(begins[control], ends, text_begins, written)]
        refused: dict[int, RowError] = {}
        for token in bad[::-1].tolist():  # the first of a text is kept
            text = int(np.searchsorted(offsets, token, side="right")) - 1
            at = int(begins[token] - text_begins[text])
            refused[text] = self._refusal(int(ids[token]), batch.texts[text], _char_at(batch.texts[text], at))
        return refused

    def _refusal(self, token: int, text: str, char: int) -> RowError:
        name = self._control_names[token]
        near = text[max(0, char - 20) : char + len(name) + 20]
        return RowError("special token in content", f"the row's own text contains '{name}': ...{near!r}...")

    def _encoded_by_reference(self, batch: TextBatch) -> Coded:
        self._choice = self._choice or Choice(self._reference, self._no_bytes)
        self._chars += sum(map(len, batch.texts))
        encodings = self._reference.encodings(batch.texts)
        ids, offsets = flat([encoding.ids for encoding in encodings])
        supervised = np.zeros(len(ids), dtype=np.bool_)
        refused: dict[int, RowError] = {}
        for text, encoding in enumerate(encodings):
            self._place(batch, text, encoding, supervised[offsets[text] : offsets[text + 1]], refused)
        return Coded(ids, offsets, supervised, refused, batch.texts, None, dict(enumerate(encodings)))

    def _place(
        self, batch: TextBatch, text: int, encoding: Any, supervised: Flags, refused: dict[int, RowError]
    ) -> None:
        """Labels and refusals of one text, by the tokenizer's record of its characters."""
        ids = np.array(encoding.ids, dtype=np.int32)
        trained, written = (
            [self._in_chars(batch, text, span) for span in spans]
            for spans in (batch.trained_of(text), batch.written_of(text))
        )
        for span in trained:
            supervised[first_token(encoding, span.begin, len(ids)) : first_token(encoding, span.end, len(ids))] = True
        begins = [span.begin for span in written]
        for at in np.flatnonzero(self._is_control[ids]).tolist():
            begin, end = encoding.token_to_chars(at)
            after = bisect_left(begins, end)
            if after and written[after - 1].end > begin:
                refused[text] = self._refusal(int(ids[at]), batch.texts[text], begin)
                return

    @staticmethod
    def _in_chars(batch: TextBatch, text: int, span: tuple[int, int]) -> Span:
        if batch.unit == "chars":
            return Span(*span)
        return Span(_char_at(batch.texts[text], span[0]), _char_at(batch.texts[text], span[1]))


class _BytesBefore:
    """Bytes of UTF-8 before each character of a text."""

    def __init__(self, text: str) -> None:
        lengths = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        sizes = 1 + (lengths >= 0x80).astype(np.int64) + (lengths >= 0x800) + (lengths >= 0x10000)
        self._before = np.concatenate([[0], np.cumsum(sizes)])

    def __call__(self, char: int) -> int:
        return int(self._before[char])


def _identity(char: int) -> int:
    return char


def _num_bytes(text: str) -> int:
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        found = f"character {error.start + 1} of its text is half of a surrogate pair"
        raise RowError("not Unicode", found) from error


def _char_at(text: str, byte: int) -> int:
    """Number of the character that begins at a byte, or that the byte is a part of."""
    return byte if text.isascii() else len(text.encode()[:byte].decode(errors="ignore"))
