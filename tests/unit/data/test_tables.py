"""Datasets of the hub, by a folder that `datasets` reads as it reads one of the hub, without a network."""

from __future__ import annotations

import json
import shutil

import pytest

from whet.config import DatasetConfig
from whet.core.errors import DataError
from whet.data.selection import selection_of
from whet.data.tables import HubSource

datasets = pytest.importorskip("datasets")

CARD = """---
configs:
- config_name: de
  data_files: [{split: train, path: de/train.jsonl}, {split: test, path: de/test.jsonl}]
- config_name: en
  data_files: [{split: train, path: en/train.jsonl}, {split: test, path: en/test.jsonl}]
---
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two configurations of two splits of three rows."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    made = tmp_path / "dataset"
    for name in ("de", "en"):
        (made / name).mkdir(parents=True)
        for split in ("train", "test"):
            rows = [json.dumps({"text": f"{name} {split} {number}", "extra": {"n": number}}) for number in range(3)]
            (made / name / f"{split}.jsonl").write_text("\n".join(rows))
    (made / "README.md").write_text(CARD)
    yield made
    datasets.enable_progress_bars()


def source(path, **options):
    dataset = DatasetConfig(path=str(path), **options)
    return HubSource(dataset, "a.yaml:3:5", selection_of(dataset, "a.yaml:3:5", sliced=False))


def texts(path, **options):
    found = source(path, **options)
    rows = list(found.rows())
    assert [row for chunk in found.chunks() for row in chunk.rows()] == rows
    return [row.value["text"] for row in rows]


def test_configuration_split_and_files_choose_rows(folder):
    assert texts(folder, name="de") == ["de train 0", "de train 1", "de train 2"]
    assert texts(folder, name="en", split="test[1:]") == ["en test 1", "en test 2"]
    assert texts(folder, name="en", split="test[:50%]", skip=1) == ["en test 1"]
    assert texts(folder, data_files="de/test.jsonl") == ["de test 0", "de test 1", "de test 2"]
    assert texts(folder, name="de", shards=2, shards_idx=1) == ["de train 1"]


def test_several_configurations_are_read_one_after_the_other(folder):
    found = source(folder, name=("de", "en"), split="train[:2]")
    assert [row.value["text"] for row in found.rows()] == ["de train 0", "de train 1", "en train 0", "en train 1"]
    assert found.name == f"{folder}/de+en"
    assert [row.place for row in found.rows()][2] == f"{folder}/en, row 1"
    assert [chunk.file for chunk in found.chunks()] == [f"{folder}/de", f"{folder}/en"]


def test_the_stamp_follows_the_files_that_datasets_keeps(folder, monkeypatch):
    monkeypatch.setattr("whet.data.files.RACY_SECONDS", -1000.0)
    stamp = source(folder, name="de").stamp()
    assert stamp is not None
    assert source(folder, name="de").stamp() == stamp
    assert len({stamp, *(source(folder, **other).stamp() for other in OTHERS)}) == len(OTHERS) + 1


OTHERS = ({"name": "en"}, {"name": "de", "split": "test"}, {"name": "de", "split": "train[:1]"}, {"name": ("de", "en")})


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "Config name is missing"),
        ({"name": "fr"}, "BuilderConfig 'fr' not found. Available: "),
        ({"name": "de", "split": "dev"}, 'Unknown split "dev". Should be one of'),
        ({"name": "de", "split": "train[?]"}, "Unrecognized instruction format"),
        ({"data_files": "none/*.jsonl"}, "data files found in"),
    ],
)
def test_what_the_dataset_does_not_have_is_named(folder, options, found):
    with pytest.raises(DataError) as caught:
        texts(folder, **options)
    message = str(caught.value)
    assert message.startswith(f"a.yaml:3:5: the dataset '{folder}' is there, and not what is asked of it (")
    assert found in message
    assert message.endswith(") -> set `name` (the configuration), `split` and `data_files` to what it has")


def test_files_that_cannot_be_joined_are_an_error_with_a_cure(folder):
    (folder / "de/train.jsonl").write_text('{"text": "a"}\n{"text": [')
    with pytest.raises(
        DataError, match=r"is there, and cannot be read \(.+\) -> name those of its files in `data_files"
    ):
        texts(folder, name="de")


def test_a_dataset_that_is_not_there_offline_says_what_to_check(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        DataError, match=r"^a\.yaml:3:5: 'nobody/nothing' is no file .* cannot be had \(.+ -> check the p"
    ):
        texts("nobody/nothing")


def test_a_streamed_dataset_has_the_same_rows_and_leaves_nothing_on_the_disk(folder, tmp_path):
    for options in (
        {"name": "de"},
        {"name": "en", "split": "test[1:]"},
        {"name": "en", "split": "test[:50%]", "skip": 1},
        {"name": ("de", "en"), "split": "train[:2]"},
        {"name": "de", "shards": 2, "shards_idx": 1},
        {"data_files": "de/test.jsonl"},
    ):
        dataset = DatasetConfig(path=str(folder), **options)
        selection = selection_of(dataset, "", sliced=False)
        streamed = HubSource(dataset, "", selection, streamed=True)
        rows = list(streamed.rows())
        assert streamed.stamp() is None
        assert not list((tmp_path / "cache").rglob("*.arrow"))
        kept = list(HubSource(dataset, "", selection).rows())
        assert [(row.file, row.value) for row in rows] == [(row.file, row.value) for row in kept]
        shutil.rmtree(tmp_path / "cache")


def test_a_streamed_dataset_that_breaks_off_is_an_error_of_its_place(folder):
    (folder / "de/train.jsonl").write_text('{"text": "a"}\n{"text": [')
    dataset = DatasetConfig(path=str(folder), name="de")
    streamed = HubSource(dataset, "a.yaml:3:5", selection_of(dataset, "", sliced=False), streamed=True)
    with pytest.raises(DataError, match=r"^a\.yaml:3:5: the dataset '.*' is there, and cannot be read"):
        list(streamed.rows())
