"""Raw text and tokens: nothing is added that was not asked for, and labels that lie are refused."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with
from tests.tiny_tokenizers import tiny_tokenizer

from whet.core.errors import ConfigError, RowError
from whet.core.types import Document, Sample, Segment, Tokens
from whet.data.formats import make_format
from whet.data.sources import locate


def read(kind: str | None, row: dict[str, Any], **options: Any) -> Sample:
    config = config_with({"type": kind, **options})
    return make_format(config.data.datasets[0], config).read(row)


def test_a_completion_is_trained_whole() -> None:
    assert read("completion", {"body": "words"}, field="body") == Document((Segment("words", True),), True, True)


def test_pretrain_is_a_completion_by_another_name() -> None:
    whole = Document((Segment("words", True),), True, True)
    assert read("pretrain", {"text": "words"}) == whole
    assert read("pretrain", {"body": "words"}, text_column="body") == whole


def test_a_prompt_and_its_completion_are_two_texts() -> None:
    sample = read("prompt_completion", {"prompt": "Q", "completion": " A"})
    assert sample == Document((Segment("Q", False), Segment(" A", True)), True, True)


def test_segments_are_taken_as_they_are() -> None:
    segments = [{"label": False, "text": "<s>Q"}, {"label": True, "text": "A</s>"}]
    assert read("input_output", {"segments": segments}) == Document((Segment("<s>Q", False), Segment("A</s>", True)))


def test_tokens_without_labels_are_all_trained() -> None:
    assert read(None, {"input_ids": [5, 6]}) == Tokens([5, 6], [True, True])


def test_labels_say_what_is_trained_and_padding_is_left_out() -> None:
    row = {"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100], "attention_mask": [1, 1, 1, 0]}
    assert read(None, row) == Tokens([5, 6, 7], [False, True, True])


@pytest.mark.parametrize(
    ("kind", "row", "reason", "detail"),
    [
        ("completion", {"text": ""}, "empty text", "'text' is an empty string"),
        ("completion", {"body": "x"}, "missing field", "'text' is not in the row; it has body"),
        ("input_output", {"segments": [3]}, "wrong type", "segment 0 is a number, not an object"),
        (
            "input_output",
            {"segments": [{"label": 1, "text": "x"}]},
            "wrong type",
            "the label of segment 0 is a number, not true or false",
        ),
        ("input_output", {"segments": [{"label": True}]}, "wrong type", "the text of segment 0 is null, not a string"),
        (None, {"input_ids": []}, "empty row", "'input_ids' is an empty list"),
        (None, {"text": "x"}, "missing field", "'input_ids' is not in the row; it has text"),
        (None, {"input_ids": ["a"]}, "wrong type", "'input_ids' holds a string; it is a list of whole numbers"),
        (
            None,
            {"input_ids": [1, 2], "labels": [1]},
            "lengths differ",
            "2 input_ids, 1 labels, attention_mask of 2",
        ),
        (
            None,
            {"input_ids": [1, 2], "labels": [2, -100]},
            "label is not its token",
            "label 0 is 2; it must be -100 or the token's own id, 1 (labels are not shifted)",
        ),
    ],
)
def test_a_bad_row_says_what_is_wrong(kind: str | None, row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read(kind, row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)


def synthetic(tokens: bool = True, **options: Any) -> list[Tokens]:
    config = config_with({"path": "synthetic", "type": "_synthetic", "length": 3, "sequence_length": 50, **options})
    dataset = config.data.datasets[0]
    format_ = make_format(dataset, config, tiny_tokenizer("chatml") if tokens else None)
    return [sample for row in locate(dataset, "").rows() if isinstance(sample := format_.read(row.value), Tokens)]


def test_synthetic_rows_follow_from_their_seed_and_number() -> None:
    rows = synthetic(min_input_id=5, max_input_id=9)
    assert [len(row.input_ids) for row in rows] == [50] * 3
    assert {token for row in rows for token in row.input_ids} == {5, 6, 7, 8}
    assert all(all(row.supervised) for row in rows)
    assert rows == synthetic(min_input_id=5, max_input_id=9, tokens=False)
    assert rows[0].input_ids != rows[1].input_ids
    assert rows != synthetic(min_input_id=5, max_input_id=9, seed=1)


def test_synthetic_ids_are_those_of_the_vocabulary() -> None:
    size = tiny_tokenizer("chatml").vocab_size
    assert max(token for row in synthetic(min_input_id=0, sequence_length=2000) for token in row.input_ids) == size - 1
    with pytest.raises(ConfigError, match="is not below the size of the vocabulary"):
        synthetic(min_input_id=10**6)
