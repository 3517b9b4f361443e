"""An unquoted word means what its key can take; a quoted one is text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from whet.config import Config, load_config
from whet.core.errors import ConfigError

BASE = """\
base_model: org/model
datasets: [{path: org/data, type: alpaca}]
learning_rate: 1e-4
"""


def load(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "my.yaml"
    path.write_text(BASE + text)
    return load_config(path, environ={})


def fix_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        load(tmp_path, text)
    (problem,) = error.value.problems
    assert problem.where.endswith("my.yaml:4:1")
    return f"{problem.found} -> {problem.fix}"


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("weight_decay: 1e-4", "weight_decay", 1e-4),
        ("weight_decay: 1.e-5", "weight_decay", 1e-5),
        ("weight_decay: .1", "weight_decay", 0.1),
        ("weight_decay: 1E-2", "weight_decay", 0.01),
        ("weight_decay: 2", "weight_decay", 2.0),
        ("weight_decay: '2e-4'", "weight_decay", 2e-4),
        ("max_steps: 1e3", "max_steps", 1000),
        ("max_steps: 1_000", "max_steps", 1000),
        ("max_steps: 4.0", "max_steps", 4),
        ("eval_sample_packing: no", "eval_sample_packing", False),
        ("pad_to_sequence_len: yes", "pad_to_sequence_len", True),
        ("tf32: off", "tf32", False),
        ("tf32: auto", "tf32", "auto"),
        ("save_strategy: no", "save_strategy", "no"),
        ("wandb_watch: false", "wandb_watch", "false"),
        ("hub_model_id: on", "hub_model_id", "on"),
        ("hub_model_id: 1e5", "hub_model_id", "1e5"),
        ("hub_model_id: 0123456", "hub_model_id", "0123456"),
        ("hub_model_id: 1.10", "hub_model_id", "1.10"),
        ("hub_model_id: true", "hub_model_id", "true"),
        ("tokens: [1, no, 2024-01-01]", "tokens", ("1", "no", "2024-01-01")),
        ("resume_from_checkpoint: true", "resume_from_checkpoint", True),
        ("added_tokens_overrides: {128011: <|tool|>}", "added_tokens_overrides", {128011: "<|tool|>"}),
        ("max_memory: {0: 20GiB, cpu: 60GiB}", "max_memory", {0: "20GiB", "cpu": "60GiB"}),
        ("model_config: {id2label: {0: no}, x: 1e-4}", "overrides_of_model_config", {"id2label": {0: "no"}, "x": 1e-4}),
        ("optim_args: momentum=0.9,nesterov=true", "optim_args", {"momentum": 0.9, "nesterov": True}),
        ("eval_sequence_len:", "eval_sequence_len", None),
        ("output_dir:", "output_dir", "./model-out"),
        ("seed: null", "seed", 42),
        ("special_tokens:", "special_tokens", None),
    ],
)
def test_a_word_is_read_as_its_key_wants_it(tmp_path: Path, text: str, key: str, value: Any) -> None:
    read = load(tmp_path, text).value(key)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_steps: 1.5", "max_steps is 1.5 -> write a whole number"),
        ("max_steps: many", "max_steps is 'many' -> write a whole number"),
        ("max_steps: true", "max_steps is True -> write a whole number"),
        ("max_steps: -1", "max_steps is -1 -> write a whole number above 0"),
        ("num_epochs: 0", "num_epochs is 0 -> write a number above 0"),
        ("num_epochs: .inf", "num_epochs is inf -> write a number"),
        ("weight_decay: .nan", "weight_decay is nan -> write a number"),
        ("sample_packing: 1", "sample_packing is 1 -> write true or false"),
        ("sample_packing: 'true'", "sample_packing is 'true' -> write true or false"),
        ("tf32: atuo", "tf32 is 'atuo' -> did you mean 'auto'?"),
        ("save_strategy: epochs", "save_strategy is 'epochs' -> did you mean 'epoch'?"),
        ("save_strategy: false", "save_strategy is False -> write no or steps or epoch or best"),
        ("tokens: <s>", "tokens is '<s>' -> write a list of texts: [<s>]"),
        ("tokens: {a: b}", "tokens is a mapping -> write a list of texts"),
        ("hub_model_id: [a]", "hub_model_id is a list -> write text"),
        ("special_tokens: <s>", "special_tokens is '<s>' -> write a mapping"),
        ("lora_rank_pattern: {q_proj: 0}", "lora_rank_pattern.q_proj is 0 -> write a whole number above 0"),
        ("eval_steps: -2", "eval_steps is -2 -> write a number above 0"),
        ("output_dir: ''", "output_dir is '' -> write at least one"),
        ("optim_args: x", "optim_args is 'x' -> write a mapping, or pairs as in momentum=0.9,nesterov=true"),
    ],
)
def test_a_value_of_another_type_says_what_to_write(tmp_path: Path, text: str, message: str) -> None:
    if "lora" in text:
        with pytest.raises(ConfigError, match="write a whole number above 0"):
            load(tmp_path, text)
        return
    assert fix_of(tmp_path, text) == message


def test_a_config_cannot_be_written_to(tmp_path: Path) -> None:
    config = load(tmp_path, "")
    with pytest.raises(ValueError, match="frozen"):
        config.loop.seed = 1
    with pytest.raises(ValueError, match="frozen"):
        config.data.datasets[0].path = "x"
