"""Whatever is in a config or in a row: a Config or a ConfigError, a sample or a counted refusal, and never another end.

A few cases in `make test`, the same ones each time; many new ones in `make survive` (``SURVIVE=all``). Templates
are fuzzed in tests/unit/core/test_sandbox.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.configs import config_with
from tests.contract.test_formats import EVERY_FORMAT, METHODS
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import Config, load_config, make_config
from whet.config.schema import fields
from whet.config.tasks import Task
from whet.core.errors import ConfigError, DataError, Problem, RowError
from whet.data.formats import make_format
from whet.data.readers import BadRow, parse_line
from whet.data.tokenise import SampleEncoder

IS_LONG = os.environ.get("SURVIVE") == "all"
CONFIGS = sorted((Path(__file__).parents[1] / "data" / "configs").glob("*.y*ml"))
TEXTS = [path.read_text() for path in CONFIGS]


def few(examples: int) -> settings:
    """So many examples, always the same ones; fifty times as many new ones in a long run."""
    return settings(
        max_examples=examples * (50 if IS_LONG else 1),
        deadline=None,
        derandomize=not IS_LONG,
        suppress_health_check=list(HealthCheck),
    )


HARD_TEXTS = st.sampled_from(
    [
        *(
            "",
            " ",
            "\0",
            "\ud800",
            "\u202e",
            "é",
            "😀" * 50,
            "<|im_end|>",
            "<s>",
            "{{ 7 }}",
            "{% for x in y %}",
            "%s",
            "{0}",
        ),
        *("null", "true", "1e999", "-0", "0x" + "f" * 2990, "9" * 4400, "~", "*a", "&a b", "!!python/object:x", "<<"),
        *("../../x", "/dev/zero", "C:\\x", "http://u:p@h/x?sig=1", "a" * 5000, "[" * 300, '{"a":' * 300, "\n\n", "\t"),
    ]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.text(max_size=8),
    HARD_TEXTS,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | HARD_TEXTS, inner, max_size=3),
    max_leaves=6,
)
KEYS = st.sampled_from(sorted(fields())) | st.text(max_size=6) | HARD_TEXTS


def judge(load: Callable[[], Config]) -> None:
    """A config, or problems that say what to do."""
    problems: tuple[Problem, ...] = ()
    try:
        assert isinstance(load(), Config)
    except ConfigError as error:
        problems = error.problems or (Problem("", "", ""),)
    assert all(problem.found and problem.fix for problem in problems)


def mutated(text: str, data: st.DataObject) -> str:
    """The text with one line of it changed, doubled, cut or replaced."""
    lines = text.splitlines(keepends=True) or [""]
    at = data.draw(st.integers(0, len(lines) - 1))
    line = lines[at]
    cut = data.draw(st.integers(0, len(line)))
    key, head, tail = line.partition(":")[0], line[:cut], line[cut:]
    new = data.draw(
        st.one_of(
            SCALARS.map(lambda value: f"{key}: {value}\n"),
            st.sampled_from(["", line * 2, head, f"{head}\0{tail}", f"  {line}", line.lstrip()]),
            HARD_TEXTS.map(lambda hard: f"{head}{hard}{tail}"),
            st.sampled_from(["a: &a [*a]\n", "<<: *x\n", "? [1]\n", "---\n", "...\n", "%YAML 9.9\n", "'\n", "- x\n"]),
        )
    )
    return "".join([*lines[:at], new, *lines[at + 1 :]])


@few(40)
@given(text=st.sampled_from(TEXTS), changes=st.integers(1, 3), data=st.data())
def test_a_valid_config_with_anything_done_to_its_text(
    text: str, changes: int, data: st.DataObject, tmp_path: Path
) -> None:
    for _ in range(changes):
        text = mutated(text, data)
    (tmp_path / "my.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    judge(lambda: load_config(tmp_path / "my.yaml", environ={}))


@few(40)
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_as_a_config(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_bytes(content)
    judge(lambda: load_config(tmp_path / "my.yaml", environ={}))


@few(60)
@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_tree_of_values_as_a_config(values: dict[str, Any]) -> None:
    base = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [{"path": "org/d", "type": "alpaca"}]}
    judge(lambda: make_config({**base, **values}))


@few(80)
@given(st.sampled_from(EVERY_FORMAT), st.data())
def test_any_row_for_any_format(entry: tuple[Task, str, dict[str, Any]], data: st.DataObject) -> None:
    """Not only near its own shape (tests/contract/test_formats.py): anything at all, through to tokens."""
    task, name, row = entry
    given_row = data.draw(
        st.dictionaries(st.sampled_from([*row, "messages", "text", "tools", "x"]), VALUES, max_size=4)
    )
    config = config_with({"type": name, "max_input_id": 200, "sequence_length": 8}, **METHODS[task])
    try:
        if task == "supervised":
            encoder = SampleEncoder(config.data.datasets[0], config, tiny_tokenizer("chatml"))
            (outcome,) = encoder.encode_rows([{**row, **given_row}])
            assert outcome is not None
        else:
            make_format(config.data.datasets[0], config).read({**row, **given_row})
    except (RowError, DataError):
        pass


@few(80)
@given(
    st.binary(max_size=40) | VALUES.map(lambda value: repr(value).encode("utf-8", "surrogatepass")), st.integers(1, 2)
)
def test_any_bytes_as_a_line_of_json(line: bytes, number: int) -> None:
    value = parse_line(line, number)
    assert isinstance(value, dict | BadRow)
