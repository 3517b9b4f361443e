"""What an unquoted word of YAML stands for, by the rules of YAML 1.2 (core schema).

`no`, `on` and `yes` are text there, `1e-4` is a number. What a key makes of the word is config/fitting.py.
"""

from __future__ import annotations

import math
import re

Scalar = str | int | float | bool | None

_NULL = {"", "~", "null", "Null", "NULL"}
_TRUE = {"true", "True", "TRUE"}
_FALSE = {"false", "False", "FALSE"}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_LONGEST_INTEGER = 3000  # Python reads and writes no numbers of more than 4300 digits; in base 16 there are fewer
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INFINITY = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = {".nan", ".NaN", ".NAN"}


def resolve_scalar(text: str) -> Scalar:
    """The value of an unquoted YAML scalar.

    >>> [resolve_scalar(word) for word in ("1e-4", "1.e-5", "12", "no", "true", "~", "0x10", "1e", "1.2.3")]
    [0.0001, 1e-05, 12, 'no', True, None, 16, '1e', '1.2.3']
    """
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    if len(text) <= _LONGEST_INTEGER and _INTEGER.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    if _FLOAT.fullmatch(text):
        return float(text)
    infinity = _INFINITY.fullmatch(text)
    if infinity:
        return -math.inf if infinity[1] == "-" else math.inf
    return math.nan if text in _NAN else text


def as_number(text: str) -> int | float | None:
    """The number that a quoted word spells ("2e-4", "1_000"), or None."""
    value = resolve_scalar(text.strip().replace("_", ""))
    return None if isinstance(value, bool | str) else value
