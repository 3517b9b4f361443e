"""The finished model goes to the hub, to a private repository, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects
from tests.tiny_training import make_config

from whet.artefacts import hub
from whet.core.errors import ArtefactError


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
              "runs/events", "merged/model.safetensors", "mlflow.db", ".whet-can-write"]  # fmt: skip
    hub.push(tmp_path, make_config(hub_model_id="tiny", hub_revision="second"))
    name, options = fake.asked[-1]
    assert (name, options["repo_id"], options["revision"]) == ("upload_folder", "me/tiny", "second")
    assert list(filter_repo_objects([*result, *beside], ignore_patterns=options["ignore_patterns"])) == result


@pytest.mark.parametrize(
    ("refuses", "act", "message"),
    [
        ("create_repo", lambda folder, config: hub.open_repository(config), r"cannot be opened on the hub \(403 Forb"),
        ("upload_folder", hub.push, r"did not take the result \(403 Forbidden\) -> the model is saved: hf upload tiny"),
    ],
)
def test_a_refusal_is_a_sentence(
    refuses: str, act: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "HfApi", lambda: FakeHub(refuses))
    with pytest.raises(ArtefactError, match=message):
        act(tmp_path, make_config(hub_model_id="tiny"))


def test_no_network_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    class NoNetwork(FakeHub):
        def create_repo(self, *args: Any, **options: Any) -> Any:
            raise hub._FAILURES[-1]("[Errno 111] Connection refused")

    monkeypatch.setattr(hub, "HfApi", NoNetwork)
    with pytest.raises(ArtefactError, match="Connection refused"):
        hub.open_repository(make_config(hub_model_id="tiny"))
