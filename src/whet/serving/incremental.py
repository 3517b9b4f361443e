"""Text from token ids that arrive one at a time."""

from __future__ import annotations

from typing import Any

# What a decoder writes for the bytes of a character whose other bytes are still to come.
_UNFINISHED = "\ufffd"


class IncrementalText:
    """Says after each token what it adds to the text; the pieces joined are ``decode`` of all ids.

    Each step decodes a window of ids twice, with and without the newest, and gives the difference: a token's text
    depends on its neighbour (leading spaces, bytes of one character), but not on those further back. The cost of a
    token does not grow with the answer.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._window = 0
        self._said = 0

    def add(self, token: int) -> str:
        """The text that is certain now and was not before; empty while a character is unfinished."""
        self._ids.append(token)
        before, now = self._decode(self._window, self._said), self._decode(self._window, len(self._ids))
        if now.endswith(_UNFINISHED) or len(now) <= len(before):
            return ""
        self._window, self._said = self._said, len(self._ids)
        return now[len(before) :]

    def rest(self) -> str:
        """What is left when no more tokens come: the bytes of a character that was never finished."""
        before, now = self._decode(self._window, self._said), self._decode(self._window, len(self._ids))
        self._window = self._said = len(self._ids)
        return now[len(before) :]

    def _decode(self, begin: int, end: int) -> str:
        return str(self._tokenizer.decode(self._ids[begin:end], skip_special_tokens=True))
