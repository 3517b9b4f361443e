"""``whet rerun run.json`` is the same run, bit for bit; and what is not as it was is said before it starts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.e2e.conftest import CONFIG, Whet, chat, write_rows
from tests.models import save_tiny_model

LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_dropout: 0.1\nlora_target_linear: true\n"
MORE = "logging_steps: 1\nval_set_size: 0.2\neval_steps: 2\nseed: 7\noptim_args: {eps: 1.0e-6}\n"


def losses(folder: Path) -> list[dict[str, Any]]:
    names = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "kind")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: line[name] for name in names if name in line} for line in lines if line["kind"] != "summary"]


def record(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return read


@pytest.mark.parametrize("more", [pytest.param("", id="full"), pytest.param(LORA, id="lora")])
def test_a_rerun_is_the_same_run_bit_for_bit(
    more: str, workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHET_LEARNING_RATE", "0.003")
    (workspace / "my.yaml").write_text(CONFIG.replace("max_steps: 2", "max_steps: 4") + MORE + more)
    first = whet("train", "my.yaml", "--weight-decay", "0.1")
    assert first.code == 0, first.err

    monkeypatch.delenv("WHET_LEARNING_RATE")
    (workspace / "my.yaml").write_text("this: is another file by now\n")
    torch.manual_seed(99)
    again = whet("rerun", "out/run.json", "--strict")
    assert again.code == 0, again.err
    assert "the same data, tokenizer, chat template and base model as in out/run.json" in again.err

    out, rerun = workspace / "out", workspace / "out-rerun"
    assert losses(rerun) == losses(out)
    assert len(losses(out)) > 4
    name = "adapter_model.safetensors" if more else "model.safetensors"
    one, other = load_file(out / name), load_file(rerun / name)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    told = record(rerun)
    assert told["values"] == {**record(out)["values"], "output_dir": "out-rerun"}
    assert told["repeats"]["path"] == "out/run.json"


def test_what_has_changed_is_said_and_refused_when_strict(
    workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whet("train", "my.yaml").code == 0
    changed = record(workspace / "out")
    changed["versions"]["torch"] = "1.0"
    (workspace / "out" / "run.json").write_text(json.dumps(changed))
    strict = whet("rerun", "out", "--strict", "--seed", "5")
    assert strict.code == 2
    assert "not everything is as it was in that run" in strict.err
    assert [line.split()[:3] for line in strict.err.splitlines() if line.strip().startswith(("torch", "seed"))] == [
        ["torch", "1.0", torch.__version__],
        ["seed", "42", "5"],
    ]

    write_rows(workspace / "rows.jsonl", [chat("What is it?", f"It is {n}.") for n in range(12)])
    (workspace / "model").unlink()
    save_tiny_model(workspace / "model", seed=1)
    monkeypatch.chdir(workspace / "out")  # relative paths are those of the run's own folder
    told = whet("rerun", "run.json", "--max-steps", "1")
    assert told.code == 0, told.err
    table = [line.split()[0] for line in told.err.splitlines() if "sha256" in line]
    assert table == ["base_model", "data"]
    assert (workspace / "out-rerun" / "model.safetensors").is_file()


def test_data_that_has_moved_is_an_error_with_its_place_and_cure(workspace: Path, whet: Whet) -> None:
    assert whet("train", "my.yaml").code == 0
    os.rename("rows.jsonl", "moved.jsonl")
    (error,) = whet("rerun", "out/run.json").errors
    assert error.startswith("out/run.json: datasets.0.path (my.yaml:2:1): datasets[0].path: there is no 'rows.jsonl'")
    assert error.endswith("if it has moved: --datasets.0.path PATH")
    moved = whet("rerun", "out/run.json", "--datasets.0.path", "moved.jsonl", "--output-dir", "elsewhere")
    assert moved.code == 0, moved.err
    assert record(workspace / "elsewhere")["identities"] == record(workspace / "out")["identities"]


def test_a_run_that_did_not_finish_is_done_from_the_beginning_and_told(workspace: Path, whet: Whet) -> None:
    good = (workspace / "rows.jsonl").read_text()
    (workspace / "rows.jsonl").write_text(good + "no json\n")
    assert whet("train", "my.yaml").code == 2
    (workspace / "rows.jsonl").write_text(good)
    again = whet("rerun", "out")
    assert again.code == 0, again.err
    assert "rerun: that run did not finish: refused: rows.jsonl:13: not valid JSON" in again.err
    assert "does not say what data and base it had, so nobody can tell whether they are the same" in again.err

    killed = {**record(workspace / "out-rerun"), "outcome": "running"}
    (workspace / "out-rerun" / "run.json").write_text(json.dumps(killed))
    strict = whet("rerun", "out-rerun", "--strict")
    assert strict.code == 0, strict.err
    assert "rerun: that run did not finish: it runs, or was killed" in strict.err


def test_a_secret_must_be_given_again(workspace: Path, whet: Whet) -> None:
    uri = "mlflow_tracking_uri: https://me:hunter2hunter2@127.0.0.1:1/\nuse_mlflow: false\n"
    (workspace / "my.yaml").write_text(CONFIG + uri)
    assert whet("train", "my.yaml").code == 0
    assert "hunter2" not in (workspace / "out" / "run.json").read_text()
    (error,) = whet("rerun", "out/run.json").errors
    assert "the value was a secret, which a record does not keep" in error
    assert error.endswith("--mlflow-tracking-uri VALUE")
    assert whet("rerun", "out/run.json", "--mlflow-tracking-uri", "").code == 0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no such file"),
        ("{", "this is no record of a run"),
        (
            '{"outcome": "finished", "versions": {"whet": "0.0.1"}}',
            "it was written by whet 0.0.1, which kept too little",
        ),
        ('{"kind": "merge"}', "this is the record of: merge"),
        ('{"schema": 99, "written": {}, "values": {}}', "it has schema 99"),
    ],
)
def test_what_is_no_record_of_a_run_is_refused(content: str | None, said: str, workspace: Path, whet: Whet) -> None:
    if content is not None:
        Path("run.json").write_text(content)
    (error,) = whet("rerun", "run.json").errors
    assert said in error
