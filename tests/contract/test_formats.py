"""Every entry of the tables of formats loads, reads its row, and refuses a row that is not its own."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with
from tests.tiny_tokenizers import tiny_tokenizer

from whet.core.errors import RowError
from whet.data.formats import FORMATS, PREFERENCE_FORMATS, make_format
from whet.data.formats.instruction import TYPES, Instruction
from whet.data.tokenise import Encoded, EncodedPreference, SampleEncoder

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))

#: A row of each format that is not a line of the table of instruction types.
ROWS: dict[str, dict[str, Any]] = {
    "tokens": {"input_ids": [1, 2, 3]},
    "chat_template": {"messages": [Q, A]},
    "chat_template.default": {"messages": [Q, A]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "completion": {"text": "words"},
    "input_output": {"segments": [{"label": True, "text": "words"}]},
    "metharme": {"prompt": "P", "generation": "G"},
}
PAIR: dict[str, Any] = {"chosen": [Q, A], "rejected": [Q, B]}
PREFERENCE_ROWS: dict[str, dict[str, Any]] = {
    "prompt_pairs": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "chat_template": {"messages": [Q], "chosen": A, "rejected": B},
    "chat_template.default": {"messages": [Q], "chosen": A, "rejected": B},
    "chat_template.argilla_chat": PAIR,
    "default": {"prompt": "Q", "chosen": "A", "rejected": "B"},
    "argilla_chat": PAIR,
    "icr": {"input": "Q", "chosen": "A", "rejected": "B"},
    "intel": {"question": "Q", "chosen": "A", "rejected": "B"},
    "ultra": {"prompt": "Q", **PAIR},
}


def instruction_row(format_: Instruction) -> dict[str, Any]:
    fields = (format_.instruction, format_.input, format_.answer, format_.system)
    return {field: f"the {field}" for field in fields if field is not None}


def row_of(name: str) -> dict[str, Any]:
    if name in ROWS:
        return ROWS[name]
    return instruction_row(TYPES[name if name in TYPES else f"{name}.load"])


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_format_reads_its_row_and_refuses_another(name: str) -> None:
    config = config_with({"type": name})
    encoder = SampleEncoder(config.data.datasets[0], config, tiny_tokenizer("chatml"))
    sample, refused = encoder.encode_rows([row_of(name), {"something": "else"}])
    assert isinstance(sample, Encoded), sample
    assert sample.supervised.any()
    assert isinstance(refused, RowError)
    assert refused.reason == "missing field"
    assert "it has something" in refused.detail


@pytest.mark.parametrize("name", PREFERENCE_FORMATS.names())
def test_a_preference_format_reads_its_row_and_refuses_another(name: str) -> None:
    config = config_with({"type": name}, rl="dpo")
    row = PREFERENCE_ROWS.get(name) or PREFERENCE_ROWS.get(name.partition(".")[2]) or PREFERENCE_ROWS["prompt_pairs"]
    encoder = SampleEncoder(config.data.datasets[0], config, tiny_tokenizer("chatml"))
    pair, refused = encoder.encode_rows([row, {"something": "else"}])
    assert isinstance(pair, EncodedPreference), pair
    assert len(pair.prompt_ids)
    assert isinstance(refused, RowError)
    assert refused.reason == "missing field"


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_format_says_which_template_it_needs(name: str) -> None:
    config = config_with({"type": name})
    format_ = make_format(config.data.datasets[0], config)
    assert (format_.template is not None) == name.startswith(("chat_template", "sharegpt"))
