"""The checks of ``whet check``, each on a run that has what it looks for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.models import save_tiny_model

from whet.checks import CHECKS, base, in_order
from whet.checks.base import Subject, run_checks
from whet.config import make_config, resolve
from whet.core.errors import DataError, ModelError, Problem
from whet.core.types import Hardware
from whet.run import preprocess

MakeSubject = Callable[..., Subject]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def subject(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeSubject:
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "yes"}]} for n in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> Subject:
        values = {
            "base_model": str(model),
            "datasets": [{"path": "rows.jsonl", "type": "chat_template"}],
            "learning_rate": 1e-4,
            "sequence_len": 64,
            "output_dir": "out",
            **changes,
        }
        config = make_config(values)
        return Subject(config, resolve(config, Hardware("cpu")))

    return make


def findings(name: str, subject: Subject) -> tuple[list[str], list[Problem]]:
    found = list(CHECKS.load(name)(subject))
    return [item for item in found if isinstance(item, str)], [item for item in found if isinstance(item, Problem)]


def test_a_sound_run_has_facts_and_no_problems(subject: MakeSubject) -> None:
    reports = list(run_checks(subject()))
    assert [report.name for report in reports] == in_order()
    assert [report.problems for report in reports] == [()] * len(reports)
    assert next(report for report in reports if report.name == "data").facts[0].startswith("rows.jsonl (chat_template)")


def test_checking_writes_nothing(subject: MakeSubject, tmp_path: Path) -> None:
    list(run_checks(subject()))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]


def test_output_that_is_a_file_is_a_problem(subject: MakeSubject, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    _, problems = findings("output", subject())
    assert [problem.found for problem in problems] == ["output_dir: 'out' is a file, and 'out' must be a folder"]


def test_an_output_folder_below_a_file_is_a_problem(subject: MakeSubject, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("")
    _, problems = findings("output", subject(output_dir="a/out"))
    assert len(problems) == 1
    assert "a' is a file" in problems[0].found


def test_little_room_is_a_problem(subject: MakeSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 5_000_000

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    _, problems = findings("output", subject())
    assert problems[0].found.startswith("output_dir: only 5 MB are free in ")


def test_a_sequence_longer_than_the_model_is_a_problem(subject: MakeSubject) -> None:
    facts, problems = findings("model", subject(sequence_len=4096))
    assert facts[0].startswith("llama, 2 layers, hidden size 32, 4 heads (2 of keys and values), vocabulary 300")
    assert [problem.key for problem in problems] == ["sequence_len"]


def test_adapter_targets_are_looked_for_without_loading_weights(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", _must_not_be_called)
    facts, problems = findings("adapter", subject(adapter="lora", lora_target_modules=["q_proj", "up_proj"]))
    assert facts == ["lora: rank 8, alpha 16 on q_proj, up_proj"]
    assert problems == []
    with pytest.raises(ModelError, match=r"'q_prj' matches no layer .* did you mean 'q_proj'"):
        findings("adapter", subject(adapter="lora", lora_target_modules=["q_prj"]))


def test_a_full_fine_tune_has_no_adapter_to_check(subject: MakeSubject) -> None:
    assert findings("adapter", subject()) == ([], [])


def test_packages_that_are_not_installed_are_named_with_their_extra(
    subject: MakeSubject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("whet.checks.packages.find_spec", lambda name: None)
    _, problems = findings(
        "packages", subject(adapter="qlora", load_in_4bit=True, lora_target_linear=True, use_mlflow=True)
    )
    assert [(problem.found, problem.fix) for problem in problems] == [
        ("load_in_4bit needs the package bitsandbytes, which is not installed", "pip install bitsandbytes"),
        ("use_mlflow needs the package mlflow, which is not installed", "pip install mlflow"),
    ]
    assert findings("packages", subject()) == ([], [])


def test_every_dataset_and_every_reason_is_reported(subject: MakeSubject, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"messages": [\n{"text": 1}\n{"text": 2}\n')
    (tmp_path / "empty.jsonl").write_text("")
    datasets = [{"path": name, "type": "chat_template"} for name in ("bad.jsonl", "rows.jsonl", "empty.jsonl")]
    facts, problems = findings("data", subject(datasets=datasets))
    assert [problem.where for problem in problems[:2]] == ["bad.jsonl:1", "bad.jsonl:2"]
    assert problems[0].found.startswith("1 of the first 3 rows: ")
    assert problems[1].found.startswith("2 of the first 3 rows: ")
    assert problems[2].found == "'empty.jsonl' holds no rows"
    assert len(facts) == 1


def test_a_template_that_rewrites_history_is_answered_with_the_choice(subject: MakeSubject, tmp_path: Path) -> None:
    answers = ("<think>one</think>1", "<think>two</think>2")
    turns = [({"role": "user", "content": "?"}, {"role": "assistant", "content": answer}) for answer in answers]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": [message for turn in turns for message in turn]}))
    _, problems = findings("data", subject(chat_template="qwen3"))
    assert len(problems) == 1
    assert problems[0].found.startswith("1 of the first 1 rows: the template rewrites earlier turns: message 1 is ")
    assert problems[0].fix.startswith("set `explode_turns: true` in the dataset")


def test_bad_rows_are_facts_where_the_config_drops_them_and_some_are_left(subject: MakeSubject, tmp_path: Path) -> None:
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text('{"text": 1}\n' + text)
    facts, problems = findings("data", subject(on_bad_row="drop"))
    assert problems == []
    assert facts[0].startswith("rows.jsonl:1: 1 of the first 4 rows: ")
    assert facts[0].endswith("(dropped, as on_bad_row says)")


def test_rows_that_do_not_fit_are_counted(subject: MakeSubject) -> None:
    facts, _ = findings("data", subject(sequence_len=8))
    assert facts[0].endswith("3 longer than sequence_len 8")


def test_prompts_may_have_any_length(subject: MakeSubject, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a question of many words", "answer": "x"}\n')
    facts, problems = findings(
        "data", subject(sequence_len=8, rl="grpo", datasets=[{"path": str(tmp_path / "rows.jsonl")}])
    )
    assert problems == []
    assert "longer than sequence_len" not in facts[0]


def test_the_plan_waits_for_prepared_data(subject: MakeSubject) -> None:
    facts, _ = findings("plan", subject())
    assert facts[0].startswith("steps are known after 'whet preprocess")


def test_the_plan_says_what_the_run_sees_of_each_dataset(subject: MakeSubject, tmp_path: Path) -> None:
    (tmp_path / "more.jsonl").write_text((tmp_path / "rows.jsonl").read_text().replace("yes", "no"))
    rows = [{"path": f"{name}.jsonl", "type": "chat_template", "epochs": n} for name, n in (("rows", 2), ("more", 1))]
    mixed = subject(datasets=rows)
    preprocess(mixed.config)
    facts, _ = findings("plan", mixed)
    assert facts[0].startswith("9 steps of 1 samples, 9 an epoch")
    assert facts[1] == "rows: 67.50% of the tokens (67.5% asked), each row 2 times"
    assert facts[2] == "more: 32.50% of the tokens (32.5% asked), each row once"


def test_one_problem_met_by_several_checks_is_told_once(subject: MakeSubject, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem("a", "b", "c")

    def failing(_: Subject) -> Iterator[str | Problem]:
        yield "a fact"
        raise DataError(problem)

    monkeypatch.setattr(base, "in_order", lambda: ["model", "data"])
    monkeypatch.setattr(CHECKS, "load", lambda name: failing)
    reports = list(run_checks(subject()))
    assert [report.facts for report in reports] == [("a fact",), ("a fact",)]
    assert [report.problems for report in reports] == [(problem,), ()]


def _must_not_be_called(*_: Any, **__: Any) -> None:
    raise AssertionError("weights were loaded")
