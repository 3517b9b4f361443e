"""An identity is the same for the same weights, wherever they lie, and another for others; nothing waits for it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.tiny_training import make_config

from whet.model import digests
from whet.model.identity import (
    IDENTITY_NAME,
    BaseIdentity,
    Identifying,
    identify,
    identify_adapter,
    identify_weights,
    read_identity,
    same_weights,
    write_identity,
)


def write_weights(folder: Path, seed: int = 0, name: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.random.default_rng(seed).random((64, 512), dtype=np.float32)}, folder / name)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Every file counts as large, memories lie in the test's folder; which files were read in full."""
    monkeypatch.setattr(digests, "AT_ONCE_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    read: list[Path] = []

    def recorded(path: Path) -> str:
        read.append(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(digests, "sha256", recorded)
    return read


def test_a_copy_is_the_same_model_and_one_changed_bit_another(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "a")
    shutil.copytree(folder, tmp_path / "b")
    one, other = identify_weights(folder), identify_weights(tmp_path / "b")
    assert one is not None
    assert other is not None
    assert one.weights is not None
    assert same_weights(one, other)

    file = tmp_path / "b" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    changed = identify_weights(tmp_path / "b")
    assert changed is not None
    assert not same_weights(one, changed)


def test_the_sample_alone_tells_other_weights_apart(tmp_path: Path, large: list[Path]) -> None:
    one = identify_weights(write_weights(tmp_path / "a"))
    other = identify_weights(write_weights(tmp_path / "b", seed=1))
    again = identify_weights(write_weights(tmp_path / "c"))
    assert one is not None
    assert other is not None
    assert again is not None
    assert one.weights is other.weights is None
    assert same_weights(one, again)
    assert not same_weights(one, other)
    assert large == []


def test_a_large_file_is_read_once_and_again_when_it_has_changed(tmp_path: Path, large: list[Path]) -> None:
    folder = write_weights(tmp_path / "a")
    first = identify_weights(folder, complete=True)
    assert large == [folder / "model.safetensors"]
    assert identify_weights(folder) == first, "what was read once is known at once"
    assert len(large) == 1
    write_weights(folder, seed=2)
    changed = identify_weights(folder)
    assert changed is not None
    assert changed.weights is None
    assert identify_weights(folder, complete=True) != first
    assert len(large) == 2


def test_the_rest_is_read_in_the_background(tmp_path: Path, large: list[Path]) -> None:
    config = make_config(base_model=str(write_weights(tmp_path / "a")))
    known = identify(config)
    assert known is not None
    assert known.weights is None
    result = Identifying(known, config).result()
    assert result == identify(config, complete=True)
    assert result is not None
    assert result.weights is not None


def test_weights_that_are_gone_leave_the_sample(tmp_path: Path, large: list[Path]) -> None:
    config = make_config(base_model=str(write_weights(tmp_path / "a")))
    known = identify(config)
    (tmp_path / "a" / "model.safetensors").unlink()
    assert Identifying(known, config).result() == known


def test_a_folder_that_is_gone_leaves_the_sample(tmp_path: Path, large: list[Path]) -> None:
    config = make_config(base_model=str(write_weights(tmp_path / "a")))
    known = identify(config)
    shutil.rmtree(tmp_path / "a")
    known_still = Identifying(known, config)
    assert known_still.result() == known
    assert not known_still.look_again()
    assert known_still.so_far == known


def download(cache: Path, name: str, content: bytes, *, is_large: bool = True) -> None:
    """Put a file into the hub's cache, as a download of ``org/tiny`` does."""
    repository = cache / "models--org--tiny"
    snapshot = repository / "snapshots" / ("c" * 40)
    for folder in (snapshot, repository / "refs", repository / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text("c" * 40)
    digest = hashlib.sha256(content).hexdigest()
    blob = repository / "blobs" / (digest if is_large else digest[:40])
    blob.write_bytes(content)
    (snapshot / name).symlink_to(blob)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's, with a config."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    download(tmp_path / "hub", "config.json", b"{}", is_large=False)
    return tmp_path / "hub"


def test_a_model_of_the_hub_is_known_once_it_is_here_as_a_whole(tmp_path: Path, cache: Path, large: list[Path]) -> None:
    parts = {
        name: (write_weights(tmp_path / name, seed) / "model.safetensors").read_bytes()
        for seed, name in enumerate(("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"))
    }
    index = json.dumps({"weight_map": dict(zip("vw", parts, strict=True))}).encode()
    config = make_config(base_model="org/tiny")
    base = Identifying(identify(config), config)
    for name, content in (*list(parts.items())[:1], ("model.safetensors.index.json", index)):
        download(cache, name, content, is_large=name in parts)
        assert not base.look_again(), "some files of a download that was cut are no model"
    assert base.result() is None
    download(cache, *list(parts.items())[1])
    assert base.look_again()
    found = base.result()
    assert found is not None
    assert found.weights is not None
    assert found == identify(config)
    assert not base.look_again(), "it is the same one"


def test_a_model_of_the_hub_is_known_by_the_names_of_its_files(tmp_path: Path, cache: Path, large: list[Path]) -> None:
    local = write_weights(tmp_path / "a")
    download(cache, "model.safetensors", (local / "model.safetensors").read_bytes())
    found = identify_weights("org/tiny")
    assert found is not None
    assert found.revision == "c" * 40
    assert large == [], "nothing was read"
    here = identify_weights(local, complete=True)
    assert here is not None
    assert found.weights == here.weights
    assert identify_weights("org/another") is None


def test_only_the_files_that_are_loaded_count(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "a", name="model-00001-of-00001.safetensors")
    (folder / "consolidated.safetensors").write_bytes(b"the same weights under other names")
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"w": "model-00001-of-00001.safetensors"}})
    )
    with_more = identify_weights(folder)
    (folder / "consolidated.safetensors").unlink()
    assert with_more == identify_weights(folder)
    assert with_more is not None
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "../elsewhere.safetensors"}}')
    assert identify_weights(folder) is None
    assert identify_weights(tmp_path / "nothing") is None


def test_random_weights_have_no_identity(tmp_path: Path) -> None:
    folder = str(write_weights(tmp_path / "a"))
    assert identify(make_config(base_model=folder, reinit_weights=True)) is None


def test_an_identity_travels_beside_an_adapter(tmp_path: Path) -> None:
    written = BaseIdentity("org/tiny", "5" * 64, None, 12, None)
    write_identity(tmp_path, written)
    assert read_identity(tmp_path) == written
    (tmp_path / IDENTITY_NAME).write_text('{"name": 3')
    assert read_identity(tmp_path) is None
    assert read_identity(tmp_path / "nowhere") is None


def test_an_adapter_is_known_by_its_files_wherever_it_lies(tmp_path: Path) -> None:
    folder = write_weights(tmp_path / "a", name="adapter_model.safetensors")
    assert identify_adapter(folder) is None, "no adapter without its config"
    (folder / "adapter_config.json").write_text('{"r": 8}')
    shutil.copytree(folder, tmp_path / "b")
    assert identify_adapter(folder) == identify_adapter(tmp_path / "b") is not None
    (tmp_path / "b" / "adapter_config.json").write_text('{"r": 9}')
    assert identify_adapter(folder) != identify_adapter(tmp_path / "b")
