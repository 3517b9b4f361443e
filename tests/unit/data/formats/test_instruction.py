"""Instruction rows -> one text: the prompt in its style, then the answer, which alone is trained."""

from __future__ import annotations

from typing import Any

import pytest
from tests.configs import config_with

from whet.core.errors import ConfigError, RowError
from whet.core.types import Document
from whet.data.formats import make_format
from whet.data.templates.traced import Traced

ROW = {"instruction": "Add.", "input": "1 2", "output": "3"}
OPENING = "Below is an instruction that describes a task"


def read(kind: str, row: dict[str, Any], **options: Any) -> tuple[str, str]:
    config = config_with({"type": kind, **options})
    sample = make_format(config.data.datasets[0], config).read(row)
    assert isinstance(sample, Document)
    assert (sample.add_bos, sample.add_eos) == (True, True)
    prompt, answer = sample.segments
    assert (prompt.train, answer.train) == (False, True)
    return str.__str__(prompt.text), str.__str__(answer.text)


def test_alpaca_is_stanfords_prompt() -> None:
    assert read("alpaca", ROW) == (
        f"{OPENING}, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n",
        "3",
    )


@pytest.mark.parametrize("row", [{**ROW, "input": ""}, {**ROW, "input": None}, {"instruction": "Add.", "output": "3"}])
def test_without_input_the_prompt_has_no_place_for_it(row: dict[str, Any]) -> None:
    assert read("alpaca", row)[0] == (
        f"{OPENING}. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Response:\n"
    )


@pytest.mark.parametrize(
    ("kind", "row", "prompt", "answer"),
    [
        ("alpaca_chat.load_no_prompt", ROW, "USER: Add.\n1 2\nASSISTANT:", "3"),
        ("alpaca_instruct.load_no_prompt", {**ROW, "input": ""}, "### Instruction:\nAdd.\n\n### Response:\n", "3"),
        (
            "alpaca_w_system.load_open_orca_chatml",
            {"system_prompt": "S", "question": "Q", "response": "R"},
            "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n",
            "R",
        ),
        (
            "alpaca_w_system.load",
            {**ROW, "system": "S", "input": ""},
            "SYSTEM: S\nUSER: Add.\nASSISTANT:",
            "3",
        ),
        ("alpaca_w_system.load", {**ROW, "system": ""}, "USER: Add.\n1 2\nASSISTANT:", "3"),
        (
            "orcamini",
            {"system": "S", "instruction": "I", "output": "O"},
            "### System:\nS\n\n### User:\nI\n\n### Response:\n",
            "O",
        ),
        ("metharme", {"prompt": "<|user|>P<|model|>", "generation": "G"}, "<|user|>P<|model|>", "G"),
    ],
)
def test_a_type_has_its_prompt(kind: str, row: dict[str, Any], prompt: str, answer: str) -> None:
    assert read(kind, row) == (prompt, answer)


@pytest.mark.parametrize(
    ("kind", "row", "prompt", "answer"),
    [
        ("context_qa", {"article": "C", "question": "Q", "answer": "A"}, "C\n\nQ", "A"),
        ("context_qa.load_v2", {"context": "C", "question": "Q", "answer": "A"}, "Context: C\nQuestion: Q", "A"),
        ("context_qa.load_404", {"context": "C", "question": "Q"}, "Question: Q", "The context does not answer the"),
        ("explainchoice", {"question": "Q", "choices": ["a", "b"], "explanation": "E"}, 'Q\n- "a"\n- "b"', "E"),
        ("concisechoice", {"question": "Q", "choices": '["a"]', "solution": "S", "explanation": "E"}, 'Q\n- "a"', "S"),
        (
            "reflection",
            {"instruction": "I", "input": "N", "output": "O", "reflection": "R", "corrected": "C"},
            "### Instruction:\nI\n\n### Input:\nN",
            "O\n\n### Reflection:\nR\n\n### Corrected:\nC",
        ),
        ("creative_acr.load_answer", {"instruction": "I", "answer": "A", "revision": "R"}, "I", "R"),
        ("creative_acr.load_answer", {"instruction": "I", "answer": "A"}, "I", "A"),
        (
            "creative_acr.load_critique",
            {"instruction": "I", "answer": "A", "scores": {"clear": 3, "true": 5}, "critiques": "dull\n"},
            "Question: I\nResponse: A",
            "clear: 3\ntrue: 5\ndull",
        ),
        (
            "creative_acr.load_revise",
            {"instruction": "I", "answer": "A", "scores": "3", "critiques": {"style": "dull"}, "revision": "R"},
            "Question: I\nResponse: A\nCritique:\n3\nstyle: dull",
            "R",
        ),
    ],
)
def test_columns_are_put_together(kind: str, row: dict[str, Any], prompt: str, answer: str) -> None:
    asked, said = read(kind, row)
    assert prompt in asked
    assert asked.endswith("\n\n### Response:\n")
    assert said.startswith(answer)


