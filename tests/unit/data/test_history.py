"""A template that rewrites earlier turns needs a choice: each answer as when it is given, or the text as it is."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.configs import config_with
from tests.conversations import plain_conversations, thinking_conversations
from tests.tiny_tokenizers import tiny_tokenizer

from whet.core.errors import RowError
from whet.data.ledger import HISTORY_CHOICE, Ledger, bad_row_problems
from whet.data.samples import Encoded
from whet.data.templates.resolve import shipped
from whet.data.tokenise import SampleEncoder

few = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))

QWEN, MISTRAL = "qwen3", "mistral_v3_tekken"


def encoder(template: str, **options: Any) -> SampleEncoder:
    config = config_with({"type": "chat_template", **options})
    return SampleEncoder(config.data.datasets[0], config, tiny_tokenizer(template))


def encode(template: str, messages: list[dict[str, Any]], **options: Any) -> list[Any]:
    return encoder(template, **options).encode_rows([{"messages": messages}])


def stock(template: str, messages: list[dict[str, Any]]) -> list[int]:
    ids: list[int] = tiny_tokenizer(template).apply_chat_template(messages, tokenize=True, return_dict=False)
    return ids


def turns(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": content} for n, content in enumerate(contents)]
    return ([] if system is None else [{"role": "system", "content": system}]) + messages


def trained(sample: Any, template: str) -> str:
    assert isinstance(sample, Encoded), sample
    return str(tiny_tokenizer(template).decode(sample.input_ids[sample.supervised]))


THINKS = turns("Q1", "<think>\nhm\n</think>\n\nA1", "Q2", "A2")
MOVES = turns("Q1", "A1", "Q2", "A2", system="be kind")

#: Template -> a conversation whose earlier turns it writes otherwise once more follow.
REWRITTEN = {
    QWEN: THINKS,
    **dict.fromkeys(("mistral_v2v3", MISTRAL), MOVES),
}


@pytest.mark.parametrize("template", REWRITTEN)
def test_a_conversation_whose_earlier_turns_are_rewritten_is_refused(template: str) -> None:
    (refused,) = encode(template, REWRITTEN[template])
    assert isinstance(refused, RowError)
    number = 1 if template == QWEN else 2
    assert (refused.reason, refused.detail) == (
        "the template rewrites earlier turns",
        f"message {number} is rendered otherwise when it is the last",
    )


def test_the_error_says_what_may_be_chosen() -> None:
    ledger = Ledger("chat")
    ledger.drop("the template rewrites earlier turns", "chat.jsonl:3", "message 1 is ...", bad=True)
    (problem,) = bad_row_problems(ledger)
    assert problem.fix == HISTORY_CHOICE
    assert "`explode_turns: true`" in HISTORY_CHOICE
    assert "`keep_history: true`" in HISTORY_CHOICE


@pytest.mark.parametrize("template", REWRITTEN)
def test_it_may_be_kept_as_the_template_writes_it(template: str) -> None:
    (sample,) = encode(template, REWRITTEN[template], keep_history=True)
    assert sample.input_ids.tolist() == stock(template, REWRITTEN[template])


@pytest.mark.parametrize("template", REWRITTEN)
def test_each_answer_may_be_a_sample_of_its_own(template: str) -> None:
    messages = REWRITTEN[template]
    samples = encode(template, messages, explode_turns=True)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    assert [sample.input_ids.tolist() for sample in samples] == [
        stock(template, messages[: number + 1]) for number in answers
    ]
    for sample, number in zip(samples, answers, strict=True):
        said = trained(sample, template)
        assert messages[number]["content"].split("</think>")[-1].strip() in said
        assert all(messages[other]["content"].strip() not in said for other in answers if other != number)


@pytest.mark.parametrize("template", shipped())
@given(data=st.data())
@few
def test_exploded_answers_are_what_the_model_is_given_and_gives(template: str, data: st.DataObject) -> None:
    strategy = thinking_conversations() if template == QWEN else plain_conversations(template)
    messages = data.draw(strategy)
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    samples = encode(template, messages, explode_turns=True)
    assert [sample.input_ids.tolist() for sample in samples if isinstance(sample, Encoded)] == [
        stock(template, messages[: number + 1]) for number in answers
    ]
    ends = [trained(sample, template) for sample in samples]
    alone = [encode(template, messages[: number + 1], keep_history=True)[0] for number in answers]
    assert all(trained(whole, template).endswith(end) for whole, end in zip(alone, ends, strict=True))


@given(data=st.data())
@few
@pytest.mark.parametrize("template", [QWEN, MISTRAL, "chatml"])
def test_what_is_refused_is_what_would_train_on_other_prompts(template: str, data: st.DataObject) -> None:
    """Refused: what the row wrote before the end of an answer is not what it is when the answer is the last."""
    messages = data.draw(thinking_conversations() if template == QWEN else plain_conversations(template))
    messages = [{**message, "content": f"m{n} " + message["content"]} for n, message in enumerate(messages)]
    outcome = encode(template, messages)
    kept = encode(template, messages, keep_history=True)
    refused = isinstance(outcome[0], RowError)
    if not refused:
        assert outcome[0].input_ids.tolist() == kept[0].input_ids.tolist()
    if template == "chatml":
        assert not refused
    rounds = sum(message["role"] == "assistant" for message in messages)
    has_system = messages[0]["role"] == "system"
    if template == MISTRAL:
        assert refused == (has_system and rounds > 1)
    if template == QWEN:
        thoughts = [_thought(message) for message in messages if message["role"] == "assistant"]
        assert refused == any(thoughts[:-1])


def _thought(message: dict[str, Any]) -> bool:
    """Whether an answer holds what Qwen 3 leaves out once more turns follow: thoughts, or their tag."""
    return (
        bool(message.get("reasoning_content", "").strip("\n"))
        if "reasoning_content" in message
        else ("</think>" in message["content"])
    )


def test_mere_words_of_the_template_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Qwen 3 writes an empty thought before the last answer alone."""
    made = encoder(QWEN)
    rows = [{"messages": turns("Q1", f"A{n}", "Q2", "A2")} for n in range(3)]
    samples = made.encode_rows(rows) + made.encode_rows(rows)
    assert all(isinstance(sample, Encoded) for sample in samples)
    assert caplog.text.count("the chat template writes other words around an answer when it is the last") == 1
    assert HISTORY_CHOICE in caplog.text


