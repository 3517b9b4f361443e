"""The two layouts of a micro-batch hold the same tokens and the same targets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.batch import IGNORED, flatten, pad


class Listed:
    """Samples in memory."""

    def __init__(self, *samples):
        self.samples = [(np.array(ids, np.int32), np.array(mask, bool)) for ids, mask in samples]

    def tokens(self, index):
        return self.samples[index]


THREE = Listed(([1, 2, 3], [1, 1, 1]), ([4, 5], [0, 1]), ([6, 7, 8, 9], [0, 0, 1, 1]))
samples = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 2**9)), min_size=1, max_size=6).map(
    lambda shapes: Listed(
        *(
            (range(10 * n, 10 * n + length), [bits >> k & 1 for k in range(length)])
            for n, (length, bits) in enumerate(shapes)
        )
    )
)


def test_flatten_writes_documents_behind_each_other():
    batch = flatten(THREE, [np.array([2, 0]), np.array([1])])
    assert batch["input_ids"].tolist() == [[6, 7, 8, 9, 1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [[-100, -100, 8, 9, -100, 2, 3, -100, 5]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 0, 1, 2, 0, 1]]
    assert batch["cu_seq_lens_q"].tolist() == batch["cu_seq_lens_k"].tolist() == [0, 4, 7, 9]
    assert (batch["max_length_q"], batch["max_length_k"]) == (4, 4)
    assert batch["example_ids"].tolist() == [2, 0, 1]
    assert batch["num_supervised"] == 5


def test_dtypes_are_those_of_the_contract():
    batch = flatten(THREE, [[0]])
    dtypes = {name: str(value.dtype) for name, value in batch.items() if hasattr(value, "dtype")}
    assert dtypes == dict.fromkeys(
        ["input_ids", "labels", "position_ids", "example_ids"], "torch.int64"
    ) | dict.fromkeys(["cu_seq_lens_q", "cu_seq_lens_k"], "torch.int32")


def test_padding_is_documents_of_its_own_without_labels():
    batch = flatten(THREE, [[1, 0]], pad_to=11, pad_token_id=99)
    assert batch["input_ids"].tolist() == [[4, 5, 1, 2, 3, 99, 99, 99, 99, 99, 99]]
    assert batch["labels"][0, 5:].tolist() == [IGNORED] * 6
    assert batch["cu_seq_lens_q"].tolist() == [0, 2, 5, 8, 11]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1, 2, 0, 1, 2, 0, 1, 2]]
    assert batch["max_length_q"] == 3
    assert batch["example_ids"].tolist() == [1, 0]


def test_padding_to_a_multiple():
    assert flatten(THREE, [[1, 0]], pad_to_multiple_of=8)["cu_seq_lens_q"].tolist() == [0, 2, 5, 8]
    assert pad(THREE, [[1, 0]], pad_to_multiple_of=8)["input_ids"].shape == (2, 8)


def test_pad_gives_each_sample_its_line():
    batch = pad(THREE, [[1], [2]], pad_token_id=99)
    assert batch["input_ids"].tolist() == [[4, 5, 99, 99], [6, 7, 8, 9]]
    assert batch["labels"].tolist() == [[-100, 5, -100, -100], [-100, -100, 8, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["num_supervised"] == 3


@pytest.mark.parametrize("layout", [flatten, pad])
@pytest.mark.parametrize("rows", [[], [np.zeros(0, np.int64)]])
def test_no_sample_gives_a_batch_that_a_model_can_run_and_that_counts_nothing(layout, rows):
    batch = layout(THREE, rows, pad_token_id=7)
    assert batch["input_ids"].tolist() == [[7]]
    assert batch["labels"].tolist() == [[IGNORED]]
    assert batch["num_supervised"] == 0
    assert batch["example_ids"].tolist() == []
    assert batch.get("cu_seq_lens_q", batch.get("attention_mask")).ravel().tolist() in ([0, 1], [1])


@given(samples)
def test_both_layouts_have_the_same_targets_and_never_a_document_s_first_token(listed):
    rows = [[index] for index in range(len(listed.samples))]
    flat, padded = flatten(listed, rows), pad(listed, rows)
    expected = [i for ids, mask in listed.samples for i in ids[1:][mask[1:]].tolist()]
    for batch in (flat, padded):
        assert batch["labels"][batch["labels"] != IGNORED].tolist() == expected
        assert batch["num_supervised"] == len(expected)
