"""The documentation cannot lie: tables equal the code, examples load, rows are read, links lead somewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import Config, load_config, make_config, names
from whet.config.tasks import task_of
from whet.core.errors import RowError
from whet.data.formats import make_format
from whet.data.formats.composed import TYPES as COMPOSED
from whet.data.formats.instruction import TYPES
from whet.data.tokenise import SampleEncoder

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
DATA = REPOSITORY / "docs" / "data.md"
FORMATS = REPOSITORY / "docs" / "formats.md"

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
    values = fragment(block)
    if "pretraining_dataset" in values:
        del least["datasets"]
    return make_config({**least, **values}, check_files=False)


@dataclass(frozen=True)
class Example:
    """Rows of data.md and formats.md with the dataset they are for, and the text that is said to be trained.

    ``code`` is the Python file that the page shows before them.
    """

    yaml: Block
    rows: Block
    trained: str | None
    code: Block | None

    def __str__(self) -> str:
        return str(self.rows)


def examples() -> list[Example]:
    found: list[Example] = []
    yaml: Block | None = None
    code: Block | None = None
    for block in (block for page in (DATA, FORMATS) for block in blocks(page, "yaml", "json", "trained", "python")):
        if block.language == "yaml":
            yaml = block
        elif block.language == "python":
            code = block
        elif block.language == "json":
            assert yaml is not None
            found.append(Example(yaml, block, None, code if ".py:" in yaml.text else None))
        else:
            found[-1] = replace(found[-1], trained=block.text)
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def encoded(example: Example, folder: Path) -> list[Any]:
    """What becomes of the rows: encoded where they are for supervised training or pairs, else the samples."""
    if example.code is not None:
        name = example.code.text.partition("\n")[0].removeprefix("# ")
        (folder / name).write_text(example.code.text, encoding="utf-8")
    config = config_of(example.yaml)
    tokenizer = tiny_tokenizer(config.template.chat_template or "chatml")
    rows = [json.loads(line) for line in example.rows.text.splitlines()]
    dataset = config.data.datasets[0]
    if task_of(config) in ("supervised", "preference"):
        return SampleEncoder(dataset, config, tokenizer).encode_rows(rows)
    format_ = make_format(dataset, config, tokenizer)
    return [format_.read(row) for row in rows]


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
def test_every_row_of_the_data_pages_is_read(example: Example, folder: Path) -> None:
    for sample in encoded(example, folder):
        assert not isinstance(sample, RowError), sample


@pytest.mark.parametrize("example", [each for each in examples() if each.trained is not None], ids=str)
def test_the_data_pages_say_what_is_trained(example: Example, folder: Path) -> None:
    tokenizer = tiny_tokenizer(config_of(example.yaml).template.chat_template or "chatml")
    decoded = [tokenizer.decode(np.asarray(sample.input_ids)[sample.supervised]) for sample in encoded(example, folder)]
    assert "\n".join(decoded) + "\n" == example.trained


def test_every_type_stands_on_the_page_of_types() -> None:
    text = FORMATS.read_text(encoding="utf-8")
    named = {*TYPES, *COMPOSED, *(name for types in names.TYPES.values() for name in types)}
    missing = {name for name in named if f"`{name}`" not in text and f"type: {name}" not in text}
    assert missing <= {"chat_template.default", "prompt_pairs"}  # what no type means


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


def test_the_architecture_names_every_part_and_every_decision() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    package = REPOSITORY / "src" / "whet"
    parts = [f"{path.parent.name}/" for path in package.glob("*/__init__.py")]
    parts += [path.name for path in package.glob("*.py") if not path.name.startswith("__")]
    assert [part for part in sorted(parts) if f"`{part}`" not in text] == []
    decisions = sorted(path.name for path in (REPOSITORY / "docs" / "decisions").iterdir())
    assert [name for name in decisions if f"(decisions/{name})" not in text] == []
    assert [int(name[:4]) for name in decisions] == list(range(1, len(decisions) + 1))


def test_the_architecture_names_no_file_that_is_not_there() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    sources = [path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "src").rglob("*.py")]
    named = set(re.findall(r"[`(, ]([\w/]+\.py)\b", text))
    assert len(named) > 20
    assert [name for name in sorted(named) if not any(f"/{path}".endswith(f"/{name}") for path in sources)] == []
