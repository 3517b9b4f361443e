"""A YAML that cannot be read, or that says a thing twice, is an error with its line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config import load_config
from whet.config.source import parse_yaml
from whet.core.errors import ConfigError, Problem


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(path, environ={})
    return str(error.value).replace(str(path.parent), "F")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "F/my.yaml: the file is empty -> write at least base_model, datasets and learning_rate"),
        (
            b"# only a comment\n",
            "F/my.yaml: the file is empty -> write at least base_model, datasets and learning_rate",
        ),
        (b"- a\n- b\n", "F/my.yaml:1:1: the file holds a list, not keys with values -> write `key: value` lines"),
        (b"hello\n", "F/my.yaml:1:1: the file holds the single value 'hello', not keys with values"),
        (b"a: 1\nb: \xe9t\xe9\n", "F/my.yaml:2: byte 0xe9 is not UTF-8 -> save the file as UTF-8"),
        (b"a: [1, 2\nb: 3\n", "F/my.yaml:2:2: this is not YAML: "),
        (b"a: 'x\n", "F/my.yaml:2:1: this is not YAML: "),
        (b"a:\n\t- x\n", "F/my.yaml:2:1: this is not YAML: "),
        (b"a: b: c\n", "F/my.yaml:1:5: this is not YAML: mapping values are not allowed"),
        (b"a: 1\n---\nb: 2\n", "F/my.yaml:2:1: this is not YAML: "),
        (b"a: *nowhere\n", "F/my.yaml:1:4: this is not YAML: found undefined alias"),
        (b"a: \x00\n", "F/my.yaml: this is not YAML: "),
        (b"a: " + b"[" * 5000, "F/my.yaml: brackets are nested hundreds deep -> close them"),
        (b"base_model: org/m\nseed: " + b"9" * 5000, "F/my.yaml:2:1: seed is inf -> write a whole number"),
    ],
)
def test_an_unreadable_file_names_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_bytes(content)
    assert error_of(path).startswith(message)


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("a: 1")
    (tmp_path / ".hidden.yaml").write_text("a: 1")
    assert error_of(tmp_path / "trian.yaml") == "F/trian.yaml: there is no such file -> did you mean F/train.yaml?"
    assert "YAML files in F are: train.yaml" in error_of(tmp_path / "zzz")
    assert "there is no YAML file" not in error_of(tmp_path / "no" / "x.yaml")
    assert error_of(tmp_path) == f"{tmp_path}: this is a folder -> name a YAML file in it".replace(
        str(tmp_path.parent), "F"
    )


def test_an_address_is_to_be_downloaded() -> None:
    assert error_of(Path("https://host/my.yaml")).endswith(
        "-> download it first; a config is read from this machine alone"
    )


def test_a_key_written_twice_names_both_lines_at_any_depth(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "base_model: org/m\nlearning_rate: 1e-4\nseed: 1\ndatasets:\n  - path: org/d\n    type: alpaca\n"
        "    path: org/e\nspecial_tokens:\n  pad_token: a\n  pad_token: b\nseed: 2\n"
    )
    assert error_of(path).splitlines() == [
        "F/my.yaml:7:5: 'path' is written twice, first on line 5 -> keep one of the two lines",
        "F/my.yaml:10:3: 'pad_token' is written twice, first on line 9 -> keep one of the two lines",
        "F/my.yaml:11:1: 'seed' is written twice, first on line 3 -> keep one of the two lines",
    ]


def test_anchors_and_merges_are_read(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(
        "base_model: org/m\nlearning_rate: 1e-4\ndatasets:\n  - &row {path: org/a, type: alpaca, split: dev}\n"
        "  - <<: *row\n    path: org/b\n  - *row\n"
    )
    rows = load_config(path, environ={}).data.datasets
    assert [(row.path, row.type, row.split) for row in rows] == [
        ("org/a", "alpaca", "dev"),
        ("org/b", "alpaca", "dev"),
        ("org/a", "alpaca", "dev"),
    ]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a: &x [*x]", "an anchor is used inside itself"),
        ("a: !!python/object:os.system x", "the tag tag:yaml.org,2002:python/object:os.system means nothing here"),
        ("a: !mine x", "the tag !mine means nothing here"),
        ("? [a, b]\n: 1", "a key is a list or a mapping"),
        ("<<: 3", "'<<' names something that is not a mapping"),
    ],
)
def test_what_a_config_has_no_use_for_is_refused(text: str, found: str) -> None:
    _, problems = parse_yaml(text, "my.yaml")
    assert [problem.found for problem in problems] == [found]
    assert problems[0].where.startswith("my.yaml:1:")


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=" \n:-[]{}&*!|>'\"#%@,?abc01.\t<", max_size=40))
def test_no_text_causes_anything_but_a_config_error(text: str) -> None:
    problems: tuple[Problem, ...] = ()
    try:
        _, found = parse_yaml(text, "my.yaml")
        problems = tuple(found)
    except ConfigError as error:
        problems = error.problems
    assert all(problem.where.startswith("my.yaml") and problem.fix for problem in problems)
