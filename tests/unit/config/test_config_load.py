"""A config is read with its layers in order and with every problem at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whet.config import Config, explain, load_config, make_config
from whet.config.known_keys import every_name
from whet.config.schema import fields
from whet.core.errors import ConfigError, Problem

BASE = """\
base_model: org/model
datasets:
  - path: org/data
    type: alpaca
learning_rate: 1e-4
"""


@pytest.fixture
def yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("my.yaml")
    path.write_text(BASE)
    return path


def problems_of(path: Path, *overrides: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides, environ or {})
    return [str(problem) for problem in error.value.problems]


def origin(config: Config, key: str) -> str:
    return next(str(row.origin) for row in explain(config) if row.key == key)


def test_every_problem_is_told_at_once_in_the_order_of_the_file(yaml: Path) -> None:
    yaml.write_text(
        "base_modle: ./nowhere\n"
        "datasets:\n"
        "  - path: data.jsonl\n"
        "    type: chat_templat\n"
        "    fieldmessages: x\n"
        "  - type: alpaca\n"
        "  - path: org/d\n"
        "    type: {forma: a}\n"
        "learning_rate: -1e-4\n"
        "micro_batch_size: 0\n"
        "seed: 3\n"
        "lora_dropout: 1.5\n"
        "optimizer: adamw_tortch\n"
        "lr_scheduler: cosin\n"
        "chat_template: chatmll\n"
        "warmup_steps: 10\n"
        "warmup_ratio: 0.1\n"
        "dsv4_bf16_all: true\n"
        "seed: 4\n"
        "special_tokens:\n"
        "  pad_tokn: x\n"
        "world_size: 2\n"
        "fsdp_config:\n"
        "  fsdp_ofload_params: true\n"
    )
    words = ("--learning-rat", "3", "--datasets.7.path", "x")
    assert problems_of(yaml, *words, environ={"WHET_SEEED": "1"}) == [
        "my.yaml:1:1: unknown key 'base_modle' -> did you mean 'base_model'?",
        "my.yaml:3:5: datasets[0].path: there is no 'data.jsonl' -> "
        "paths count from the working folder, then from the YAML's",
        "my.yaml:4:5: datasets[0].type: there is no type 'chat_templat' -> did you mean 'chat_template'?",
        "my.yaml:5:5: unknown key 'datasets[0].fieldmessages' -> did you mean 'field_messages'?",
        "my.yaml:6:5: datasets[1] has no path -> add `path: ...`",
        "my.yaml:8:12: unknown key 'datasets[2].type.forma' -> did you mean 'format'?",
        "my.yaml:9:1: learning_rate is -0.0001 -> write a number above 0",
        "my.yaml:10:1: micro_batch_size is 0 -> write a whole number above 0",
        "my.yaml:12:1: lora_dropout is 1.5 -> write a number below 1",
        "my.yaml:13:1: optimizer: there is no 'adamw_tortch' -> did you mean 'adamw_torch'?",
        "my.yaml:14:1: lr_scheduler: there is no 'cosin' -> did you mean 'cosine'?",
        "my.yaml:15:1: chat_template: there is no template 'chatmll' -> did you mean 'chatml'?",
        "my.yaml:17:1: warmup_ratio is written, and so is warmup_steps (my.yaml:16:1) -> keep one of them",
        "my.yaml:18:1: 'dsv4_bf16_all' is not supported yet -> write bf16, fp16, bfloat16 or float32",
        "my.yaml:19:1: 'seed' is written twice, first on line 11 -> keep one of the two lines",
        "my.yaml:21:3: unknown key 'special_tokens.pad_tokn' -> did you mean 'pad_token'?",
        "my.yaml:22:1: 'world_size' is found out by the run itself and is no key to write -> remove the line",
        "my.yaml:24:3: unknown key 'fsdp_config.ofload_params' -> did you mean 'offload_params'?",
        "--datasets.7.path: '7' is no place in a list of 3 -> count from 0; 3 appends one",
        "environment variable WHET_SEEED: unknown key 'seeed' -> did you mean 'seed'?",
        "--learning-rat: unknown key 'learning_rat' -> did you mean 'learning_rate'?",
    ]


def test_what_must_be_there_is_asked_for(yaml: Path) -> None:
    yaml.write_text("seed: 1\n")
    assert problems_of(yaml) == [
        "my.yaml: base_model is missing -> add `base_model: <folder or hub id>`",
        "my.yaml: learning_rate is missing -> add `learning_rate: 2e-4` (LoRA), or 2e-5 when every weight is trained",
        "my.yaml: datasets is missing -> add `datasets:` with a row `- path: ...` and `type: ...`",
    ]


def test_layers_lie_over_one_another_and_nothing_is_replaced_silently(yaml: Path) -> None:
    Path(".env").write_text("# mine\nHF_TOKEN=x\nWHET_SEED=5\nexport WHET_WEIGHT_DECAY='0.2'\n")
    config = load_config(yaml, ["--learning-rate", "3e-4"], environ=None)
    assert (config.optimizer.learning_rate, config.loop.seed, config.optimizer.weight_decay) == (3e-4, 5, 0.2)
    assert origin(config, "learning_rate") == "--learning-rate (replaces 0.0001 of my.yaml:5:1)"
    assert origin(config, "seed") == ".env:3 WHET_SEED"
    assert origin(config, "base_model") == "my.yaml:1:1"
    assert origin(config, "micro_batch_size") == "default"


def test_the_process_goes_over_its_env_file_and_the_command_line_over_both(
    yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("WHET_LEARNING_RATE=2e-4\n")
    monkeypatch.setenv("WHET_LEARNING_RATE", "3e-4")
    assert load_config(yaml).optimizer.learning_rate == 3e-4
    config = load_config(yaml, ["--learning-rate=4e-4"])
    assert origin(config, "learning_rate") == (
        "--learning-rate (replaces 0.0001 of my.yaml:5:1, 0.0003 of environment variable WHET_LEARNING_RATE)"
    )


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["--learning-rate", "1e-5"], "learning_rate", 1e-5),
        (["--learning_rate=1e-5"], "learning_rate", 1e-5),
        (["--bf16"], "bf16", True),
        (["--no-bf16"], "bf16", False),
        (["--bf16", "auto"], "bf16", "auto"),
        (["--sample-packing", "--seed", "3"], "sample_packing", True),
        (["--lora.r", "4", "--adapter", "lora", "--lora.target-linear"], "lora_r", 4),
        (["--adapter.lora_r", "4", "--adapter", "lora", "--lora-target-linear"], "lora_r", 4),
        (["--tokens", "[a, no]"], "tokens", ("a", "no")),
        (["--model-config", "{x: 1}"], "overrides_of_model_config", {"x": 1}),
        (["--model-config.x.y", "1e-3"], "overrides_of_model_config", {"x": {"y": 1e-3}}),
        (["--default-system-message", "[be kind]: {always}"], "default_system_message", "[be kind]: {always}"),
        (["--chat-template-jinja", "{{ messages }}"], "chat_template_jinja", "{{ messages }}"),
        (["--hub-model-id", "12"], "hub_model_id", "12"),
        (["--dpo-beta", "0.2", "--rl", "dpo", "--datasets.0.type", "null"], "rl_beta", 0.2),
        (["--seed", "1", "--seed", "2"], "seed", 2),
    ],
)
def test_any_key_can_be_written_on_the_command_line(yaml: Path, words: list[str], key: str, value: object) -> None:
    assert load_config(yaml, words, environ={}).value(key) == value


def test_blocks_and_rows_can_be_reached_from_outside(yaml: Path) -> None:
    words = ["--datasets.0.path", "org/x", "--datasets.1", "{path: org/y, type: completion}", "--datasets.1.field", "t"]
    environ = {"WHET_SPECIAL_TOKENS__PAD_TOKEN": "<pad>", "WHET_TEST_DATASETS__0__PATH": "org/t"}
    config = load_config(yaml, words, environ)
    assert [(row.path, row.type, row.field) for row in config.data.datasets] == [
        ("org/x", "alpaca", None),
        ("org/y", "completion", "t"),
    ]
    assert config.tokenizer.special_tokens is not None
    assert config.tokenizer.special_tokens.pad_token == "<pad>"
    assert config.data.test_datasets[0].path == "org/t"
    assert origin(config, "datasets.0.path") == "--datasets.0.path (replaces org/data of my.yaml:3:5)"
    assert config.where(("datasets", 0, "path")) == "--datasets.0.path"
    assert config.where(("datasets", 0, "type")) == "my.yaml:4:5"
    assert config.where(("datasets", 0, "split")) == "my.yaml:3:5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learning_rate=3"], "command line: 'learning_rate=3' belongs to no option -> write --key value"),
        (["--seed", "x"], "--seed: seed is 'x' -> write a whole number"),
        (["--seed.x", "1"], "--seed.x: seed is a mapping -> write a whole number"),
        (
            ["--base-model.x", "1"],
            "--base-model.x: 'x' cannot be set inside the single value 'org/model' -> set the whole value",
        ),
        (
            ["--no-such"],
            "--no-such: unknown key 'no_such' -> `--help` lists the command's own options, `whet config schema` the "
            "keys, each of which is one too",
        ),
        (["--lora.rr", "8"], "--lora.rr: unknown key 'lora_rr' -> did you mean 'lora_r'?"),
        (["--datasetz.0.path", "8"], "--datasetz.0.path: unknown key 'datasetz' -> did you mean 'datasets'?"),
        (
            ["--datasets.x.path", "1"],
            "--datasets.x.path: 'x' is no place in a list of 1 -> count from 0; 1 appends one",
        ),
    ],
)
def test_a_wrong_option_is_named(yaml: Path, words: list[str], message: str) -> None:
    assert problems_of(yaml, *words) == [message]


def test_python_values_are_checked_as_a_file_is() -> None:
    with pytest.raises(ConfigError) as error:
        make_config({"base_model": "org/m", "learning_rate": 1e-4, "datasets": [{"path": "org/d", "typ": "alpaca"}]})
    assert str(error.value) == "datasets.0.typ: unknown key 'datasets[0].typ' -> did you mean 'type'?"
    config = make_config({"base_model": "org/m", "learning_rate": 1, "datasets": [{"path": "org/d", "type": "alpaca"}]})
    assert config.optimizer.learning_rate == 1.0
    assert config.where(("datasets", 0, "path")) == "datasets.0.path"


def test_paths_are_looked_for_in_the_working_folder_and_then_beside_the_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    (folder / "t.jinja").write_text("{{ messages }}")
    (folder / "model").mkdir()
    yaml = folder / "my.yaml"
    yaml.write_text(
        "base_model: ./model\nlearning_rate: 1e-4\nchat_template_jinja: t.jinja\n"
        "datasets: [{path: rows.jsonl, type: chat_template}]\n"
    )
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    config = load_config(yaml, environ={})
    assert (config.data.datasets[0].path, config.model.base_model) == (
        str(folder / "rows.jsonl"),
        str(folder / "model"),
    )
    assert config.template.chat_template_jinja == str(folder / "t.jinja")
    (work / "rows.jsonl").write_text("{}\n")
    assert load_config(yaml, environ={}).data.datasets[0].path == "rows.jsonl"


def test_missing_files_are_named_with_their_neighbours(yaml: Path) -> None:
    Path("data").mkdir()
    Path("data/rows.jsonl").write_text("{}\n")
    Path("z3.json").write_text("{oops")
    yaml.write_text(
        "base_model: ./model\nlearning_rate: 1e-4\ndeepspeed: z3.json\nchat_template_jinja: mine.jinja\n"
        "score_dataset: score.jsonl\nresume_from_checkpoint: out/checkpoint-3\n"
        "datasets:\n  - path: data/row.jsonl\n    type: chat_template\n"
        "  - path: data\n    data_files: [rows.jsonl, no.jsonl]\n"
        "    type: alpaca\n  - path: data/*.csv\n    type: alpaca\n  - path: s3://bucket/x.parquet\n    type: alpaca\n"
    )
    rules = "paths count from the working folder, then from the YAML's"
    assert problems_of(yaml) == [
        f"my.yaml:1:1: base_model: there is no './model' -> {rules}",
        "my.yaml:3:1: deepspeed: 'z3.json' is not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1) -> correct the file",
        f"my.yaml:4:1: chat_template_jinja: there is no 'mine.jinja' -> {rules}",
        f"my.yaml:5:1: score_dataset: there is no 'score.jsonl' -> {rules}",
        "my.yaml:6:1: resume_from_checkpoint: there is no 'out/checkpoint-3' -> "
        f"the folder 'out' does not exist; {rules}",
        "my.yaml:8:5: datasets[0].path: there is no 'data/row.jsonl' -> did you mean 'data/rows.jsonl'?",
        "my.yaml:11:5: datasets[1].data_files: there is no 'data/no.jsonl' -> did you mean 'data/rows.jsonl'?",
        f"my.yaml:13:5: datasets[2].path: there is no 'data/*.csv' -> {rules}",
    ]
    assert [problem for problem in problems_of(yaml) if "datasets[3]" in problem] == []
    assert problems_of(yaml, "--deepspeed", "data", "--score-dataset", "data")[-2:] == [
        "--score-dataset: score_dataset: 'data' is a folder -> name a file in it",
        "--deepspeed: deepspeed: 'data' is a folder -> name a file in it",
    ]


def test_a_config_is_read_without_torch(yaml: Path) -> None:
    code = (
        "import sys; from whet.config import load_config, explain, json_schema, resolve, check_runnable;"
        "from whet.core.types import Hardware; c = load_config('my.yaml', environ={});"
        "explain(c); json_schema(); resolve(c, Hardware('cpu')); check_runnable(c, Hardware('cpu'));"
        "print([m for m in ('torch', 'transformers', 'datasets', 'numpy', 'peft', 'trl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_env_file_that_cannot_be_read_is_told(yaml: Path) -> None:
    Path(".env").write_text("WHET_SEED\nOTHER '\nWHET_ 'x\n")
    with pytest.raises(ConfigError) as error:
        load_config(yaml)
    assert ".env:" in str(error.value)
    Path(".env").write_bytes(b"WHET_SEED=\xff\n")
    with pytest.raises(ConfigError, match=r"\.env: the file cannot be read: .* -> save it as UTF-8"):
        load_config(yaml)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted({*fields(), *every_name(), *(f"{key}x" for key in fields())})


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6))
def test_no_values_cause_anything_but_problems_with_a_cure(values: dict[str, Any]) -> None:
    base = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [{"path": "org/d", "type": "alpaca"}]}
    problems: tuple[Problem, ...]
    try:
        problems = make_config({**base, **values}).warnings
    except ConfigError as error:
        problems = error.problems
    assert all(problem.found and problem.fix for problem in problems)
