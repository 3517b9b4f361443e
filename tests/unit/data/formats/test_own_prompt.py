"""A prompt of the user's own: formats are filled with columns, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with

from whet.config import make_config
from whet.config.placeholders import Pieces, pieces
from whet.config.schema import PromptFormat
from whet.core.errors import ConfigError, RowError
from whet.core.types import Document, PreferenceText, Sample, UnpairedText
from whet.data.formats import make_format
from whet.data.templates.traced import Traced


def read(prompt: dict[str, Any], row: dict[str, Any], **keys: Any) -> Sample:
    config = config_with({"type": PromptFormat(**prompt)}, **keys)
    format_ = make_format(config.data.datasets[0], config)
    assert format_.template is None
    return format_.read(row)


def texts(prompt: dict[str, Any], row: dict[str, Any], **keys: Any) -> tuple[str, str]:
    sample = read(prompt, row, **keys)
    assert isinstance(sample, Document)
    assert (sample.add_bos, sample.add_eos) == (True, True)
    before, answer = sample.segments
    assert (before.train, answer.train) == (False, True)
    return str.__str__(before.text), str.__str__(answer.text)


ROW = {"instruction": "I", "input": "N", "output": "O"}


@pytest.mark.parametrize(
    ("prompt", "row", "expected"),
    [
        ({}, ROW, "I N "),
        ({}, {**ROW, "input": ""}, "I "),
        ({}, {**ROW, "system": "S"}, "SI N "),
        ({"system_prompt": "D"}, ROW, "DI N "),
        ({"system_prompt": "D", "system_format": "[{system}]"}, {**ROW, "system": "S"}, "[S]I N "),
        ({"system_format": "[{system}]"}, ROW, "I N "),
        ({"format": "{{{input}}} {instruction}{instruction}"}, ROW, "{N} II"),
        ({"no_input_format": "only"}, {"output": "O"}, "only"),
        ({"format": ""}, ROW, ""),
        ({"field_instruction": "a", "field_input": "b", "field_output": "c"}, {"a": "1", "b": "2", "c": "O"}, "1 2 "),
        ({"format": "{instruction}"}, {**ROW, "instruction": "{input}"}, "{input}"),
    ],
)
def test_a_prompt_is_its_format_filled(prompt: dict[str, Any], row: dict[str, Any], expected: str) -> None:
    assert texts(prompt, row) == (expected, "O")


def test_the_prompt_is_trained_on_inputs() -> None:
    sample = read({}, ROW, train_on_inputs=True)
    assert isinstance(sample, Document)
    assert all(segment.train for segment in sample.segments)


def test_a_rows_own_text_is_marked_and_the_formats_are_not() -> None:
    sample = read({"format": "<s>{instruction}</s>"}, ROW)
    assert isinstance(sample, Document)
    prompt = sample.segments[0].text
    assert isinstance(prompt, Traced)
    assert [(run.begin, run.end) for run in prompt.runs] == [(3, 4)]


def test_pairs_and_judged_answers_are_raw_texts() -> None:
    formats = {"prompt_format": "{system}|{prompt}:", "chosen_format": "+{chosen}", "rejected_format": "-{rejected}"}
    row = {"prompt": "P", "system": "S", "chosen": "C", "rejected": "R"}
    for keys in ({"rl": "dpo"}, {"rl": "orpo"}, {"reward_model": True}):
        assert read(formats, row, **keys) == PreferenceText("S|P:", "+C", "-R")
    assert read({}, row, rl="simpo") == PreferenceText("P", "C", "R")
    named = {"field_prompt": "q", "field_completion": "a", "field_label": "good", "completion_format": " {completion}"}
    assert read(named, {"q": "Q", "a": "A", "good": False}, rl="kto") == UnpairedText("Q", " A", False)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"instruction": "I"}, "missing field", "'output' is not in the row; it has instruction"),
        ({"output": "O"}, "missing field", "'instruction' is not in the row; it has output"),
        ({**ROW, "input": 3}, "wrong type", "'input' is a number, not a string"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read({}, row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def test_a_format_that_cannot_be_filled_is_an_error_of_the_config() -> None:
    with pytest.raises(ConfigError, match=r"format has a place \{inptu\} -> did you mean input\?"):
        read({"format": "{inptu}"}, ROW)
    with pytest.raises(ConfigError, match="a mapping is no type of this method's rows"):
        read({}, ROW, rl="grpo")


def test_an_unknown_key_of_the_mapping_is_told_with_the_nearest() -> None:
    values = {"base_model": "org/m", "learning_rate": 1e-4}
    with pytest.raises(ConfigError, match=r"unknown key 'datasets\[0\].type.fromat' -> did you mean 'format'\?"):
        make_config({**values, "datasets": [{"path": "org/d", "type": {"fromat": "x"}}]})


def test_a_format_is_taken_apart_and_put_together() -> None:
    assert pieces("", []) == Pieces(("",), ())
    assert "".join(pieces("a{x}b{x}{{c}}", ["x"]).fill({"x": "1"})) == "a1b1{c}"
