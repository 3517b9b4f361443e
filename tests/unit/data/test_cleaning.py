"""What is in use stays; what nothing has used for the days asked for goes, and is made again when it is wanted."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import chat, write_rows
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError
from whet.core.types import Hardware
from whet.data import store
from whet.data.cleaning import SECONDS_OF_DAY, Unused, clean, find_unused, remove_all
from whet.data.prepare import prepare

FOLDER = Path("last_run_prepared")


@pytest.fixture(autouse=True)
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        write_rows(tmp_path / f"{name}.jsonl", [chat(f"{name}?", f"{name}!")])


def config_of(*names: str, **keys: Any) -> Any:
    datasets = [{"path": f"{name}.jsonl", "type": "chat_template"} for name in names]
    values = {"base_model": "org/tiny", "datasets": datasets, "chat_template": "chatml", "learning_rate": 1e-4}
    return make_config({**values, "sequence_len": 64, "output_dir": "out", **keys}, check_files=False)


def run(*names: str, **keys: Any) -> Any:
    config = config_of(*names, **keys)
    return prepare(config, resolve(config, Hardware("cpu")), tiny_tokenizer("chatml"))


def age(path: Path, days: float) -> None:
    moment = time.time() - days * SECONDS_OF_DAY
    os.utime(path, (moment, moment))


def age_all(days: float) -> None:
    """As if nothing had been used since."""
    for path in FOLDER.glob("**/*"):
        if path.suffix != ".arrow":  # whose time says that it was not written to
            age(path, days)


def unused(days: float = 30) -> list[Unused]:
    return find_unused(FOLDER, days, time.time())


def kinds(found: list[Unused]) -> dict[str, int]:
    return {what: sum(one.what == what for one in found) for what in sorted({one.what for one in found})}


def test_nothing_that_was_used_lately_goes() -> None:
    run("one", "two")
    assert unused() == []
    age_all(29)
    assert unused() == []


def test_a_folder_that_is_not_there_has_nothing_to_remove() -> None:
    assert unused() == []


def test_sets_go_with_the_chunk_files_that_no_other_set_has() -> None:
    run("one")
    run("one", "two")
    age_all(40)
    kept = run("one")  # opens it: it is used now
    found = unused()
    assert kinds(found) == {"chunk file": 1, "set": 1}
    remove_all(found)
    assert len(store.open_prepared(kept.path).train) == 1
    assert run("one").path == kept.path
    assert unused() == []
    assert len(run("one", "two").train) == 2


def test_everything_unused_is_gone_afterwards() -> None:
    for name in ("one", "two"):
        age(Path(f"{name}.jsonl"), 50)  # or its scan would not be remembered
    run("one", "two")
    (FOLDER / ".set.half").mkdir()
    (FOLDER / "scans" / ".scan.half").touch()
    age_all(40)
    found = unused()
    assert kinds(found) == {"chunk file": 2, "scan": 2, "set": 1, "unfinished": 2}
    remove_all(found)
    assert unused(0.0) == []
    assert {path.parent.name for path in FOLDER.glob("**/*") if path.is_file()} == {"locks"}


def test_a_chunk_file_that_a_new_set_has_asked_for_stays() -> None:
    prepared = run("one")
    shutil.rmtree(prepared.path)
    age_all(40)
    assert kinds(unused()).get("chunk file") == 1
    shutil.rmtree(run("one", sequence_len=32).path)
    assert kinds(unused()).get("chunk file") is None


def test_sizes_count_what_is_given_back() -> None:
    prepared = run("one")
    age_all(40)
    (of_set,), (of_chunk,) = ([one for one in unused() if one.what == what] for what in ("set", "chunk file"))
    files = [path for path in prepared.path.iterdir() if path.is_file()]
    assert of_set.num_bytes == sum(path.stat().st_size for path in files)
    assert of_chunk.num_bytes == prepared.manifest["chunks"][0]["bytes"]


def test_what_may_not_be_removed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = run("one")
    age_all(40)

    def refuse(path: Path, *_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(
        DataError, match=rf"'{prepared.path}' cannot be removed \(Permission denied\) -> ask whoever owns"
    ):
        clean(config_of("one"), FOLDER, 30)
    assert clean(config_of("one"), FOLDER, 30, remove=False)
