"""The documentation cannot lie: tables equal the code, examples load, rows are read, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import Config, load_config, make_config
from whet.data.formats.instruction import TYPES
from whet.data.tokenise import Encoded, EncodedPreference, SampleEncoder

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
DATA = REPOSITORY / "docs" / "data.md"

_BLOCK = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    r"(?<!\!)\[[^\]]*\]\((?P<target>[^)\s]+)\)|src=\"(?P<source>[^\"]+)\"|!\[[^\]]*\]\((?P<image>[^)\s]+)\)"
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path, *languages: str) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(text):
        if match["language"] in languages:
            yield Block(page, match["language"], match["text"], text.count("\n", 0, match.start()) + 1)


YAMLS = [block for page in PAGES for block in blocks(page, "yaml")]


def fragment(block: Block) -> dict[str, Any]:
    values: dict[str, Any] = YAML(typ="safe").load(StringIO(block.text))
    return values


def config_of(block: Block) -> Config:
    """The block as a config; what a fragment leaves out is put beside it."""
    least = {
        "base_model": "some/model",
        "learning_rate": 1e-4,
        "datasets": [{"path": "a.jsonl", "type": "chat_template"}],
    }
    return make_config({**least, **fragment(block)}, check_files=False)


@dataclass(frozen=True)
class Example:
    """Rows of data.md with the dataset they are for, and the text that is said to be trained."""

    yaml: Block
    rows: Block
    trained: str | None

    def __str__(self) -> str:
        return str(self.rows)


def examples() -> list[Example]:
    found: list[Example] = []
    yaml: Block | None = None
    for block in blocks(DATA, "yaml", "json", "trained"):
        if block.language == "yaml":
            yaml = block
        elif block.language == "json":
            assert yaml is not None
            found.append(Example(yaml, block, None))
        else:
            found[-1] = Example(found[-1].yaml, found[-1].rows, block.text)
    return found


def encoded(example: Example) -> list[Any]:
    config = config_of(example.yaml)
    tokenizer = tiny_tokenizer(config.template.chat_template or "chatml")
    rows = [json.loads(line) for line in example.rows.text.splitlines()]
    return SampleEncoder(config.data.datasets[0], config, tokenizer).encode_rows(rows)


def script(name: str) -> Iterator[ModuleType]:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture(scope="module")
def make_tables() -> Iterator[ModuleType]:
    yield from script("make_tables")


@pytest.fixture(scope="module")
def make_picture() -> Iterator[ModuleType]:
    yield from script("make_picture")


def test_generated_pages_are_up_to_date(make_tables: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_tables.main(["--check"]) == 0, capsys.readouterr().err


def test_an_outdated_page_is_named(
    make_tables: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make_tables, "performance", lambda: "other")
    assert make_tables.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/performance.md is out of date: run `make docs`\n"


def test_a_result_of_a_benchmark_gets_a_row(
    make_tables: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = {"name": "train", "machine": "M, 2 cores", "versions": {"torch": "2.13.0"}, "ours": 1234.5, "peer": 500.0}
    (tmp_path / "train.json").write_text(json.dumps({**result, "ratio": 2.469, "goal": "a|b", "unit": "tokens/s"}))
    monkeypatch.setattr(make_tables, "RESULTS", tmp_path)
    page = make_tables.performance()
    assert "| [train](../benchmarks/train.py) | 1,234 tokens/s | 500 tokens/s | 2.47 | a\\|b |" in page
    assert "On M, 2 cores; torch 2.13.0." in page


def test_every_key_has_its_line(make_tables: ModuleType) -> None:
    from whet.config.known_keys import every_name
    from whet.config.schema import fields

    page = make_tables.config_keys()
    for key in {*fields(), *every_name()}:
        assert re.search(rf"`{key}[`:]", page), key


@pytest.mark.parametrize("block", YAMLS, ids=str)
def test_every_yaml_block_loads(block: Block, tmp_path: Path) -> None:
    if "base_model" in fragment(block):
        file = tmp_path / "my.yaml"
        file.write_text(block.text, encoding="utf-8")
        config = load_config(file, environ={}, check_files=False)
    else:
        config = config_of(block)
    assert not config.warnings


def test_there_are_whole_configs_to_copy() -> None:
    pages = {block.page.name for block in YAMLS if "base_model" in fragment(block)}
    assert {"README.md", "getting-started.md", "training.md"} <= pages


@pytest.mark.parametrize("example", examples(), ids=str)
def test_every_row_of_the_data_page_is_read(example: Example) -> None:
    for sample in encoded(example):
        assert isinstance(sample, Encoded | EncodedPreference), sample


@pytest.mark.parametrize("example", [each for each in examples() if each.trained is not None], ids=str)
def test_the_data_page_says_what_is_trained(example: Example) -> None:
    tokenizer = tiny_tokenizer(config_of(example.yaml).template.chat_template or "chatml")
    decoded = [tokenizer.decode(np.asarray(sample.input_ids)[sample.supervised]) for sample in encoded(example)]
    assert "\n".join(decoded) + "\n" == example.trained


def test_every_type_stands_on_the_data_page(make_tables: ModuleType) -> None:
    text = DATA.read_text(encoding="utf-8")
    named = {
        *make_tables.supervised_types(),
        *TYPES,
        *make_tables.names.DATASET_TYPES,
        *make_tables.names.PREFERENCE_TYPES,
    }
    missing = {name for name in named if f"`{name}`" not in text} - {"chat_template.default", "prompt_pairs"}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = _BLOCK.sub("", page.read_text(encoding="utf-8"))
    for match in _LINK.finditer(text):
        target = match["target"] or match["source"] or match["image"]
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page.name}: {target}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _BLOCK.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_picture_is_the_screen_and_the_same_screen_the_same_picture(make_picture: ModuleType) -> None:
    screen = make_picture.tidied(
        f"$ whet train a.yaml; echo '--'' x'\n\x1b[36mstep 3/12\x1b[0m\n{make_picture.END}\n$\n\n"
    )
    assert screen == "$ whet train a.yaml\n\x1b[36mstep 3/12\x1b[0m"
    assert make_picture.progress(screen) == 0.25
    assert make_picture.progress("") == 0
    picture = make_picture.as_svg(screen, "whet train a.yaml")
    assert picture == make_picture.as_svg(screen, "whet train a.yaml")
    assert "step&#160;3/12" in picture
    assert "#39c5cf" in picture  # the theme's cyan
