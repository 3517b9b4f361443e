"""What is written is what is read, without a copy; a set is there whole or not at all."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from whet.core.errors import DataError
from whet.data import store
from whet.data.store import Origin, PreferenceSplit, SampleWriter, Split, open_prepared, publish


def write_tokens(folder, samples, train=None, validation=None):
    folder.mkdir()
    with SampleWriter(folder / store.SAMPLES, "tokens") as writer:
        for number, (ids, mask) in enumerate(samples):
            writer.add(
                (np.array(ids, np.int32), np.array(mask, bool)), sum(mask[1:]), Origin(number % 2, 0, number + 1)
            )
    store.write_indices(folder, "train", range(len(samples)) if train is None else train)
    if validation is not None:
        store.write_indices(folder, "validation", validation)
    store.write_manifest(folder, {"datasets": ["a", "b"], "files": [{"path": "a.jsonl", "by_line": True}]})
    return folder


@pytest.fixture
def random_samples():
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 2**31 - 1, n).tolist(), (rng.random(n) < 0.5).tolist()) for n in rng.integers(1, 40, 50)]


@pytest.mark.parametrize("tokens_per_batch", [1, 100, 10**6])
def test_samples_read_as_written_in_any_number_of_record_batches(
    tmp_path, monkeypatch, random_samples, tokens_per_batch
):
    monkeypatch.setattr(store, "TOKENS_PER_RECORD_BATCH", tokens_per_batch)
    split = open_prepared(write_tokens(tmp_path / "set", random_samples)).train
    assert isinstance(split, Split)
    assert len(split) == 50
    for index, (ids, mask) in enumerate(random_samples):
        got_ids, got_mask = split.tokens(index)
        assert (got_ids.dtype, got_mask.dtype) == (np.int32, np.bool_)
        assert (got_ids.tolist(), got_mask.tolist()) == (ids, mask)
    assert split.lengths.tolist() == [len(ids) for ids, _ in random_samples]
    assert split.supervised.tolist() == [sum(mask[1:]) for _, mask in random_samples]
    assert split.source.tolist() == [0, 1] * 25
    assert split.row.tolist() == list(range(1, 51))
    assert split.names == ("a", "b")
    assert split.place(4) == "a.jsonl:5"


def test_ids_are_views_of_the_file(tmp_path, random_samples):
    split = open_prepared(write_tokens(tmp_path / "set", random_samples)).train
    ids, _ = split.tokens(3)
    assert not ids.flags.owndata
    assert not ids.flags.writeable
    assert np.shares_memory(ids, split.tokens(3)[0])


def test_splits_are_choices_of_the_same_samples(tmp_path, random_samples):
    prepared = open_prepared(write_tokens(tmp_path / "set", random_samples, train=[7, 2], validation=[4]))
    assert prepared.train.tokens(0)[0].tolist() == random_samples[7][0]
    assert prepared.train.lengths.tolist() == [len(random_samples[i][0]) for i in (7, 2)]
    assert prepared.validation.tokens(0)[0].tolist() == random_samples[4][0]


def test_a_split_travels_to_another_process(tmp_path, random_samples):
    split = open_prepared(write_tokens(tmp_path / "set", random_samples, train=[5, 1])).train
    again = pickle.loads(pickle.dumps(split))
    assert again.tokens(1)[0].tolist() == random_samples[1][0]
    assert len(pickle.dumps(split)) < 2000


def test_preferences_read_as_written(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with SampleWriter(folder / store.SAMPLES, "preference") as writer:
        writer.add([np.array(ids, np.int32) for ids in ([1, 2], [3], [4, 5, 6])], 4, Origin(0, 0, 1))
        writer.add([np.array(ids, np.int32) for ids in ([7], [8, 9], [])], 2, Origin(0, 0, 2))
    store.write_indices(folder, "train", [0, 1])
    store.write_manifest(folder, {"datasets": ["a"], "files": [{"path": "a.jsonl", "by_line": True}]})
    split = open_prepared(folder).train
    assert isinstance(split, PreferenceSplit)
    assert [[part.tolist() for part in split.pair(i)] for i in (0, 1)] == [[[1, 2], [3], [4, 5, 6]], [[7], [8, 9], []]]
    assert split.lengths.tolist() == [5, 3]


def test_an_empty_set_opens(tmp_path):
    prepared = open_prepared(write_tokens(tmp_path / "set", []))
    assert len(prepared.train) == 0
    assert prepared.train.lengths.tolist() == []


def test_publishing_replaces_an_older_set(tmp_path, random_samples):
    write_tokens(tmp_path / "final", random_samples[:2])
    publish(write_tokens(tmp_path / "new", random_samples), tmp_path / "final")
    assert len(open_prepared(tmp_path / "final").train) == 50
    assert not (tmp_path / "new").exists()


def test_a_broken_set_is_an_error_that_names_the_file(tmp_path, random_samples):
    folder = write_tokens(tmp_path / "set", random_samples)
    (folder / store.SAMPLES).write_bytes((folder / store.SAMPLES).read_bytes()[:100])
    with pytest.raises(DataError, match=r"samples\.arrow: 100 bytes long, [\d,]+ were written -> delete this folder"):
        open_prepared(folder)
    with pytest.raises(DataError, match=r"samples\.arrow: the prepared samples cannot be read .* -> delete this fold"):
        store.Samples(folder / store.SAMPLES)
    (folder / store.MANIFEST).write_text('{"format": 99}')
    with pytest.raises(DataError, match=r"manifest\.json: written in format 99, this version reads 1 -> prepare again"):
        open_prepared(folder)
    with pytest.raises(DataError, match="not a prepared set"):
        open_prepared(tmp_path / "nowhere")
