"""The page as a file: it asks for nothing, runs nothing but its own script, and its colours can be read."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser
from importlib import resources

import pytest
from tests.unit.reports.inspections import a_row, a_text, an_inspection, piece

from whet.reports.page import page

NASTY = "</script><script>x</script><img src=x onerror=y>{{style}}"


def a_page() -> str:
    return page(an_inspection([a_row(a_text([piece(1, NASTY)], []))], name=NASTY))


class Elements(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)

    def handle_endtag(self, tag: str) -> None:
        self._open = ""


def test_the_page_asks_for_no_other_file() -> None:
    elements = Elements(a_page())
    addresses = [values[name] for _, values in elements.found for name in ("src", "href", "action") if name in values]
    assert addresses == ["data:,"]
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", a_page())


def test_the_policy_allows_the_pages_own_style_and_script_alone() -> None:
    elements = Elements(a_page())
    policy = next(
        values["content"] for tag, values in elements.found if values.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy is not None
    assert policy.startswith("default-src 'none';")
    for tag, text in (("style", "".join(elements.texts["style"])), ("script", elements.texts["script"][-1])):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "unsafe" not in policy


def test_nothing_in_a_row_or_a_name_becomes_an_element() -> None:
    tags = [tag for tag, _ in Elements(a_page()).found]
    assert tags.count("script") == 2
    assert "img" not in tags


CSS = resources.files("whet.reports").joinpath("page_files", "inspect.css").read_text(encoding="utf-8")
#: Every ink with every ground that it stands on.
PAIRS = [
    (ground, ink)
    for grounds, inks in (
        ("paper ground raised", "ink muted"),
        ("paper", "accent mask-ink"),
        ("accent-ground", "ink"),
        ("sup sup-odd", "sup-ink"),
        ("odd", "mask-ink"),
        ("spec", "spec-ink"),
        ("paper ground", "cut-ink"),
        ("warn", "warn-ink"),
        ("hit", "hit-ink"),
    )
    for ground in grounds.split()
    for ink in inks.split()
]


def themes() -> dict[str, dict[str, str]]:
    """The colours of each theme; the dark ones stand twice, for the system's wish and for the switch."""
    blocks = re.findall(r":root[^{]*\{([^}]*)\}", CSS)
    found = [dict(re.findall(r"--([\w-]+): (#\w{6})", block)) for block in blocks]
    light, dark, switched = found
    assert dark == switched
    return {"light": light, "dark": dark}


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("ground", "ink"), PAIRS)
def test_text_can_be_read(theme: str, ground: str, ink: str) -> None:
    colours = themes()[theme]
    low, high = sorted((luminance(colours[ground]), luminance(colours[ink])))
    assert (high + 0.05) / (low + 0.05) >= 4.5
