"""The page: template, style, script and data in one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from importlib import resources

from whet.reports.inspection import Inspection
from whet.reports.payload import as_json

#: One script, in this order.
_SCRIPTS = ("inspect.js", "tokens.js", "rows.js", "packs.js", "figures.js", "start.js")
_PART = re.compile(r"\{\{(\w+)\}\}")


def page(inspection: Inspection) -> str:
    """One HTML document.

    Its content security policy names the hashes of its own style and script and allows nothing else, so that no row,
    whatever it holds, can run or fetch anything.
    """
    style, script = _file("inspect.css"), "\n".join(map(_file, _SCRIPTS))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; img-src data:; base-uri 'none'"
    )
    parts = {
        "title": html.escape(f"{inspection.name}: whet inspect"),
        "policy": html.escape(policy),
        "style": style,
        "script": script,
        "data": as_json(inspection),
    }
    return _PART.sub(lambda match: parts[match[1]], _file("inspect.html"))


def _file(name: str) -> str:
    return resources.files("whet.reports").joinpath("page_files", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