@pytest.mark.parametrize("options", [{"keep_history": True}, {"explode_turns": True}])
def test_who_has_chosen_is_told_nothing(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    encode(QWEN, turns("Q1", "A1", "Q2", "A2"), **options)
    assert caplog.text == ""


@pytest.mark.parametrize("template", [name for name in shipped() if name not in REWRITTEN])
def test_most_templates_rewrite_nothing(template: str, caplog: pytest.LogCaptureFixture) -> None:
    (sample,) = encode(template, turns("Q1", "A1", "Q2", "A2"))
    assert isinstance(sample, Encoded), sample
    assert "other words" not in caplog.text


def test_only_answers_that_are_trained_matter() -> None:
    (sample,) = encode(
        QWEN,
        [{**message, "train": number == 3} for number, message in enumerate(THINKS)],
        message_field_training="train",
    )
    assert trained(sample, QWEN).endswith("A2<|im_end|>")


def test_a_row_of_which_no_answer_is_trained_has_none_to_make_samples_of() -> None:
    (refused,) = encode("chatml", turns("Q1", "A1"), explode_turns=True, roles_to_train=("user",))
    assert isinstance(refused, RowError)
    assert refused.reason == "no assistant turn"


def test_each_row_is_judged_by_itself_whatever_came_before() -> None:
    made = encoder(QWEN)
    plain, thinks = {"messages": turns("Q1", "A1", "Q2", "A2")}, {"messages": THINKS}
    for order in ((plain, thinks, plain, thinks), (thinks, plain)):
        outcomes = made.encode_rows(order)
        assert [isinstance(outcome, RowError) for outcome in outcomes] == [row is thinks for row in order]


def test_texts_that_happen_to_be_equal_are_told_apart() -> None:
    """A template that writes the last question in place of every one: it rewrites nothing where all are equal."""
    template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] == 'user' %}"
        "{{ (messages | selectattr('role', 'equalto', 'user') | list | last)['content'] }}"
        "{% else %}{{ message['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = config_with({"type": "chat_template", "chat_template_jinja": template})
    rows = [{"messages": turns(first, "A1", "Q", "A2")} for first in ("Q", "other", "Q")]
    for order in (rows, rows[::-1], rows[1:]):
        made = SampleEncoder(config.data.datasets[0], config, tiny_tokenizer("chatml"))
        for row in order:
            (outcome,) = made.encode_rows([row])
            assert isinstance(outcome, RowError) == (row is rows[1])


@pytest.mark.parametrize("thinking", range(4))
def test_a_thought_in_any_earlier_answer_is_found(thinking: int) -> None:
    """Few of the answers are rendered once more; one that is not written as the row has it is among them."""
    contents = [text for n in range(5) for text in (f"Q{n}", f"A{n}")]
    contents[2 * thinking + 1] = "<think>\nhm\n</think>\n\nA"
    (refused,) = encode(QWEN, turns(*contents))
    assert isinstance(refused, RowError)
    assert refused.detail == f"message {2 * thinking + 1} is rendered otherwise when it is the last"
