"""A run.json may be a stranger's: what it asks for beside numbers is said before it is done, or must be asked again."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from whet.cli.main import run_command
from whet.config import Config
from whet.config.recorded import config_of_record
from whet.core.errors import ConfigError

ROWS = {"path": "org/d", "type": "alpaca"}


def record(**written: Any) -> dict[str, Any]:
    """Of a run with these keys beside those that each has."""
    keys = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [ROWS], **written}
    return {"kind": "train", "written": keys, "values": keys, "versions": {"whet": "0.1.0"}, "config_file": "x/my.yaml"}


def done_again(read: dict[str, Any], *words: str) -> tuple[Config, list[str]]:
    return config_of_record(read, "run.json", "out-rerun", words)


@pytest.mark.parametrize(
    ("written", "cure"),
    [
        ({"trust_remote_code": True}, ["--trust-remote-code"]),
        ({"datasets": [{**ROWS, "type": "mine.py:row"}]}, ["--datasets.0.type", "mine.py:row"]),
        ({"datasets": [{**ROWS, "type": "os.path.join"}]}, ["--datasets.0.type", "os.path.join"]),
        (
            {"datasets": [{**ROWS, "ds_type": "json", "type": "subprocess.run"}]},
            ["--datasets.0.type", "subprocess.run"],
        ),
        (
            {"datasets": [ROWS, {**ROWS, "type": "chat_template", "input_transform": "os.system"}]},
            ["--datasets.1.input_transform", "os.system"],
        ),
        ({"test_datasets": [{**ROWS, "split": "x", "type": "mine.py:row"}]}, ["--test_datasets.0.type", "mine.py:row"]),
        ({"dataset_num_proc": 1 << 20}, ["--dataset-num-proc", "2"]),
        ({"dataset_processes": 1 << 20}, ["--dataset-num-proc", "2"]),  # by another name that it has
        ({"dataloader_num_workers": 1 << 20}, ["--dataloader-num-workers", "0"]),
    ],
)
def test_code_and_crowds_of_processes_must_be_asked_for_again(
    written: dict[str, Any], cure: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("raise SystemExit('this code ran')\n")
    with pytest.raises(ConfigError) as refused:
        done_again(record(**written))
    (problem,) = refused.value.problems
    assert cure[0] in problem.fix
    config, _ = done_again(record(**written), *cure)
    assert isinstance(config, Config)


def test_code_that_was_a_default_of_then_must_be_asked_for_too() -> None:
    read = record()
    read["values"] = {**read["values"], "trust_remote_code": True}
    with pytest.raises(ConfigError, match="--no-trust-remote-code"):
        done_again(read)
    assert not done_again(read, "--no-trust-remote-code")[0].model.trust_remote_code


def test_a_secret_in_a_block_may_be_given_again_with_the_block() -> None:
    hidden = {"client_kwargs": {"headers": {"X-Trust": "***"}}}
    read = record(datasets=[{**ROWS, "path": "s3://box/a.jsonl", "storage_options": hidden}])
    with pytest.raises(ConfigError) as refused:
        done_again(read)
    (problem,) = refused.value.problems
    name = problem.fix.split("--")[1].split()[0]
    config, _ = done_again(read, f"--{name}", "{X-Trust: hunter2hunter2}")
    options = config.data.datasets[0].storage_options
    assert options is not None
    assert options.get_secret_value() == {"client_kwargs": {"headers": {"X-Trust": "hunter2hunter2"}}}


def test_whom_it_reaches_and_where_it_writes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quiet = record(dataset_prepared_path="prepared", wandb_mode="offline", use_wandb=True)
    assert [sentence for sentence in done_again(quiet)[1] if "left out" not in sentence] == []
    _, said = done_again(
        record(
            datasets=[{**ROWS, "path": "https://host/a.jsonl"}],
            mlflow_tracking_uri="http://far/x",
            use_wandb=True,
            dataset_prepared_path="../elsewhere",
            dynamic_checkpoint={"enabled": True, "trigger_file_path": "/tmp/mine"},
        )
    )
    _, kept = done_again(record(mlflow_tracking_uri="/far/away"))
    assert any("/far/away" in sentence for sentence in kept)
    for word in ("https://host/a.jsonl", "http://far/x", "Weights & Biases", "../elsewhere", "/tmp/mine"):
        assert any(word in sentence for sentence in said), word


@pytest.mark.parametrize("hardware", [{"world_size": number} for number in (4096, 10**30, -2, "4", [4])] + [[4]])
def test_no_crowd_of_ranks_is_started(
    hardware: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("a launcher was started"))
    Path("run.json").write_text(json.dumps({**record(), "hardware": hardware}))
    assert run_command(["rerun", "run.json"]) == 2
    said = capsys.readouterr().err
    assert "world_size" in said or "processes, and this machine has" in said or "no record of a run" in said
    assert "Traceback" not in said


def test_ranks_are_counted_before_they_are_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int | None] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setattr("whet.cli.torchrun.launch_ranks", lambda _config, _words, _args, number: asked.append(number))
    for ranks, words in ((2, ()), (4096, ("--", "--nproc-per-node=2"))):
        Path("run.json").write_text(json.dumps({**record(), "hardware": {"world_size": ranks}}))
        assert run_command(["rerun", "run.json", *words]) == 0
    assert asked == [2, None]
    assert "in 2 processes, as that run" in capsys.readouterr().err
