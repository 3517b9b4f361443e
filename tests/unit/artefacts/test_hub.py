"""The finished model goes to the hub, to a private repository, and nothing else does."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects
from tests.tiny_training import make_config

import whet
from whet.artefacts import hub
from whet.core.errors import ArtefactError
from whet.training.checkpoint import MANIFEST
from whet.training.uploads import QUEUE_NAME, Upload, UploadQueue


class FakeHub:
    """Stands for HfApi; remembers what it was asked, refuses where it is told to."""

    def __init__(self, refuses: str = "") -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._refuses = refuses

    def __getattr__(self, name: str) -> Any:
        def ask(*args: Any, **options: Any) -> SimpleNamespace:
            self.asked.append((name, {**dict(enumerate(args)), **options}))
            if name == self._refuses:
                raise OSError("403 Forbidden\nfor url ...")
            return SimpleNamespace(repo_id="me/tiny")

        return ask


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    made = FakeHub()
    monkeypatch.setattr(hub, "HfApi", lambda: made)
    return made


def test_the_repository_is_private_and_open_before_training(fake: FakeHub) -> None:
    hub.open_repository(make_config(hub_model_id="tiny", hub_revision="second"))
    assert fake.asked == [
        ("create_repo", {0: "tiny", "private": True, "exist_ok": True}),
        ("create_branch", {0: "me/tiny", "branch": "second", "exist_ok": True}),
    ]


def test_the_result_is_pushed_without_checkpoints_and_logs(fake: FakeHub, tmp_path: Path) -> None:
    result = ["model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json", "run.json"]
    beside = ["checkpoint-5/model.safetensors", "earlier-runs/1/checkpoint-9/model.safetensors", "eval/x.jsonl",
              "runs/events", "merged/model.safetensors", "mlflow.db", ".whet-can-write", "uploads.json"]  # fmt: skip
    hub.send(hub.RESULT, tmp_path, make_config(hub_model_id="tiny", hub_revision="second"))
    name, options = fake.asked[-1]
    assert (name, options["repo_id"], options["revision"]) == ("upload_folder", "me/tiny", "second")
    assert list(filter_repo_objects([*result, *beside], ignore_patterns=options["ignore_patterns"])) == result


def test_of_a_checkpoint_the_root_gets_the_model_alone(fake: FakeHub, tmp_path: Path) -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(whet.__file__).parent.rglob("*.py"))
    ours = sorted(set(re.findall(r'"(whet-[a-z-]+\.(?:json|safetensors))"', sources)))
    assert MANIFEST in ours
    (tmp_path / "checkpoint-3").mkdir()
    hub.send(Upload("hub", "checkpoint-3", "", 3), tmp_path, make_config(hub_model_id="tiny"))
    ignored = fake.asked[-1][1]["ignore_patterns"]
    told = ["adapter_model.safetensors", "optimizer.pt", "optimizer-rank-1.pt", "trainer_state.json", *ours]
    assert list(filter_repo_objects(told, ignore_patterns=ignored)) == ["adapter_model.safetensors", "whet-base.json"]


def test_a_refusal_before_training_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub("create_repo"))
    with pytest.raises(ArtefactError, match=r"cannot be opened on the hub \(403 Forb"):
        hub.open_repository(make_config(hub_model_id="tiny"))


def checkpoint(folder: Path, step: int) -> Upload:
    (folder / f"checkpoint-{step}").mkdir(parents=True)
    (folder / f"checkpoint-{step}" / MANIFEST).touch()
    return Upload("hub", f"checkpoint-{step}", "last-checkpoint", step)


def test_what_is_refused_waits_with_its_reason_and_a_newer_one_takes_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub("upload_folder"))
    queue, config = UploadQueue(tmp_path), make_config(hub_model_id="tiny")
    queue.add(checkpoint(tmp_path, 3))
    said, error = hub.send_waiting(queue, config, ended=False)
    assert (said, str(error)) == ([], "403 Forbidden\nfor url ...")
    assert [(upload.source, upload.reason) for upload in queue.waiting()] == [("checkpoint-3", "403 Forbidden")]
    queue.add(checkpoint(tmp_path, 6))
    assert [upload.source for upload in queue.waiting()] == ["checkpoint-6"]


def test_a_checkpoint_that_was_removed_meanwhile_is_said_and_waits_no_longer(fake: FakeHub, tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path)
    queue.add(Upload("hub", "checkpoint-3", "checkpoint-3", 3))
    queue.add(hub.RESULT)
    said, error = hub.send_waiting(queue, make_config(hub_model_id="tiny"), ended=True)
    assert error is None
    assert said == [
        "checkpoint-3 for checkpoint-3: left out, it was removed before the hub could take it (save_total_limit)",
        "the result: https://huggingface.co/me/tiny",
    ]
    assert queue.waiting() == ()


def test_a_checkpoint_that_is_being_written_is_left_for_later(fake: FakeHub, tmp_path: Path) -> None:
    queue = UploadQueue(tmp_path)
    (tmp_path / "checkpoint-3").mkdir()
    queue.add(Upload("hub", "checkpoint-3", "", 3))
    assert hub.send_waiting(queue, make_config(hub_model_id="tiny"), ended=False) == ([], None)
    assert len(queue.waiting()) == 1


def test_those_that_have_a_queue_for_one_file_lose_nothing_of_each_other(tmp_path: Path) -> None:
    start = threading.Barrier(4)

    def add(number: int) -> None:
        start.wait()
        for step in range(6):
            UploadQueue(tmp_path).add(Upload("hub", ".", f"{number}-{step}"))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(UploadQueue(tmp_path).waiting()) == 24


def test_a_queue_that_cannot_be_read_is_an_error_with_a_cure(tmp_path: Path) -> None:
    (tmp_path / "uploads.json").write_text("{")
    with pytest.raises(ArtefactError, match="remove the file: the result is sent again"):
        UploadQueue(tmp_path).waiting()


def test_no_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNetwork(FakeHub):
        def create_repo(self, *args: Any, **options: Any) -> Any:
            raise hub.FAILURES[-1]("[Errno 111] Connection refused")

    monkeypatch.setattr(hub, "HfApi", NoNetwork)
    with pytest.raises(ArtefactError, match="Connection refused"):
        hub.open_repository(make_config(hub_model_id="tiny"))


def test_what_a_full_disk_cannot_note_is_remembered_and_noted_with_the_next_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`whet push` on a full disk sends the result all the same, and does not say that there is none."""
    queue = UploadQueue(tmp_path)
    in_the_way = tmp_path / f"{QUEUE_NAME}.tmp"  # what is written before it takes the place of the file
    in_the_way.mkdir()
    queue.add(hub.RESULT)
    queue.add(Upload("hub", "checkpoint-1", "checkpoint-1", 1))
    assert [upload.source for upload in queue.waiting()] == [".", "checkpoint-1"]
    assert "cannot be noted" in caplog.text
    in_the_way.rmdir()
    queue.refused(hub.RESULT, "gone")
    assert [upload.source for upload in queue.waiting()] == [".", "checkpoint-1"]
    assert [upload.source for upload in UploadQueue(tmp_path).waiting()] == [".", "checkpoint-1"]
