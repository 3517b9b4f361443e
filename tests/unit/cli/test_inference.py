"""``whet chat`` prompts the model as it was trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from whet.cli.main import run_command
from whet.serving import chat
from whet.serving.sampling import Sampling


class Parrot:
    """An engine that answers with what it was shown."""

    description = "a parrot"
    default_sampling = Sampling()

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return []

    def stream(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Iterator[str]:
        yield " | ".join(f"{message['role']}: {message['content']}" for message in messages)


@pytest.mark.parametrize(
    ("words", "system"),
    [((), "system: be brief | "), (("--system", "rhyme"), "system: rhyme | "), (("--system", ""), "")],
)
def test_a_chat_begins_with_the_system_message_of_training_unless_another_is_given(
    words: tuple[str, ...],
    system: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "my.yaml").write_text(
        "base_model: org/model\nlearning_rate: 1e-4\ndefault_system_prompt: be brief\n"
        "datasets: [{path: rows.jsonl, type: chat_template}]\n"
    )
    monkeypatch.setattr(chat, "load_engine", lambda *args, **options: Parrot())
    assert run_command(["chat", str(tmp_path / "my.yaml"), "--prompt", "hello", *words]) == 0
    assert capsys.readouterr().out == f"{system}user: hello\n"
