"""A folder to work in with a tiny model, a few rows and a YAML that trains; and the command, run in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.models import save_tiny_model

from whet.cli.main import run_command

CONFIG = """\
base_model: model
datasets:
  - path: rows.jsonl
    type: chat_template
sequence_len: 128
sample_packing: true
micro_batch_size: 1
max_steps: 2
learning_rate: 0.001
warmup_steps: 0
save_strategy: "no"
parity: false
output_dir: out
"""


@dataclass(frozen=True)
class Outcome:
    """What a command did: exit code, and what it printed on standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The problems it named, without the leading ``error: ``."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if line.startswith("error: ")]


Whet = Callable[..., Outcome]


def chat(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def write_rows(path: Path, rows: list[object]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def workspace(tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: ``model`` (a link), ``rows.jsonl`` with 12 rows, ``my.yaml``."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WHET_")]:
        monkeypatch.delenv(name)
    (tmp_path / "model").symlink_to(model_folder)
    write_rows(tmp_path / "rows.jsonl", [chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(12)])
    (tmp_path / "my.yaml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def whet(capfd: pytest.CaptureFixture[str]) -> Whet:
    def run(*arguments: str) -> Outcome:
        capfd.readouterr()
        code = run_command(list(arguments))
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run
