"""A resumed run is the same run, or the one that the user has said it may be; and its folder says what it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import CONFIG, Outcome, Whet, chat, write_rows

from whet.artefacts.card import MARK
from whet.config.facts import read_facts
from whet.model.identity import identify_weights, read_identity

STEPS = CONFIG.replace('save_strategy: "no"', "save_steps: 2\nlogging_steps: 1\nweight_decay: 0.1").replace(
    "max_steps: 2", "max_steps: 4"
)
LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"


def rates(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "train"}


def record(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return read


@pytest.fixture
def stopped(workspace: Path, whet: Whet) -> Path:
    """A finished run of 4 steps in ``out``, of which ``out/checkpoint-2`` is the newest checkpoint."""
    (workspace / "my.yaml").write_text(STEPS)
    assert whet("train", "my.yaml").code == 0
    shutil.rmtree(workspace / "out" / "checkpoint-4")
    return workspace


def resumed(whet: Whet, *more: str) -> Outcome:
    return whet("train", "my.yaml", "--resume-from-checkpoint", *more)


def test_another_run_is_refused_with_the_difference_and_its_line(stopped: Path, whet: Whet) -> None:
    (stopped / "my.yaml").write_text(STEPS.replace("learning_rate: 0.001", "learning_rate: 0.01"))
    before = record(stopped / "out")
    outcome = resumed(whet, "--logging-steps", "2")
    assert outcome.code == 2
    table = [line.split() for line in outcome.err.splitlines()]
    assert ["learning_rate", "0.001", "0.01", "my.yaml:9:1"] in table
    assert "allow it: --allow-change learning_rate" in outcome.err
    assert "logging_steps" not in outcome.err, "what changes nothing is not in the way"
    after = record(stopped / "out")
    assert after["values"] == before["values"], "the record is that of the run, not of the one that was refused"
    assert after["sessions"][-1]["outcome"].startswith("refused")
    assert (stopped / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("--optimizer", "sgd"), "the state in the checkpoint is that of another optimizer"),
        (("--adapter", "lora", "--lora-target-linear"), "the checkpoint holds other weights"),
        (("--lr-scheduler", "linear"), "the state in the checkpoint is that of another schedule"),
    ],
)
def test_what_the_checkpoint_cannot_give_is_an_error_in_words(
    more: tuple[str, ...], why: str, stopped: Path, whet: Whet
) -> None:
    outcome = resumed(whet, *more)
    assert outcome.code == 2
    assert why in outcome.err
    assert "what is fixed cannot be allowed" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"learning-rate": "0.01"}, id="learning rate"),
        pytest.param({"max-steps": "6"}, id="more steps"),
        pytest.param({"warmup-steps": "3", "learning-rate": "0.002"}, id="warm-up and rate"),
    ],
)
def test_what_was_allowed_is_obeyed(changes: dict[str, str], stopped: Path, whet: Whet) -> None:
    """The rest of the run has the learning rates of a run that had these values from the beginning."""
    words = [word for key, value in changes.items() for word in (f"--{key}", value)]
    allowed = [word for key in changes for word in ("--allow-change", key.replace("-", "_"))]
    outcome = resumed(whet, *words, *allowed)
    assert outcome.code == 0, outcome.err
    assert "from checkpoint-2 on, the run is another one, as was allowed" in outcome.err
    assert whet("train", "my.yaml", *words, "--output-dir", "whole").code == 0
    found, wanted = rates(stopped / "out"), rates(stopped / "whole")
    assert {step: rate for step, rate in found.items() if step > 2} == {
        step: pytest.approx(rate) for step, rate in wanted.items() if step > 2
    }
    first, second = record(stopped / "out")["sessions"]
    assert second["resumed_from"] == "out/checkpoint-2"
    assert {change["key"] for change in second["changes"]} == {key.replace("-", "_") for key in changes}
    assert "changes" not in first


def test_settings_of_the_optimizer_that_were_allowed_are_not_taken_from_the_checkpoint(
    stopped: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen: list[float] = []
    step = torch.optim.AdamW.step

    def watched(optimizer: torch.optim.AdamW, *arguments: Any, **options: Any) -> Any:
        seen.append(max(group["weight_decay"] for group in optimizer.param_groups))
        return step(optimizer, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", watched)
    outcome = resumed(whet, "--weight-decay", "0.5", "--allow-change", "weight_decay")
    assert outcome.code == 0, outcome.err
    assert seen == [0.5, 0.5]


def test_other_data_under_the_same_name_is_another_run(stopped: Path, whet: Whet) -> None:
    write_rows(stopped / "rows.jsonl", [chat(f"What is {n} + 2?", f"It is {n + 2}.") for n in range(12)])
    outcome = resumed(whet)
    assert outcome.code == 2
    assert "the same name, and other content" in outcome.err
    assert "--allow-change data" in outcome.err
    assert resumed(whet, "--allow-change", "data").code == 0


def test_packs_of_another_capacity_are_another_run(stopped: Path, whet: Whet) -> None:
    """Though every sample fits both, and the prepared samples are the same."""
    assert "sample_packing: true" in STEPS
    outcome = resumed(whet, "--sequence-len", "192")
    assert outcome.code == 2, outcome.err
    assert ["sequence_len", "128", "192"] in [line.split()[:3] for line in outcome.err.splitlines()]
    assert "some twice, some never" in outcome.err


def test_an_adapter_knows_its_base_wherever_it_goes(workspace: Path, whet: Whet) -> None:
    (workspace / "my.yaml").write_text(STEPS + LORA + "merge_adapters: true\n")
    out = workspace / "out"
    out.mkdir()
    (out / "README.md").write_text("# My own words\n")
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert (out / "README.md").read_text() == "# My own words\n"
    assert "README.md is your own" in outcome.err

    base = identify_weights(workspace / "model")
    assert base is not None
    for folder in (out, out / "checkpoint-2"):
        identity = read_identity(folder)
        assert identity is not None
        assert identity.weights == base.weights
    facts = read_facts(out / "checkpoint-2")
    assert facts is not None
    assert facts.identities.keys() == {"data", "tokenizer", "chat_template", "base_model", "order_of_rows"}

    merged = record(out / "merged")
    assert (merged["kind"], merged["outcome"], merged["made_of"]["folder"]) == ("merge", "finished", "out")
    assert merged["made_of"]["run"]["identities"] == record(out)["identities"]
    assert MARK in (out / "merged" / "README.md").read_text()