def test_a_composed_prompt_may_have_another_style() -> None:
    row = {"question": "Q", "choices": ["a"], "explanation": "E"}
    assert read("explainchoice:chatml", row)[0].endswith('Q\n- "a"<|im_end|>\n<|im_start|>assistant\n')


@pytest.mark.parametrize("kind", ["alpaca", "explainchoice"])
def test_what_comes_from_the_row_is_marked(kind: str) -> None:
    row = {"instruction": "abc", "output": "d", "question": "abc", "choices": [], "explanation": "d"}
    config = config_with({"type": kind})
    sample = make_format(config.data.datasets[0], config).read(row)
    assert isinstance(sample, Document)
    prompt = sample.segments[0].text
    assert isinstance(prompt, Traced)
    assert [prompt[run.begin : run.end] for run in prompt.runs if run.end > run.begin] == ["abc"]


@pytest.mark.parametrize(
    ("style", "prompt"),
    [
        ("chat", "USER: Add.\n1 2\nASSISTANT:"),
        ("chatml", "<|im_start|>user\nAdd.\n1 2<|im_end|>\n<|im_start|>assistant\n"),
        ("phi", "<|user|>\nAdd.\n1 2<|end|>\n<|assistant|>\n"),
    ],
)
def test_a_style_may_be_named(style: str, prompt: str) -> None:
    assert read(f"alpaca:{style}", ROW)[0].endswith(prompt)
    assert read("alpaca_chat.load_no_prompt", ROW, conversation=style)[0] == prompt


def test_jeopardy_answers_with_a_question() -> None:
    assert read("jeopardy", {"category": "C", "question": "Q", "answer": "ice"})[1] == "what is ice"


def test_the_prompt_is_trained_on_inputs() -> None:
    config = config_with({"type": "alpaca"}, train_on_inputs=True)
    sample = make_format(config.data.datasets[0], config).read(ROW)
    assert isinstance(sample, Document)
    assert all(segment.train for segment in sample.segments)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("alpaca:chatm", "'chatm' is not a style of 'alpaca' -> did you mean 'chatml'?"),
        ("alpacca", "'alpacca' is not among the formats -> did you mean 'alpaca'?"),
    ],
)
def test_an_unknown_type_or_style_is_refused(kind: str, message: str) -> None:
    config = config_with({"type": kind})
    with pytest.raises(ConfigError) as caught:
        make_format(config.data.datasets[0], config)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("row", "reason", "detail"),
    [
        ({"instruction": "x"}, "missing field", "'output' is not in the row; it has instruction"),
        ({**ROW, "output": 3}, "wrong type", "'output' is a number, not a string"),
        ({**ROW, "input": ["x"]}, "wrong type", "'input' is a list, not a string"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: dict[str, Any], reason: str, detail: str) -> None:
    with pytest.raises(RowError) as caught:
        read("alpaca", row)
    assert (caught.value.reason, caught.value.detail) == (reason, detail)
