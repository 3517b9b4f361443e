"""Text from elsewhere on its way to a terminal: shown, never obeyed."""

from __future__ import annotations

import re
import sys

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, what reorders a line, and halves of characters, which cannot be written."""


def printable(text: str) -> str:
    r"""The text with control characters shown, not obeyed: neither a model nor a row may drive the terminal.

    >>> printable("red \x1b[31m\n"), printable("a\u202eb\ud800")
    ('red ␛[31m\n', 'a‹U+202E›b‹U+D800›')
    """
    return _OBEYED.sub(lambda match: _sign(match[0]), text)


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:  # Unicode keeps a picture of each, and of DEL
        return chr(0x2400 + code)
    return "\u2421" if code < 0xA0 else f"‹U+{code:04X}›"


def write_line(text: str) -> None:
    """A line for a person on standard output."""
    sys.stdout.write(printable(text) + "\n")
