"""What is read of a config is written down, all of it and nothing else; else a prepared set has a wrong name."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with
from tests.contract.test_formats import EVERY_FORMAT, METHODS
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import Config, DatasetConfig
from whet.config.schema import DataSection
from whet.config.schema.data import PromptFormat
from whet.config.tasks import Task
from whet.data.recorder import Reads
from whet.data.tokenise import SampleEncoder


def recorded(**keys: Any) -> tuple[Config, Reads]:
    reads = Reads()
    own = PromptFormat(format="{instruction}")
    config = config_with({"path": "a.jsonl", "type": own}, {"path": "b.jsonl", "field": "x"}, **keys)
    return reads.of(config), reads


def test_what_is_read_is_written_down() -> None:
    config, reads = recorded(train_on_inputs=True, rl="dpo")
    assert reads.values == {}
    assert config.data.train_on_inputs is True
    assert config.method.rl == "dpo"
    assert config.value("min_sample_len") == 2
    assert config.data.datasets[1].field == "x"
    assert reads.values == {
        "data.train_on_inputs": True,
        "method.rl": "dpo",
        "data.min_sample_len": 2,
        "dataset.field": "x",
    }


def test_a_dataset_is_called_the_same_wherever_it_stands_and_others_by_their_places() -> None:
    config, _ = recorded()
    reads = Reads(("datasets", 1))
    config = reads.of(config)
    assert [row.path for row in config.data.datasets] == ["a.jsonl", "b.jsonl"]
    assert reads.values == {"datasets[0].path": "a.jsonl", "dataset.path": "b.jsonl"}


def test_what_was_not_read_in_time_may_not_be_read_any_more() -> None:
    config, reads = recorded()
    assert config.data.sequence_len == 512
    reads.close()
    assert config.data.sequence_len == 512
    assert config.data.datasets[0].type is not None  # a block is read by its fields
    for read in (lambda: config.data.min_sample_len, lambda: config.data.datasets[0].path, lambda: dict(config.data)):
        before = dict(reads.values)
        with pytest.raises(RuntimeError, match=r"the option d\w+\.\w+ is read after it could name what is prepared"):
            read()
        assert reads.values == before


def test_a_block_in_a_block_is_written_down_by_its_fields() -> None:
    config, reads = recorded()
    own = config.data.datasets[0].type
    assert isinstance(own, PromptFormat)
    assert reads.values == {}
    assert own.format == "{instruction}"
    assert own.field_input is None
    assert reads.values == {"dataset.type.format": "{instruction}", "dataset.type.field_input": None}


def test_where_values_come_from_is_not_written_down() -> None:
    config, reads = recorded()
    assert config.where("sequence_len") == ""
    assert config.file == ""
    assert config.warnings == ()
    assert reads.values == {}


def test_a_recorded_config_is_what_it_was() -> None:
    config, _ = recorded()
    assert isinstance(config, Config)
    assert isinstance(config.data, DataSection)
    assert isinstance(config.data.datasets[0], DatasetConfig)
    assert config.data is config.data
    assert config.data.datasets[0] is config.data.datasets[0]  # its place in the config is found by identity
    plain = config_with(
        {"path": "a.jsonl", "type": PromptFormat(format="{instruction}")}, {"path": "b.jsonl", "field": "x"}
    )
    assert config.data.model_dump() == plain.data.model_dump()
    assert config.data.datasets[0].model_dump() == plain.data.datasets[0].model_dump()
    assert config.values() == plain.values()


@pytest.mark.parametrize("dump", [lambda row: row.model_dump(), lambda row: row.model_dump_json(), dict, vars])
def test_a_dump_reads_everything_in_it(dump: Any) -> None:
    config, reads = recorded()
    dump(config.data.datasets[0])
    fields = {f"dataset.{name}" for name in DatasetConfig.model_fields} - {"dataset.type"}
    own = {f"dataset.type.{name}" for name in PromptFormat.model_fields}
    assert set(reads.values) == fields | own


def test_what_is_read_of_a_changed_copy_is_what_the_user_wrote() -> None:
    config, reads = recorded()
    copy = config.data.datasets[1].model_copy(update={"field": "changed"})
    assert copy.field == "changed"
    assert reads.values["dataset.field"] == "x"


def test_the_plain_config_is_left_alone() -> None:
    reads = Reads()
    config = config_with({"field": "x"})
    reads.of(config)
    assert config.data.datasets[0].field == "x"
    assert reads.values == {}


@pytest.mark.parametrize("entry", EVERY_FORMAT, ids=lambda entry: f"{entry[0]}-{entry[1]}")
def test_a_format_reads_its_options_before_it_reads_a_row(entry: tuple[Task, str, dict[str, Any]]) -> None:
    """The name of a set is made of what was read up to then."""
    task, name, row = entry
    reads = Reads()
    config = config_with({"type": name, "max_input_id": 200, "sequence_length": 8}, **METHODS[task])
    recorded = reads.of(config)
    encoder = SampleEncoder(recorded.data.datasets[0], recorded, tiny_tokenizer("chatml"))
    encoder.identity()
    before = dict(reads.values)
    encoder.encode([row, {"nothing": "of it"}])
    assert reads.values == before
    assert before["dataset.type"] == name
