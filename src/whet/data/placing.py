"""Which tokens of a text lie in given ranges of it.

A token lies where its first character does. With byte-level BPE each token stands for a known number of bytes, so the
place of every token of many texts is one cumulative sum (`ByteLengths`). Other tokenizers are asked, text by text,
through the record that `tokenizers` keeps of its work (`first_token`).

Legend: T tokens of all texts together, N texts, S spans.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from whet.data.engines import Ids, Offsets

Flags = npt.NDArray[np.bool_]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SpanList:
    """Ranges of characters, or of bytes, in numbered texts: [begins[s], ends[s]) of text texts[s].

    Attributes:
        texts, begins, ends: int64[S].
    """

    texts: Positions
    begins: Positions
    ends: Positions

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int, int]]) -> SpanList:
        """From triples (text, begin, end)."""
        columns = np.array(spans, dtype=np.int64).reshape(-1, 3).T
        return cls(columns[0], columns[1], columns[2])

    @classmethod
    def joined(cls, parts: Sequence[SpanList]) -> SpanList:
        empty = np.zeros(0, np.int64)
        texts, begins, ends = (
            np.concatenate([empty, *(getattr(part, name) for part in parts)]) for name in ("texts", "begins", "ends")
        )
        return cls(texts, begins, ends)

    def without(self, texts: npt.NDArray[np.integer]) -> SpanList:
        """The spans of all other texts."""
        kept = ~np.isin(self.texts, texts)
        return SpanList(self.texts[kept], self.begins[kept], self.ends[kept])

    def by_text(self, num_texts: int) -> list[list[tuple[int, int]]]:
        """The spans of each text, in order."""
        order = np.lexsort((self.begins, self.texts))
        pairs = list(zip(self.begins[order].tolist(), self.ends[order].tolist(), strict=True))
        borders = np.searchsorted(self.texts[order], np.arange(num_texts + 1)).tolist()
        return [pairs[begin:end] for begin, end in pairwise(borders)]


@dataclass(frozen=True, eq=False)
class ByteLengths:
    """The arithmetic of a byte-level BPE tokenizer.

    Attributes:
        of_token: int32[V], bytes of UTF-8 that each token stands for; -1 for ids that are no token.
        normalizer: Unicode form that the tokenizer brings texts into first ("NFC"), or None.
    """

    of_token: npt.NDArray[np.int32]
    normalizer: str | None

    def borders(self, ids: Ids) -> Positions:
        """int64[T + 1]: bytes of all texts before each token, and in all."""
        borders = np.zeros(len(ids) + 1, dtype=np.int64)
        np.cumsum(self.of_token[ids], out=borders[1:])
        return borders

    def unsure(self, texts: Sequence[str], num_bytes: Positions, borders: Positions, offsets: Offsets) -> Positions:
        """Numbers of the texts whose tokens do not add up to them, or that the tokenizer normalises.

        Args:
            num_bytes: int64[N], bytes of each text.
            borders: of the texts' tokens, from `borders`.
        """
        wrong = np.diff(borders[offsets]) != num_bytes
        if self.normalizer is not None:
            form: Any = self.normalizer
            for number, text in enumerate(texts):
                if not text.isascii() and not unicodedata.is_normalized(form, text):
                    wrong[number] = True
        found: Positions = np.flatnonzero(wrong)
        return found


def byte_lengths(tokenizer: Any) -> ByteLengths | str:
    """The arithmetic of a tokenizer, or why it has none."""
    backend = tokenizer.backend_tokenizer
    model = backend.model
    if type(model).__name__ != "BPE" or model.byte_fallback:
        return f"its tokens are not bytes ({type(model).__name__})"
    steps = _steps(_state(backend.pre_tokenizer), "pretokenizers")
    byte_level = [step for step in steps if step["type"] == "ByteLevel"]
    if not byte_level or any(step.get("add_prefix_space") for step in byte_level):
        return "its tokens are not bytes" if not byte_level else "it puts a space before a text"
    normalizers = [step["type"] for step in _steps(_state(backend.normalizer), "normalizers")]
    if normalizers not in ([], ["NFC"]):
        return f"it rewrites texts ({', '.join(normalizers)})"
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=False)
    lengths = np.full(max([*vocabulary.values(), *added, -1]) + 1, -1, dtype=np.int32)
    lengths[list(vocabulary.values())] = list(map(len, vocabulary))
    for number, content in added.items():
        lengths[number] = len(content.encode())
    return ByteLengths(lengths, normalizers[0] if normalizers else None)


def _state(component: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as ``tokenizer.json`` has it."""
    return None if component is None else json.loads(component.__getstate__())


def _steps(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """A pre-tokenizer or normalizer as the list of what it does."""
    if step is None:
        return []
    return [inner for part in step[key] for inner in _steps(part, key)] if step["type"] == "Sequence" else [step]


def mark(begins: Positions, text_begins: Positions, spans: SpanList) -> Flags:
    """bool[T]: whether each token begins in one of the spans.

    Args:
        begins: int64[T], place of each token's beginning, counted through all texts.
        text_begins: int64[N], place of each text's beginning, counted likewise.
        spans: none that overlap.
    """
    base = text_begins[spans.texts]
    changes = np.zeros(len(begins) + 1, dtype=np.int8)
    first = np.searchsorted(begins, base + spans.begins)
    last = np.searchsorted(begins, base + spans.ends)
    np.add.at(changes, first, 1)
    np.add.at(changes, last, -1)
    flags: Flags = np.cumsum(changes[:-1], dtype=np.int8).astype(np.bool_)
    return flags


def overlapping(begins: Positions, ends: Positions, text_begins: Positions, spans: SpanList) -> npt.NDArray[np.bool_]:
    """bool[K]: whether each of K ranges has a character in one of the spans; places as for `mark`."""
    base = text_begins[spans.texts]
    order = np.argsort(base + spans.begins, kind="stable")
    span_begins, span_ends = (base + spans.begins)[order], (base + spans.ends)[order]
    before = np.searchsorted(span_begins, ends)  # spans that begin before the range ends
    last_end = np.maximum.accumulate(np.concatenate([[-1], span_ends]))
    found: npt.NDArray[np.bool_] = last_end[before] > begins
    return found


def first_token(encoding: Any, char: int, num_tokens: int) -> int:
    """Number of the first token whose first character is ``char`` or comes after it.

    Some tokenizers do not count the white space of a token among its characters; it belongs to the token all the
    same, so a token begins where the one before it ends.
    """
    if char == 0:
        return 0
    token = encoding.char_to_token(char)
    at = char
    while token is None:
        at += 1
        if at > char + 4096 or at >= _end(encoding, num_tokens):
            return _after(encoding, char, num_tokens)
        token = encoding.char_to_token(at)
    begin = encoding.token_to_chars(token)[0]
    if token and begin > (previous := encoding.token_to_chars(token - 1)[1]):
        begin = previous
    return int(token) if begin >= char else int(token) + 1


def _end(encoding: Any, num_tokens: int) -> int:
    return int(encoding.token_to_chars(num_tokens - 1)[1]) if num_tokens else 0


def _after(encoding: Any, char: int, num_tokens: int) -> int:
    """As `first_token`, by bisection over the tokens' ends; for a character that no token stands for."""
    low, high = 0, num_tokens
    while low < high:
        middle = (low + high) // 2
        if encoding.token_to_chars(middle)[1] <= char:
            low = middle + 1
        else:
            high = middle
    return low
