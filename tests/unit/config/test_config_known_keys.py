"""Every key of the reference is ours, another spelling of ours, or refused with advice."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.config import load_config
from whet.config.keys import LIKENESS_OF_OTHERS
from whet.config.known_keys import (
    ALIASES,
    ATTENTION_SWITCHES,
    ELSEWHERE,
    ELSEWHERE_OTHERWISE,
    INTERNAL,
    NO_EFFECT,
    OFF,
    REFUSED,
    RENAMED,
    ROW_NO_EFFECT,
    ROW_REFUSED,
)
from whet.config.schema import (
    DatasetConfig,
    FsdpConfig,
    LrGroup,
    PromptFormat,
    QatConfig,
    QuantizationConfig,
    SelectiveCheckpointing,
    SpecialTokens,
    fields,
)
from whet.config.schema.loop import DynamicCheckpointConfig
from whet.core.errors import ConfigError
from whet.core.nearest import nearest

KEYS = (Path(__file__).parents[2] / "data" / "axolotl_keys.txt").read_text().split()
"""Names of every key in the reference, those of blocks behind a dot."""

BLOCKS = {
    "datasets[]": DatasetConfig,
    "fsdp_config": FsdpConfig,
    "dynamic_checkpoint": DynamicCheckpointConfig,
    "lr_groups[]": LrGroup,
    "qat": QatConfig,
    "quantization": QuantizationConfig,
    "selective_checkpointing": SelectiveCheckpointing,
    "special_tokens": SpecialTokens,
}
BASE = "base_model: org/m\nlearning_rate: 1e-4\ndatasets: [{path: org/d, type: alpaca}]\n"
ROWS = "base_model: org/m\nlearning_rate: 1e-4\ndatasets:\n  - path: org/d\n    type: alpaca\n"


def load_text(tmp_path: Path, text: str) -> tuple[list[str], list[str]]:
    """Problems and warnings of a text."""
    path = tmp_path / "my.yaml"
    path.write_text(text)
    try:
        config = load_config(path, environ={})
    except ConfigError as error:
        return [str(problem).replace(str(tmp_path), "") for problem in error.problems], []
    return [], [str(problem).replace(str(tmp_path), "") for problem in config.warnings]


@pytest.mark.parametrize("key", KEYS)
def test_every_key_of_the_reference_is_known(tmp_path: Path, key: str) -> None:
    head, _, rest = key.partition(".")
    if rest and head in BLOCKS and rest.removeprefix("fsdp_") in BLOCKS[head].model_fields:
        return
    if not rest and head in fields():
        return
    if rest.removeprefix("type.") in PromptFormat.model_fields:
        return
    if key.startswith("datasets[].type."):
        problems, warnings = load_text(tmp_path, ROWS.replace("alpaca", f"{{{rest.removeprefix('type.')}: x}}"))
    elif rest and head == "datasets[]":
        problems, warnings = load_text(tmp_path, ROWS + f"    {rest}: 77\n")
    elif head == "fsdp_config":
        problems, warnings = load_text(tmp_path, BASE + f"fsdp_config: {{{rest}: 77}}\n")
    else:
        block = head.removesuffix("[]")
        value = "77" if not rest else f"[{{{rest}: 77}}]" if head.endswith("[]") else f"{{{rest}: 77}}"
        problems, warnings = load_text(tmp_path, BASE + f"{block}: {value}\n")
    said = problems + warnings
    assert said or head in ALIASES, f"{key} was accepted in silence"
    assert not any("unknown key" in sentence for sentence in said), said


def test_every_name_is_in_one_table_only() -> None:
    tables = [
        set(fields()),
        set(ALIASES),
        set(RENAMED),
        set(ATTENTION_SWITCHES),
        set(REFUSED),
        set(NO_EFFECT),
        INTERNAL,
    ]
    names = [name for table in tables for name in table]
    assert len(names) == len(set(names))
    assert set(ALIASES.values()) | set(RENAMED.values()) <= set(fields())
    assert set(OFF) <= set(REFUSED) | set(NO_EFFECT)
    assert set(ELSEWHERE.values()) <= set(fields())
    assert not {*ELSEWHERE, *ELSEWHERE_OTHERWISE} & {*names, *(ELSEWHERE.keys() & ELSEWHERE_OTHERWISE.keys())}


@pytest.mark.parametrize("key", [*ELSEWHERE, *ELSEWHERE_OTHERWISE])
def test_a_key_of_another_trainer_is_answered_with_ours(tmp_path: Path, key: str) -> None:
    problems, _ = load_text(tmp_path, BASE + f"{key}: 1\n")
    advice = ELSEWHERE_OTHERWISE.get(key) or f"did you mean '{ELSEWHERE[key]}'?"
    assert any(problem.endswith(f"unknown key '{key}' -> {advice}") for problem in problems), problems


def test_no_key_is_taken_for_one_that_is_refused_anyhow_unless_it_is_nearly_that(tmp_path: Path) -> None:
    assert nearest("do_train", ["kd_trainer"]) == "kd_trainer"
    assert nearest("do_train", ["kd_trainer"], likeness=LIKENESS_OF_OTHERS) is None
    problems, _ = load_text(tmp_path, BASE + "ray_num_worker: 1\n")
    assert problems[0].endswith("unknown key 'ray_num_worker' -> did you mean 'ray_num_workers'?")
    assert not set(DatasetConfig.model_fields) & (set(ROW_REFUSED) | set(ROW_NO_EFFECT))


@pytest.mark.parametrize("key", sorted(REFUSED))
def test_a_refused_key_says_what_to_write_and_passes_when_it_asks_for_nothing(tmp_path: Path, key: str) -> None:
    problems, _ = load_text(tmp_path, BASE + f"{key}: 77\n")
    assert problems == [f"/my.yaml:4:1: '{key}' is not supported yet -> {REFUSED[key]}"]
    for off in ("", " false", " null", " []", " ''", f" {OFF.get(key, 'null')}"):
        assert load_text(tmp_path, BASE + f"{key}:{off}\n") == ([], [])


@pytest.mark.parametrize("key", sorted(NO_EFFECT))
def test_a_key_without_effect_says_why(tmp_path: Path, key: str) -> None:
    problems, warnings = load_text(tmp_path, BASE + f"{key}: 77\n")
    assert problems == []
    assert warnings == [f"/my.yaml:4:1: '{key}' changes nothing here: {NO_EFFECT[key]} -> remove it"]
    assert load_text(tmp_path, BASE + f"{key}:\n") == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("noisy_embedding_alpha", "neftune_noise_alpha", 5),
        ("evaluation_strategy", "eval_strategy", "no"),
        ("dataset_processes", "dataset_num_proc", 2),
        ("pretrain_multipack_buffer_size", "streaming_multipack_buffer_size", 500),
    ],
)
def test_an_old_name_is_taken_and_said(tmp_path: Path, old: str, new: str, value: object) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(BASE + f"{old}: {value}\n")
    config = load_config(path, environ={})
    assert config.value(new) == value
    told = f"{path}:4:1: '{old}' is the old name of '{new}' -> write '{new}'"
    assert told in [str(warning) for warning in config.warnings]


def test_two_spellings_of_one_key_are_a_contradiction(tmp_path: Path) -> None:
    problems, _ = load_text(tmp_path, BASE + "evaluation_strategy: no\neval_strategy: no\n")
    assert problems == [
        "/my.yaml:5:1: 'eval_strategy' is the same key as 'evaluation_strategy' (/my.yaml:4:1) -> keep one of them"
    ]


def test_the_old_attention_switches_are_read(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(BASE + "flash_attention: true\nsdp_attention: false\nxformers_attention:\n")
    config = load_config(path, environ={})
    assert config.attention.attn_implementation == "flash_attention_2"
    assert str(config.origin("attn_implementation")) == f"{path}:4:1 (flash_attention)"
    assert load_text(tmp_path, BASE + "flash_attention: true\nattn_implementation: sdpa\n")[0] == [
        "/my.yaml:4:1: 'flash_attention' asks for flash_attention_2, and /my.yaml:5:1 for sdpa -> "
        "keep attn_implementation alone"
    ]
    assert load_text(tmp_path, BASE + "sage_attention: true\n")[0] == [
        "/my.yaml:4:1: 'sage_attention' asks for what is not computed: it rounds queries and keys to 8 bits, and was "
        "made for inference: it has no backward pass -> remove the line"
    ]
    assert load_text(tmp_path, BASE + "flash_attention: maybe\n")[0] == [
        "/my.yaml:4:1: flash_attention is 'maybe' -> write true or false"
    ]


PRETRAINING = "base_model: org/m\nlearning_rate: 1e-4\nmax_steps: 10\npretraining_dataset:\n"


def test_a_pretraining_dataset_is_a_stream_of_raw_texts(tmp_path: Path) -> None:
    """Axolotl's `pretraining_dataset`, with every key of its rows; a row, or a path, may stand alone."""
    path = tmp_path / "my.yaml"
    rows = "  - {path: org/d, name: en, split: train, text_column: body, data_files: x.json, skip: 3}\n"
    path.write_text(PRETRAINING + rows + "  - {path: org/e, type: completion, trust_remote_code: false}\n")
    data = load_config(path, environ={}).data
    assert data.streaming
    assert [row.type for row in data.datasets] == ["pretrain", "completion"]
    first = data.datasets[0]
    assert (first.name, first.text_column, first.data_files, first.skip) == ("en", "body", "x.json", 3)
    for alone in ("  path: org/d\n", "  - org/d\n"):
        path.write_text(PRETRAINING + alone)
        config = load_config(path, environ={})
        assert [(row.path, row.type) for row in config.data.datasets] == [("org/d", "pretrain")]
        assert config.warnings == ()
    path.write_text(PRETRAINING + "  - org/d\nstreaming: false\n")
    assert not load_config(path, environ={}).data.streaming


def test_a_pretraining_dataset_beside_datasets_is_a_contradiction(tmp_path: Path) -> None:
    problems, _ = load_text(tmp_path, BASE + "pretraining_dataset: [{path: org/e}]\n")
    assert problems == [
        "/my.yaml:4:1: 'pretraining_dataset' is the same key as 'datasets' (/my.yaml:3:1) -> keep one of them"
    ]
