"""The config of a record is the config that the run had, whatever is around it today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from whet.config import Config, make_config
from whet.config.facts import written_values
from whet.config.recorded import config_of_record
from whet.config.schema import fields
from whet.core.errors import ConfigError

VALUES: dict[str, Any] = {
    "base_model": "org/tiny",
    "learning_rate": 0.001,
    "datasets": [{"path": "rows.jsonl", "type": {"format": "Q: {instruction}", "field_output": "answer"}}],
    "added_tokens_overrides": {128011: "<|tool|>"},
    "optim_args": {"eps": 1e-6},
    "special_tokens": {"pad_token": "<|pad|>"},
    "eot_tokens": ["<|end|>"],
    "hub_model_id": "me/model",
}


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the run was started in, with its rows."""
    (tmp_path / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def record_of(config: Config, folder: Path) -> dict[str, Any]:
    """What a run.json holds of a config, through JSON."""
    values = written_values(config)
    every = {key: list(value) if isinstance(value := config.value(key), tuple) else value for key in fields()}
    record = {"written": values, "values": {**every, **values}, "working_folder": str(folder), "where": {}}
    read: dict[str, Any] = json.loads(json.dumps(record, default=str))
    return read


def test_every_value_comes_back_with_its_type(there: Path) -> None:
    config = make_config(VALUES)
    again, said = config_of_record(record_of(config, there), "run.json", "again")
    wanted = {**config.values(), "output_dir": "again", "hub_model_id": None}
    assert again.values() == wanted
    assert said == ["hub_model_id is left out"]
    assert again.where("learning_rate") == "run.json: learning_rate"


def test_a_default_of_then_is_written_out(there: Path) -> None:
    record = record_of(make_config(VALUES), there)
    record["values"]["weight_decay"] = 0.25
    again, said = config_of_record(record, "run.json", "again")
    assert again.optimizer.weight_decay == 0.25
    assert "weight_decay is 0.25, which was the default then" in said


def test_paths_are_those_of_the_folder_it_was_started_in(
    there: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = record_of(make_config(VALUES), there)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    again, _ = config_of_record(record, "run.json", "again")
    assert again.data.datasets[0].path == str(there / "rows.jsonl")
    assert again.model.base_model == "org/tiny"


def test_a_key_that_is_no_more_is_an_error(there: Path) -> None:
    record = record_of(make_config(VALUES), there)
    record["written"]["key_of_yesterday"] = 1
    with pytest.raises(ConfigError, match="unknown key 'key_of_yesterday'"):
        config_of_record(record, "run.json", "again")
