"""Everything that reads weights reads the files that transformers would load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers.modeling_utils import _get_resolved_checkpoint_files

from whet.core.errors import ArtefactError
from whet.model.weight_files import weight_files

NAMES = {
    "model.safetensors": "",
    "model-1.safetensors": "model.safetensors.index.json",
    "pytorch_model.bin": "",
    "pytorch_model-1.bin": "pytorch_model.bin.index.json",
}


@pytest.mark.parametrize("first", range(len(NAMES)))
def test_the_order_is_that_of_transformers(tmp_path: Path, first: int) -> None:
    for name, index in list(NAMES.items())[first:]:
        (tmp_path / name).touch()
        if index:
            (tmp_path / index).write_text(json.dumps({"weight_map": {"w": name}, "metadata": {}}))
    theirs, _ = _get_resolved_checkpoint_files(tmp_path, None, None, None, None, is_remote_code=False)
    assert [str(path) for path in weight_files(tmp_path, pickled=True)] == theirs
    assert weight_files(tmp_path) == (weight_files(tmp_path, pickled=True) if first < 2 else [])


def test_what_the_index_names_is_listed_though_it_is_missing(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"v": "b", "w": "a", "x": "b"}}')
    assert weight_files(tmp_path) == [tmp_path / "a", tmp_path / "b"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {"w": "../a"}}', '{"weight_map": {"w": "/a"}}'])
def test_a_damaged_index_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"index\.json"):
        weight_files(tmp_path)
