"""Words of others in Markdown: they are shown, and make no link, no HTML, no heading and no cell of a table."""

from __future__ import annotations

import re

from whet.core.printable import printable

_MEANS_SOMETHING = re.compile(r"[\\`*\[\]<>|&]")


def plain(words: object) -> str:
    r"""The words as text, on one line.

    >>> print(plain("[a](javascript:b) <i>\n# c | d"))
    \[a\](javascript:b) \<i\> # c \| d
    """
    return _MEANS_SOMETHING.sub(r"\\\g<0>", _on_one_line(words))


def code(words: object, *, in_table: bool = False) -> str:
    r"""The words as code, on one line; a bar is escaped where it would end the cell of a table.

    >>> print(code("my.jsonl"), code("a`b"), code("`"), code("a|b", in_table=True))
    `my.jsonl` ``a`b`` `` ` `` `a\|b`
    """
    text = _on_one_line(words) or " "
    quotes = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    text = text.replace("|", "\\|") if in_table else text
    return f"{quotes}{space}{text}{space}{quotes}"


def _on_one_line(words: object) -> str:
    return re.sub(r"\s*\n\s*", " ", printable(str(words)))
