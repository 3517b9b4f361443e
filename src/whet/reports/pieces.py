"""Token ids -> pieces of text: one piece a token, or a group of tokens where a character takes several.

A token stands for bytes, and the bytes of neighbours may be one character. So bytes are what is asked of a tokenizer
here, and characters are found in them; a single token decoded alone would show a replacement character instead.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring tokens and what they stand for.

    Attributes:
        ids: of one token; of several where they are parts of one character.
        text: replacement characters stand for bytes that are no whole character.
        parts: bytes of each token.
        special: it is a token that was added to the vocabulary, such as a stop token.
    """

    ids: tuple[int, ...]
    text: str
    parts: tuple[bytes, ...]
    special: bool = False


class TokenTexts:
    """Says what the tokens of one tokenizer stand for; equal groups of tokens are the same `Piece`.

    Args:
        tokenizer: a fast tokenizer of transformers.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added: dict[int, str] = {
            number: token.content for number, token in tokenizer.added_tokens_decoder.items() if token.content.strip()
        }
        self._is_byte_level = "ByteLevel" in _decoder_types(tokenizer)
        self._anchor = tokenizer("a", add_special_tokens=False)["input_ids"][-1:]
        self._anchor_text = self._decode(self._anchor)
        self._bytes: dict[int, bytes] = {}
        self._pieces: dict[tuple[int, ...], Piece] = {}

    def pieces(self, ids: Sequence[int], borders: Collection[int] = ()) -> list[Piece]:
        """The text of these ids, in pieces.

        Args:
            ids: token ids.
            borders: positions at which a new piece begins even inside a character.
        """
        found: list[Piece] = []
        begin, pending = 0, b""
        for at, token in enumerate(ids):
            data = self.bytes_of(token)
            if pending and (at in borders or not _may_go_on(pending + data)):
                found.append(self._piece(tuple(ids[begin:at])))
                begin, pending = at, b""
            pending += data
            if _is_whole(pending):
                found.append(self._piece(tuple(ids[begin : at + 1])))
                begin, pending = at + 1, b""
        if begin < len(ids):
            found.append(self._piece(tuple(ids[begin:])))
        return found

    def bytes_of(self, token: int) -> bytes:
        """What a token adds to a text, as UTF-8; of a part of a character, its bytes."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self._ask(token)
        return known

    def _piece(self, ids: tuple[int, ...]) -> Piece:
        piece = self._pieces.get(ids)
        if piece is None:
            parts = tuple(map(self.bytes_of, ids))
            text = b"".join(parts).decode("utf-8", "replace")
            piece = self._pieces[ids] = Piece(ids, text, parts, len(ids) == 1 and ids[0] in self._added)
        return piece

    def _ask(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        name = self._tokenizer.convert_ids_to_tokens(token)
        if name is None:
            return b""
        if self._is_byte_level and all(character in _byte_alphabet() for character in name):
            return bytes(map(_byte_alphabet().__getitem__, name))
        if one := _BYTE_TOKEN.fullmatch(name):
            return bytes([int(one[1], 16)])
        return self._after_anchor(token).encode()

    def _after_anchor(self, token: int) -> str:
        """Its text behind another token: alone, some decoders take away a leading space."""
        both = self._decode([*self._anchor, token])
        return both[len(self._anchor_text) :] if both.startswith(self._anchor_text) else self._decode([token])

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def visible(text: str) -> str:
    """The text with every character that a terminal would obey, or that reorders text, as a visible sign.

    >>> visible("a\\x00\\x1b\\u202eb")
    'a‹NUL›‹ESC›‹U+202E›b'
    """
    return _UNSEEN.sub(lambda match: _sign(match[0]), text)


_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff]")


#: The abbreviations of ASCII: a font that lacks pictures of control characters has these.
# fmt: off
_ASCII = (
    "NUL", "SOH", "STX", "ETX", "EOT", "ENQ", "ACK", "BEL", "BS", "HT", "LF", "VT", "FF", "CR", "SO", "SI",
    "DLE", "DC1", "DC2", "DC3", "DC4", "NAK", "SYN", "ETB", "CAN", "EM", "SUB", "ESC", "FS", "GS", "RS", "US",
)
# fmt: on


def _sign(character: str) -> str:
    code = ord(character)
    if code == 0x7F:
        return "‹DEL›"
    return f"‹{_ASCII[code]}›" if code < 0x20 else f"‹U+{code:04X}›"


def _is_whole(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _may_go_on(data: bytes) -> bool:
    """Whether these bytes are characters, of which the last may lack some bytes."""
    try:
        codecs.utf_8_decode(data, "strict", False)
    except UnicodeDecodeError:
        return False
    return True


def _decoder_types(tokenizer: Any) -> set[str]:
    """Names of the steps of a tokenizer's decoder."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return set()
    state = json.loads(decoder.__getstate__())
    return {str(step.get("type")) for step in (state, *state.get("decoders", ()))}


@cache
def _byte_alphabet() -> dict[str, int]:
    """The characters with which byte-level vocabularies write bytes (Radford et al., 2019: GPT-2's encoder)."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}
