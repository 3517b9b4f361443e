"""The command itself: help is light, every misuse is one clear line, and each kind of end has its exit code."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.e2e.conftest import Whet, chat, write_rows

COMMANDS = [
    [],
    ["train"],
    ["preprocess"],
    ["inspect"],
    ["check"],
    ["inference"],
    ["chat"],
    ["merge-lora"],
    ["quantize"],
    ["evaluate"],
    ["config"],
    ["config", "schema"],
    ["config", "explain"],
]

HEAVY = ["torch", "transformers", "numpy", "datasets", "pydantic", "peft", "accelerate", "pyarrow", "ruamel"]

SHOW_HEAVY_MODULES = f"""
import sys
from whet.cli.main import run_command
code = run_command(sys.argv[1:])
print("HEAVY", sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
raise SystemExit(code)
"""


def whet_process(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "whet", *arguments], capture_output=True, text=True, cwd=folder, timeout=120, check=False
    )


def modules_after(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SHOW_HEAVY_MODULES, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command) or "whet")
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    result = modules_after(*command, "--help")
    assert result.returncode == 0, result.stderr
    assert "Usage: whet" in result.stdout
    assert "HEAVY []" in result.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if command], ids=" ".join)
def test_every_command_is_named_in_the_help_above_it(command: list[str]) -> None:
    listing = whet_process(*command[:-1], "--help").stdout
    assert f"\n  {command[-1]} " in listing
    assert "..." not in listing.partition("Commands:")[2], "a sentence is cut short at 80 columns"


def test_version_and_help_by_the_module_are_those_of_the_command() -> None:
    from whet import __version__

    assert whet_process("--version").stdout == f"whet {__version__}\n"
    assert whet_process().stdout == whet_process("--help").stdout == whet_process("-h").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian", "my.yaml"], "error: whet: there is no command 'trian' -> did you mean 'train'?"),
        (["config", "explian"], "error: whet config: there is no command 'explian' -> did you mean 'explain'?"),
        (["train"], "error: whet train: no CONFIG was given -> put the YAML file first: whet train my.yaml"),
        (
            ["train", "my.yaml", "--lancher", "torchrun"],
            "error: whet train: unknown option '--lancher' -> did you mean '--launcher'?",
        ),
        (
            ["preprocess", "my.yaml", "--debug_num_exampels", "3"],
            "error: whet preprocess: unknown option '--debug_num_exampels' -> did you mean '--debug-num-examples'?",
        ),
        (
            ["train", "my.yaml", "--launcher", "ray"],
            "error: whet train: invalid value for '--launcher': 'ray' is not one of 'python', 'torchrun' -> "
            "'whet train --help' shows what it takes",
        ),
        (
            ["train", "my.yaml", "--num-processes", "2"],
            "error: whet train: --num-processes has no meaning for one process -> add --launcher torchrun",
        ),
        (
            ["train", "my.yaml", "--", "--max-restarts", "1"],
            "error: whet train: nothing takes the arguments after '--': --max-restarts 1 -> add --launcher torchrun",
        ),
        (
            ["check", "my.yaml", "second.yaml"],
            "error: whet check: got unexpected extra argument(s) (second.yaml) -> "
            "'whet check --help' shows what it takes",
        ),
        (
            ["config", "schema", "--outptu", "x.json"],
            "error: whet config schema: no such option: --outptu (Possible options: --output) -> "
            "'whet config schema --help' shows what it takes",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_misused_command_gets_one_clear_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    result = whet_process(*arguments)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [message]
    assert result.stdout == ""


# --- With a tiny model: what each command prints, and where ----------------------------------------------------------


@pytest.mark.parametrize("command", ["train", "check", "preprocess", "chat", "merge-lora", "quantize", "evaluate"])
def test_config_errors_come_without_importing_torch(command: str, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("base_model: ./model\nlearing_rate: 1\nmicro_batch_size: 0\n")
    result = modules_after(command, "my.yaml", folder=tmp_path)
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) >= 3
    assert "my.yaml:2:1: unknown key 'learing_rate' -> did you mean 'learning_rate'?" in result.stderr
    heavy = result.stderr.splitlines()[-1]
    assert heavy.startswith("HEAVY")
    assert not any(package in heavy for package in ("torch", "transformers", "datasets"))


def test_a_missing_config_is_one_clear_line(workspace: Path, whet: Whet) -> None:
    outcome = whet("train", "mine.yaml")
    assert outcome.code == 2
    assert len(outcome.errors) == 1
    assert "mine.yaml" in outcome.errors[0]
    assert "Traceback" not in outcome.err


def test_check_tells_facts_and_says_ready(workspace: Path, whet: Whet) -> None:
    outcome = whet("check", "my.yaml")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0].startswith("config     my.yaml: sft on ")
    assert any(line.startswith("model      llama, 2 layers, hidden size 32") for line in lines)
    assert any(line.startswith("data       rows.jsonl (chat_template): first 12 rows") for line in lines)
    assert lines[-1] == "ready      whet train my.yaml"
    assert not (workspace / "out").exists()
    assert not (workspace / "last_run_prepared").exists()


def test_check_counts_steps_from_a_prepared_set(workspace: Path, whet: Whet) -> None:
    assert whet("preprocess", "my.yaml").code == 0
    lines = whet("check", "my.yaml").out.splitlines()
    assert any(line.startswith("plan       2 steps of 1 packs") for line in lines)


def test_check_reports_problems_of_several_checks_at_once(workspace: Path, whet: Whet) -> None:
    write_rows(workspace / "rows.jsonl", [{"message": []}, chat("a", "b")])
    targets = ("--adapter", "lora", "--lora-target-modules", "[gate_prj]")
    outcome = whet("check", "my.yaml", *targets, "--sequence-len", "100000")
    assert outcome.code == 2
    found = "\n".join(outcome.errors)
    assert "sequence_len is 100000" in found
    assert "'gate_prj' matches no layer of model -> did you mean 'gate_proj'?" in found
    assert "rows.jsonl:1: 1 of the first 2 rows: " in found
    assert "ready" not in outcome.out


def test_preprocess_debug_shows_what_is_trained(workspace: Path, whet: Whet) -> None:
    outcome = whet("preprocess", "my.yaml", "--debug", "--debug-text-only", "--debug-num-examples", "2")
    assert outcome.code == 0, outcome.err
    assert "rows.jsonl:1: " in outcome.out
    assert "What is 1 + 1?<|im_end|>\n<|im_start|>assistant\n[[It is 2.<|im_end|>]]" in outcome.out
    assert "What is 2 + 1?" not in outcome.out


def test_preprocess_debug_shows_ids_and_labels(workspace: Path, whet: Whet) -> None:
    out = whet("preprocess", "my.yaml", "--debug").out
    assert "<|im_start|>(-100, 3)" in out
    assert "<|im_end|>(4, 4)" in out


def test_explain_names_the_origin_of_each_value(workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHET_WEIGHT_DECAY", "0.1")
    outcome = whet("config", "explain", "my.yaml", "--learning-rate", "1e-4")
    rows = dict(line.split("\t", 1) for line in outcome.out.splitlines())
    assert rows["base_model"] == "model\tmy.yaml:1:1"
    assert rows["datasets.0.path"] == "rows.jsonl\tmy.yaml:3:5"
    assert rows["learning_rate"].startswith("0.0001\t--learning-rate (replaces 0.001 of my.yaml:")
    assert rows["weight_decay"] == "0.1\tenvironment variable WHET_WEIGHT_DECAY"
    assert rows["global_batch_size"] == "1\tderived: from the values above"
    assert "seed" not in rows
    every = whet("config", "explain", "my.yaml", "--all").out
    assert "seed\t42\tdefault" in every.splitlines()


def test_schema_is_json_on_standard_output_or_in_a_file(workspace: Path, whet: Whet) -> None:
    printed = json.loads(whet("config", "schema").out)
    assert "learning_rate" in printed["properties"]
    assert whet("config", "schema", "--output", "schema.json").code == 0
    assert json.loads((workspace / "schema.json").read_text(encoding="utf-8")) == printed
    outcome = whet("config", "schema", "--output", "no/schema.json")
    assert outcome.code == 2
    assert outcome.errors == [
        "no/schema.json: cannot be written: No such file or directory -> choose a folder that exists and is yours"
    ]


def test_chat_before_training_says_what_to_do(workspace: Path, whet: Whet) -> None:
    outcome = whet("chat", "my.yaml", "--prompt", "hi")
    assert outcome.code == 2
    assert outcome.errors == [
        "my.yaml:13:1: there is no trained model in 'out' yet -> train it: whet train my.yaml; "
        "or add --untrained for the base model as it is"
    ]


def test_chat_refuses_a_setting_that_means_nothing_before_it_loads_a_model(workspace: Path, whet: Whet) -> None:
    outcome = whet("chat", "my.yaml", "--untrained", "--temperature", "9")
    assert outcome.code == 2
    assert outcome.errors == ["temperature: 9.0 is out of range -> write a number from 0 to 5"]


@pytest.mark.parametrize(
    "adapter", [(), ("--adapter", "lora", "--lora-target-linear", "--lora-r", "4")], ids=["full", "lora"]
)
def test_a_trained_model_answers_from_a_pipe_as_in_one_shot(
    workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch, adapter: tuple[str, ...]
) -> None:
    steps = ("--max-steps", "3")
    assert whet("train", "my.yaml", *adapter, *steps).code == 0
    short = ("--max-new-tokens", "6")
    once = whet("chat", "my.yaml", *adapter, *short, "--prompt", "What is 1 + 1?")
    assert once.code == 0, once.err
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 1 + 1?\n\n/new\nWhat is 1 + 1?\n/quit\nnever read\n"))
    piped = whet("chat", "my.yaml", *adapter, *short)
    assert piped.code == 0
    assert piped.out == f"{once.out}A new conversation.\n{once.out}"
    assert "\x1b" not in piped.out
    untrained = whet("chat", "my.yaml", *adapter, *short, "--prompt", "What is 1 + 1?", "--untrained")
    assert untrained.code == 0


def test_a_line_that_cannot_be_answered_is_told_and_the_next_ones_are_answered(
    workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("/histroy\n/history\n"))
    outcome = whet("chat", "my.yaml", "--untrained")
    assert outcome.code == 2
    assert outcome.errors == ["there is no command '/histroy' -> did you mean '/history'?"]
    assert outcome.out == "Nothing has been said yet.\n"


def test_a_reader_that_has_left_ends_the_command_in_silence() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "whet", "config", "schema"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    os.close(writing)
    assert result.returncode == 141
    assert result.stderr == ""


def test_mistakes_of_a_rank_keep_their_words_and_exit_code(workspace: Path) -> None:
    targets = ("--adapter", "lora", "--lora-target-modules", "[gate_prj]")
    result = whet_process(
        "train", "my.yaml", *targets, "--launcher", "torchrun", "--num-processes", "2", folder=workspace
    )
    assert result.returncode == 2
    assert "error: --lora-target-modules: lora_target_modules: 'gate_prj' matches no layer" in result.stderr
    assert "Traceback" not in result.stderr


def test_arguments_that_torchrun_does_not_have_are_refused_before_anything_is_prepared(
    workspace: Path, whet: Whet
) -> None:
    outcome = whet("train", "my.yaml", "--launcher", "torchrun", "--", "--nproc-per-nde", "2")
    assert outcome.code == 2
    assert outcome.errors == [
        "whet train: torchrun has no argument '--nproc-per-nde' -> did you mean '--nproc-per-node'?"
    ]
    assert not (workspace / "last_run_prepared").exists()
