"""Every entry of the tables of formats loads, reads its row, and refuses a row that is not its own."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.configs import config_with
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config.tasks import Task
from whet.core import types
from whet.core.errors import RowError
from whet.data.formats import FORMATS, TABLES, UNTYPED, make_format
from whet.data.formats.instruction import TYPES, Instruction
from whet.data.samples import Encoded
from whet.data.tokenise import SampleEncoder

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))
FROM_VALUE = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
JUDGED = {"instruction": "Q", "answer": "A", "scores": {"clear": 3}, "critiques": "dull", "revision": "B"}
CHOICE = {"question": "Q", "choices": ["a", "b"], "explanation": "because"}
CONTEXT = {"context": "C", "question": "Q", "answer": "A"}

#: A row of each format of supervised training that is not a line of the table of instruction types.
ROWS: dict[str, dict[str, Any]] = {
    "tokens": {"input_ids": [1, 2, 3]},
    "chat_template": {"messages": [Q, A]},
    "chat_template.default": {"messages": [Q, A]},
    "messages.chat": {"messages": [Q, A]},
    "sharegpt": {"conversations": FROM_VALUE},
    "llama2_chat": {"conversations": FROM_VALUE},
    "pygmalion": {"conversations": [{"role": "human", "value": "Q"}, {"role": "bot", "value": "A"}]},
    "completion": {"text": "words"},
    "pretrain": {"text": "words"},
    "input_output": {"segments": [{"label": True, "text": "words"}]},
    "metharme": {"prompt": "P", "generation": "G"},
    "prompt_completion": {"prompt": "P", "completion": "C"},
    "_synthetic": {"synthetic": 0},
    "context_qa": {"article": "C", "question": "Q", "answer": "A"},
    "context_qa.load": {"article": "C", "question": "Q", "answer": "A"},
    "context_qa.load_v2": CONTEXT,
    "context_qa.load_404": CONTEXT,
    "explainchoice": CHOICE,
    "concisechoice": {**CHOICE, "solution": "a"},
    "reflection": {"instruction": "Q", "output": "A", "reflection": "R", "corrected": "C"},
    **{f"creative_acr{name}": JUDGED for name in ("", ".load_answer", ".load_critique", ".load_revise")},
}
PAIR: dict[str, Any] = {"chosen": [Q, A], "rejected": [Q, B]}
PLAIN = {"prompt": "Q", "chosen": "A", "rejected": "B"}
JUDGEMENT = {"prompt": "Q", "completion": "A", "label": True}
TALK = {"messages": [Q, A, Q, B]}

#: A row of each format of the other kinds, by its name or by what stands behind ``chatml.``; and its sample.
OTHER_ROWS: dict[Task, dict[str, tuple[dict[str, Any], type]]] = {
    "preference": {
        "prompt_pairs": (PLAIN, types.Preference),
        "chat_template": ({"messages": [Q], "chosen": A, "rejected": B}, types.Preference),
        "chat_template.default": ({"messages": [Q], "chosen": A, "rejected": B}, types.Preference),
        "chat_template.argilla": (PAIR, types.Preference),
        "chat_template.argilla_chat": (PAIR, types.Preference),
        "passthrough.default": (PLAIN, types.PreferenceText),
        "zephyr.nectar": (
            {"prompt": "Q", "answers": [{"answer": "A", "rank": 1}, {"answer": "B", "rank": 2}]},
            types.Preference,
        ),
        "default": (PLAIN, types.Preference),
        "argilla": ({"instruction": "Q", "chosen_response": "A", "rejected_response": "B"}, types.Preference),
        "argilla_chat": (PAIR, types.Preference),
        "icr": ({"input": "Q", "chosen": "A", "rejected": "B"}, types.Preference),
        "intel": ({"question": "Q", "chosen": "A", "rejected": "B"}, types.Preference),
        "ultra": ({"prompt": "Q", **PAIR}, types.Preference),
    },
    "unpaired": {
        "prompt_completion": (JUDGEMENT, types.Unpaired),
        "passthrough.default": (JUDGEMENT, types.UnpairedText),
        "argilla": ({"instruction": "Q", "completion": "A", "label": False}, types.Unpaired),
        "argilla_chat": ({"completion": [Q, A], "label": True}, types.Unpaired),
        "intel": ({"question": "Q", "completion": "A", "label": True}, types.Unpaired),
        "prompt_pairs": (JUDGEMENT, types.Unpaired),
        "ultra": (JUDGEMENT, types.Unpaired),
    },
    "odds": {
        "prompt_pairs": (PLAIN, types.Preference),
        "passthrough.default": (PLAIN, types.PreferenceText),
        "chat_template": (PAIR, types.Preference),
        "chat_template.argilla": (PAIR, types.Preference),
        "chat_template.load": (PAIR, types.Preference),
    },
    "reward": {
        "prompt_pairs": (PLAIN, types.Preference),
        "bradley_terry.chat_template": ({"system": "", "input": "Q", "chosen": "A", "rejected": "B"}, types.Preference),
        "bradley_terry.llama3": ({"input": "Q", "chosen": "A", "rejected": "B"}, types.Preference),
    },
    "steps": {
        "stepwise_supervised": ({"prompt": "Q", "completions": ["a", "b"], "labels": [True, False]}, types.Stepwise),
    },
    "prompts": {
        "prompt": ({"prompt": [Q], "answer": "4"}, types.Prompt),
        "passthrough.default": ({"prompt": "Q", "answer": "4"}, types.Prompt),
    },
    "features": {
        "prompt": ({"prompt": [Q], "ground_truth": "A"}, types.Prompt),
        "passthrough.default": ({"prompt": "Q", "ground_truth": "A"}, types.Prompt),
        "ebft_opencode.transform": ({"input": "Q", "output": "A"}, types.Prompt),
        "ebft_pretrain.transform": ({"text": "words"}, types.Document),
        "ebft_strided_structured.transform": ({"question": "Q", "answer": "A"}, types.Document),
        "ebft_strided_chat.transform": (TALK, types.Conversation),
        "ebft_chat_multiturn.transform": (TALK, types.Prompt),
        "ebft_chat_multiturn.transform_last_turn": (TALK, types.Prompt),
        "ebft_chat_multiturn.transform_all_turns": (TALK, types.Several),
        "ebft_reasoning.transform": ({"problem": "Q", "solution": "<think>t</think>A"}, types.Prompt),
        "ebft_reasoning.transform_answer_only": ({"problem": "Q", "solution": "<think>t</think>A"}, types.Prompt),
        "ebft_reasoning.transform_strided": ({"problem": "Q", "solution": "A"}, types.Document),
        "ebft_reasoning.transform_strided_answer_only": ({"problem": "Q", "solution": "A"}, types.Document),
    },
}
#: How the YAML asks for a kind of rows.
METHODS: dict[Task, dict[str, Any]] = {
    "supervised": {},
    "preference": {"rl": "dpo"},
    "unpaired": {"rl": "kto"},
    "odds": {"rl": "orpo"},
    "reward": {"reward_model": True},
    "steps": {"process_reward_model": True},
    "prompts": {"rl": "grpo"},
    "features": {"rl": "ebft"},
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
    config = config_with({"type": name, "min_input_id": 5, "max_input_id": 9, "sequence_length": 8})
    encoder = SampleEncoder(config.data.datasets[0], config, tiny_tokenizer("chatml"))
    sample, refused = encoder.encode_rows([row_of(name), {"something": "else"}])
    assert isinstance(sample, Encoded), sample
    assert sample.supervised.any()
    assert isinstance(refused, RowError)
    assert refused.reason == "missing field"
    assert "it has something" in refused.detail


@pytest.mark.parametrize(
    ("task", "name"), [(task, name) for task, table in TABLES.items() if task != "supervised" for name in table.names()]
)
def test_a_format_of_another_method_reads_its_row_and_refuses_another(task: Task, name: str) -> None:
    config = config_with({"type": name}, **METHODS[task])
    rows = OTHER_ROWS[task]
    row, sample = rows.get(name) or rows.get(name.partition(".")[2]) or rows["prompt_pairs"]
    format_ = make_format(config.data.datasets[0], config)
    assert type(format_.read(row)) is sample
    with pytest.raises(RowError) as refused:
        format_.read({"something": "else"})
    assert refused.value.reason == "missing field"


@pytest.mark.parametrize("task", TABLES)
def test_rows_without_a_type_have_a_format(task: Task) -> None:
    config = config_with({}, **METHODS[task])
    format_ = make_format(config.data.datasets[0], config)
    row = ROWS[UNTYPED[task]] if task == "supervised" else OTHER_ROWS[task][UNTYPED[task]][0]
    assert format_.read(row)


@pytest.mark.parametrize("name", FORMATS.names())
def test_a_format_says_which_template_it_needs(name: str) -> None:
    config = config_with({"type": name})
    format_ = make_format(config.data.datasets[0], config)
    of_messages = ("chat_template", "sharegpt", "messages", "pygmalion", "llama2_chat")
    assert (format_.template is not None) == name.startswith(of_messages)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(-1, 1)
    | st.sampled_from(["", "x", "[", "[1]", '{"a": 1}']),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "arguments", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


def changed(value: Any, data: st.DataObject) -> Any:
    """The value with one part of it, however deep, replaced by another."""
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: changed(value[key], data)}
    if isinstance(value, list) and value and data.draw(st.booleans()):
        at = data.draw(st.integers(0, len(value) - 1))
        return [*value[:at], changed(value[at], data), *value[at + 1 :]]
    return data.draw(VALUES)


def every_format() -> list[tuple[Task, str, dict[str, Any]]]:
    others = [
        (task, name, (rows.get(name) or rows.get(name.partition(".")[2]) or rows["prompt_pairs"])[0])
        for task, rows in OTHER_ROWS.items()
        for name in TABLES[task].names()
    ]
    return [*(("supervised", name, row_of(name)) for name in FORMATS.names()), *others]


EVERY_FORMAT = every_format()


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(EVERY_FORMAT), st.data())
def test_a_row_becomes_a_sample_or_a_row_error(entry: tuple[Task, str, dict[str, Any]], data: st.DataObject) -> None:
    task, name, row = entry
    key = data.draw(st.sampled_from([*row, "tools", "system"]))
    config = config_with({"type": name, "max_input_id": 200, "sequence_length": 8}, **METHODS[task])
    format_ = make_format(config.data.datasets[0], config)
    with suppress(RowError):
        assert isinstance(format_.read({**row, key: changed(row.get(key), data)}), get_args(types.Sample))
