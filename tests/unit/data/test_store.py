"""What is written is what is read, without a copy; a set is there whole or not at all."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tests.tiny_training import write_samples

from whet.core.disk import sha256
from whet.core.errors import DataError
from whet.data import store
from whet.data.samples import (
    Encoded,
    EncodedPreference,
    EncodedPrompt,
    EncodedSample,
    EncodedStepwise,
    EncodedUnpaired,
)
from whet.data.store import (
    PreferenceSplit,
    PreparedSet,
    PromptSplit,
    Split,
    StepwiseSplit,
    UnpairedSplit,
    number_columns,
    open_prepared,
    publish,
    read_index,
    write_index,
    write_indices,
    write_manifest,
)


def ids(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.bool_)


def random_samples(num: int = 50) -> list[EncodedSample]:
    rng = np.random.default_rng(0)
    return [
        Encoded(rng.integers(0, 2**31 - 1, n).astype(np.int32), rng.random(n) < 0.5) for n in rng.integers(1, 40, num)
    ]


def recut(prepared: PreparedSet, lines: Sequence[Sequence[int]], train: Sequence[int] | None = None) -> PreparedSet:
    """The same chunks under another index."""
    write_index(prepared.path / store.INDEX, number_columns(lines))
    write_indices(prepared.path, "train", range(len(lines)) if train is None else train)
    (prepared.path / store.MANIFEST).unlink()
    manifest = {key: value for key, value in prepared.manifest.items() if key not in ("format", "hashes")}
    write_manifest(prepared.path, manifest)
    return open_prepared(prepared.path)


def test_samples_read_as_written(tmp_path: Path) -> None:
    samples = random_samples()
    split = write_samples(tmp_path / "set", samples, 50, sources=[0, 1] * 25, names=["a.jsonl", "b.jsonl"]).train
    assert isinstance(split, Split)
    assert len(split) == 50
    for index, sample in enumerate(samples):
        assert isinstance(sample, Encoded)
        got_ids, got_flags = split.tokens(index)
        assert (got_ids.dtype, got_flags.dtype) == (np.int32, np.bool_)
        assert (got_ids.tolist(), got_flags.tolist()) == (sample.input_ids.tolist(), sample.supervised.tolist())
    assert split.lengths.tolist() == [sample.num_tokens for sample in samples]
    assert split.supervised.tolist() == [sample.num_supervised for sample in samples]
    assert split.source.tolist() == [0, 1] * 25
    assert split.row.tolist() == list(range(1, 51))
    assert split.names == ("a.jsonl", "b.jsonl")
    assert [split.place(at) for at in (4, 5)] == ["a.jsonl:5", "b.jsonl:6"]


def test_ids_are_views_of_the_file(tmp_path: Path) -> None:
    split = write_samples(tmp_path / "set", random_samples(), 50).train
    got, _ = split.tokens(3)
    assert not got.flags.owndata
    assert not got.flags.writeable
    assert np.shares_memory(got, split.tokens(3)[0])


def test_splits_are_choices_of_the_same_samples(tmp_path: Path) -> None:
    samples = random_samples()
    prepared = write_samples(tmp_path / "set", samples, 45)
    write_indices(prepared.path, "train", [7, 2])
    write_indices(prepared.path, "validation", [4])
    (prepared.path / store.MANIFEST).unlink()
    write_manifest(prepared.path, {key: prepared.manifest[key] for key in ("kind", "datasets", "chunks")})
    again = open_prepared(prepared.path)
    assert again.train.tokens(0)[0].tolist() == samples[7].input_ids.tolist()  # type: ignore[union-attr]
    assert again.train.lengths.tolist() == [samples[at].num_tokens for at in (7, 2)]
    assert again.validation.tokens(0)[0].tolist() == samples[4].input_ids.tolist()  # type: ignore[union-attr]


def test_a_split_travels_to_another_process(tmp_path: Path) -> None:
    samples = random_samples()
    split = write_samples(tmp_path / "set", samples, 50).train
    again = pickle.loads(pickle.dumps(split))
    assert again.tokens(1)[0].tolist() == samples[1].input_ids.tolist()  # type: ignore[union-attr]
    assert len(pickle.dumps(split)) < 2000


def test_samples_are_cut_where_the_index_says(tmp_path: Path) -> None:
    sample = Encoded(ids(*range(9)), flags(0, 1, 1, 0, 1, 1, 0, 0, 1))
    # chunk, row, begin, end, num_supervised, source, number
    split = recut(write_samples(tmp_path / "set", [sample], 1), [(0, 0, 0, 3, 2, 0, 1), (0, 0, 3, 8, 2, 0, 1)]).train
    assert [part.tolist() for part in split.tokens(1)] == [[3, 4, 5, 6, 7], [False, True, True, False, False]]
    assert split.lengths.tolist() == [3, 5]
    assert split.supervised.tolist() == [2, 2]
    assert split.cut_tokens(0).tolist() == [3, 4, 5, 6, 7, 8]
    assert split.cut_tokens(1).tolist() == [8]


def test_preferences_read_as_written_and_as_cut(tmp_path: Path) -> None:
    samples = [EncodedPreference(ids(1, 2), ids(3), ids(4, 5, 6)), EncodedPreference(ids(7), ids(8, 9), ids())]
    prepared = write_samples(tmp_path / "set", samples, 2)
    split = prepared.train
    assert isinstance(split, PreferenceSplit)
    assert [[part.tolist() for part in split.pair(i)] for i in (0, 1)] == [[[1, 2], [3], [4, 5, 6]], [[7], [8, 9], []]]
    assert split.lengths.tolist() == [5, 3]
    assert split.supervised.tolist() == [4, 2]
    cut = recut(prepared, [(0, 0, 0, 4, 3, 0, 1)]).train
    assert [part.tolist() for part in cut.pair(0)] == [[1, 2], [3], [4, 5]]


def test_unpaired_answers_read_as_written_and_as_cut(tmp_path: Path) -> None:
    samples = [EncodedUnpaired(ids(1, 2), ids(3, 4, 5), True), EncodedUnpaired(ids(6), ids(7), False)]
    prepared = write_samples(tmp_path / "set", samples, 2)
    split = prepared.train
    assert isinstance(split, UnpairedSplit)
    assert [(p.tolist(), c.tolist(), label) for p, c, label in map(split.answer, (0, 1))] == [
        ([1, 2], [3, 4, 5], True),
        ([6], [7], False),
    ]
    prompt, completion, label = recut(prepared, [(0, 0, 0, 3, 1, 0, 1)]).train.answer(0)
    assert (prompt.tolist(), completion.tolist(), label) == ([1, 2], [3], True)


def test_judged_steps_read_as_written_and_as_cut(tmp_path: Path) -> None:
    sample = EncodedStepwise(ids(1, 2, 3, 4, 5), flags(0, 0, 1, 0, 1), flags(0, 0, 1, 0, 0))
    prepared = write_samples(tmp_path / "set", [sample, sample], 2)
    split = prepared.train
    assert isinstance(split, StepwiseSplit)
    for at in (0, 1):
        assert [part.tolist() for part in split.steps(at)] == [
            sample.input_ids.tolist(),
            sample.supervised.tolist(),
            sample.right.tolist(),
        ]
    cut = recut(prepared, [(0, 1, 0, 3, 1, 0, 2)]).train
    assert [part.tolist() for part in cut.steps(0)] == [[1, 2, 3], [False, False, True], [False, False, True]]


def test_prompts_read_as_written(tmp_path: Path) -> None:
    columns = {"answer": "42", "level": 3, "tags": ["a", None], "more": {"x": 1.5}}
    split = write_samples(tmp_path / "set", [EncodedPrompt(ids(1, 2), columns), EncodedPrompt(ids(3))], 2).train
    assert isinstance(split, PromptSplit)
    assert [(prompt.tolist(), given) for prompt, given in map(split.prompt, (0, 1))] == [([1, 2], columns), ([3], {})]
    assert split.supervised.tolist() == [0, 0]


def test_an_index_reads_as_written(tmp_path: Path) -> None:
    lines = [(0, 1, 2, 3, 4, 5, 2**40), (9, 8, 7, 6, 5, 4, 3)]
    write_index(tmp_path / "index.arrow", number_columns(lines))
    index = read_index(tmp_path / "index.arrow")
    assert list(zip(*(index[name].tolist() for name in store.COLUMNS), strict=True)) == lines
    assert {name: column.dtype.type for name, column in index.items()} == dict(store.COLUMNS)


def test_a_set_without_rows_opens(tmp_path: Path) -> None:
    prepared = recut(write_samples(tmp_path / "set", random_samples(1), 1), [])
    assert len(prepared.train) == 0
    assert prepared.train.lengths.tolist() == []


def test_publishing_replaces_an_older_set(tmp_path: Path) -> None:
    write_samples(tmp_path / "final", random_samples(2), 2)
    publish(write_samples(tmp_path / "new", random_samples(), 50).path, tmp_path / "final")
    assert len(open_prepared(tmp_path / "final").train) == 50
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.glob("*.older"))


@pytest.mark.parametrize("name", ["index.arrow", "train.npy", "chunks/0.arrow"])
def test_a_broken_set_is_an_error_that_names_the_file(tmp_path: Path, name: str) -> None:
    folder = write_samples(tmp_path / "set", random_samples(), 50).path
    whole = (folder / name).read_bytes()
    (folder / name).unlink()  # a hard link: the pool keeps its own bytes
    (folder / name).write_bytes(whole[:100])
    with pytest.raises(DataError, match=rf"{name}: 100 bytes long, [\d,]+ were written -> delete this folder"):
        open_prepared(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name}: 0 bytes long"):
        open_prepared(folder)


@pytest.mark.parametrize("name", ["index.arrow", "train.npy", "validation.npy", "chunks/0.arrow"])
def test_a_byte_that_was_not_written_is_an_error(tmp_path: Path, name: str) -> None:
    folder = write_samples(tmp_path / "set", random_samples(), 45).path
    whole = bytearray((folder / name).read_bytes())
    whole[len(whole) // 2] ^= 1
    (folder / name).write_bytes(whole)
    os.utime(folder / name, ns=(0, 10**18))  # whatever its time is now
    with pytest.raises(DataError, match=rf"{name}: other bytes than those that were written -> delete this folder"):
        open_prepared(folder)


def test_a_set_is_not_hashed_and_a_copy_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_samples(tmp_path / "set", random_samples(), 45).path
    hashed: list[str] = []

    def hashing(path: Path) -> str:
        hashed.append(path.name)
        return sha256(path)

    monkeypatch.setattr(store, "sha256", hashing)
    open_prepared(folder)
    assert hashed == []
    copy = tmp_path / "copy"
    for path in folder.rglob("*.*"):
        to = copy / path.relative_to(folder)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(path.read_bytes())
        os.utime(to, ns=(0, 10**18))
    for _ in range(2):
        assert len(open_prepared(copy).train) == 45
        assert sorted(hashed) == ["0.arrow", "index.arrow", "train.npy", "validation.npy"]


@pytest.mark.parametrize("text", ["", "[]", "3", "[" * 100_000, '{"format": 2'])
def test_a_manifest_that_is_none_is_an_error(text: str, tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "set", random_samples(), 50).path
    (folder / store.MANIFEST).write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json: not a prepared set \(.+\) -> prepare again"):
        open_prepared(folder)


def test_a_set_of_another_version_is_an_error(tmp_path: Path) -> None:
    folder = write_samples(tmp_path / "set", random_samples(), 50).path
    manifest = json.loads((folder / store.MANIFEST).read_text())
    (folder / store.MANIFEST).write_text(json.dumps({**manifest, "format": 1}))
    with pytest.raises(DataError, match=r"manifest\.json: written in format 1, this version reads 2 -> prepare again"):
        open_prepared(folder)
    with pytest.raises(DataError, match="not a prepared set"):
        open_prepared(tmp_path / "nowhere")
    (tmp_path / "index.arrow").write_bytes(b"no arrow file")
    with pytest.raises(DataError, match=r"index\.arrow: the index of a prepared set cannot be read .* -> delete"):
        read_index(tmp_path / "index.arrow")
