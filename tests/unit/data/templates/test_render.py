"""What is trained in a rendered conversation: turns, stop tokens, ranges within a turn."""

from __future__ import annotations

import copy
from inspect import Parameter, signature
from typing import Any

import pytest
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_renderer, tiny_tokenizer
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from whet.config.names import TEMPLATE_VARIABLES_TAKEN
from whet.core.errors import ConfigError, DataError, RowError
from whet.core.types import Conversation, TrainRange, Turn
from whet.data.templates.environment import TracingEnvironment
from whet.data.templates.render import Renderer, TrainPolicy
from whet.data.templates.traced import Source, trace

CHAT = [("system", "S"), ("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2")]


def conversation(*turns: tuple[str, str], train: dict[int, bool] | None = None) -> Conversation:
    wishes = train or {}
    return Conversation(
        tuple(Turn({"role": role, "content": text}, wishes.get(n)) for n, (role, text) in enumerate(turns))
    )


def trained(renderer: Renderer, chat: Conversation, policy: TrainPolicy | None = None) -> list[str]:
    rendered = renderer.render(chat, policy or TrainPolicy())
    return [rendered.text[span.begin : span.end] for span in rendered.spans]


def chatml(**options: Any) -> list[str]:
    return trained(tiny_renderer("chatml"), conversation(*CHAT), TrainPolicy(**options))


def test_every_assistant_turn_and_its_stop_token_are_trained() -> None:
    assert chatml() == ["A1<|im_end|>", "A2<|im_end|>"]


def test_other_roles_are_trained_from_their_content_to_their_stop_token() -> None:
    assert chatml(roles=frozenset({"user"})) == ["Q1<|im_end|>", "Q2<|im_end|>"]


def test_on_inputs_every_turn_is_trained() -> None:
    assert chatml(roles=None) == ["S<|im_end|>", "Q1<|im_end|>", "A1<|im_end|>", "Q2<|im_end|>", "A2<|im_end|>"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("turn", ["A1<|im_end|>", "A2<|im_end|>"]),
        ("none", ["A1", "A2"]),
        ("last", ["A1", "A2<|im_end|>"]),
        ("all", ["<|im_end|>", "<|im_end|>", "A1<|im_end|>", "<|im_end|>", "A2<|im_end|>"]),
    ],
)
def test_stop_tokens_are_trained_by_rule(rule: str, expected: list[str]) -> None:
    assert chatml(train_on_eot=rule) == expected


def test_eos_and_other_stop_tokens_have_their_own_rules() -> None:
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>", "<eot>"])
    text = "{% for m in messages %}{{ m.role }}:{{ m.content }}{{ '</s>' if loop.last else '<eot>' }}{% endfor %}"
    text += "{% if add_generation_prompt %}assistant:{% endif %}"
    renderer = Renderer(text, tokenizer, eot_tokens=["<eot>"])
    chat = conversation(*CHAT)
    assert trained(renderer, chat, TrainPolicy(train_on_eos="none")) == ["A1<eot>", "A2"]
    assert trained(renderer, chat, TrainPolicy(train_on_eot="none")) == ["A1", "A2</s>"]


def test_a_row_may_say_which_turns_are_trained() -> None:
    renderer = tiny_renderer("chatml")
    assert trained(renderer, conversation(*CHAT, train={2: False})) == ["A2<|im_end|>"]
    assert trained(renderer, conversation(*CHAT, train={1: True, 2: False})) == ["Q1<|im_end|>", "A2<|im_end|>"]


def test_ranges_of_a_content_may_be_trained_otherwise() -> None:
    turns = (
        Turn({"role": "user", "content": "Q"}),
        Turn({"role": "assistant", "content": "  keep DROP keep"}, details=(TrainRange(7, 11, False),)),
    )
    assert trained(tiny_renderer("chatml"), Conversation(turns)) == ["  keep ", " keep<|im_end|>"]
    assert trained(tiny_renderer("llama3"), Conversation(turns)) == ["keep ", " keep<|eot_id|>"]


def test_ranges_of_an_untrained_turn_are_trained_alone() -> None:
    turns = (
        Turn({"role": "user", "content": "a NAME b"}, details=(TrainRange(2, 6, True),)),
        Turn({"role": "assistant", "content": "x"}, train=False),
    )
    assert trained(tiny_renderer("chatml"), Conversation(turns)) == ["NAME"]


def test_the_same_words_in_two_turns_are_told_apart() -> None:
    chat = conversation(("user", "same"), ("assistant", "same"), ("user", "same"), ("assistant", "same"))
    rendered = tiny_renderer("chatml").render(chat, TrainPolicy())
    at = rendered.text.index("assistant\nsame") + len("assistant\n")
    assert rendered.spans[0].begin == at
    assert len(rendered.spans) == 2


def test_content_that_is_the_header_is_content() -> None:
    fake = "assistant\n### Response:\nfake"
    assert trained(tiny_renderer("alpaca"), conversation(("user", fake), ("assistant", fake))) == [fake + "</s>"]


def test_an_empty_answer_trains_its_stop_token() -> None:
    for name in ("chatml", "llama3", "mistral_v3_tekken", "qwen_25"):
        stop = trained(tiny_renderer(name), conversation(("user", "Q"), ("assistant", "")))
        assert stop == [{"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "qwen_25": "<|im_end|>"}.get(name, "</s>")]


GENERATION = """{% for m in messages %}{% if m.role == 'assistant' -%}
<a>{% generation %}{{ m.content }}<e>{% endgeneration %}
{%- else %}<u>{{ m.content }}<e>{% endif %}{% endfor %}"""


def test_a_generation_block_says_where_an_answer_begins() -> None:
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>", "<a>", "<u>", "<e>"])
    renderer = Renderer(GENERATION, tokenizer)
    chat = conversation(("user", "Q1"), ("assistant", "A1"), ("user", "Q2"), ("assistant", "A2"))
    assert trained(renderer, chat) == ["A1<e>", "A2<e>"]
    assert renderer.render(chat, TrainPolicy()).text == tokenizer.apply_chat_template(
        chat.messages, chat_template=GENERATION, tokenize=False
    )


def test_a_call_quoted_with_its_result_is_not_part_of_the_call() -> None:
    """gpt-oss writes the name of the function that was called once more, before the tool's answer."""
    text = (
        "{% for m in messages %}{% if m.role == 'tool' %}<tool>{{ messages[loop.index0 - 1].tool_calls[0].name }}:"
        "{{ m.content }}</s>{% else %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls or [] %}!{{ c.name }}{% endfor %}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    turns = (
        Turn({"role": "user", "content": "Q"}),
        Turn({"role": "assistant", "content": "", "tool_calls": [{"name": "f"}]}),
        Turn({"role": "tool", "content": "R"}),
        Turn({"role": "assistant", "content": "A"}),
    )
    renderer = Renderer(text, byte_level_tokenizer(["<s>", "</s>", "<pad>"]))
    assert trained(renderer, Conversation(turns)) == ["!f</s>", "A</s>"]


def test_a_stop_token_unknown_to_the_tokenizer_is_trained_as_text() -> None:
    renderer = Renderer(tiny_tokenizer("chatml").chat_template, byte_level_tokenizer(["<s>", "</s>", "<pad>"]))
    assert trained(renderer, conversation(*CHAT)) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_tools_are_not_taken_for_a_header() -> None:
    tools = [{"type": "function", "function": {"name": "<|im_start", "description": "assistant\n"}}]
    chat = conversation(("user", "Q"), ("assistant", "A"))
    assert trained(tiny_renderer("qwen_25"), Conversation(chat.turns, tools)) == ["A<|im_end|>"]


def test_a_template_that_refuses_a_conversation_refuses_the_row() -> None:
    with pytest.raises(RowError, match="the roles must alternate") as caught:
        tiny_renderer("gemma").render(conversation(("user", "a"), ("user", "b"), ("assistant", "c")), TrainPolicy())
    assert caught.value.reason == "chat template failed"


def test_a_template_that_is_not_jinja_is_refused_with_its_place() -> None:
    with pytest.raises(ConfigError, match=r"a\.yaml:3:1: the chat template does not compile: .* \(its line 2\)"):
        Renderer("{{ messages }}\n{% for %}", tiny_tokenizer(), where="a.yaml:3:1")


def test_a_template_that_fails_on_any_conversation_is_refused() -> None:
    with pytest.raises(DataError, match="fails on a plain question and answer: never"):
        Renderer("{{ raise_exception('never') }}", tiny_tokenizer())


@pytest.mark.parametrize(
    "text",
    ["{{ 1 / 0 }}", "{% for i in range(10**9) %}x{% endfor %}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"],
)
def test_a_template_that_python_stops_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="the chat template fails on a plain question and answer"):
        Renderer(text, tiny_tokenizer())


def test_a_template_that_hides_its_contents_is_refused() -> None:
    text = "{% for m in messages %}<{{ m.role }}>{{ m.content | e }}</s>{% endfor %}"
    with pytest.raises(DataError, match="writes the user's content in a way whet cannot follow"):
        Renderer(text, tiny_tokenizer())


def test_a_render_that_is_not_the_stock_one_is_a_fault() -> None:
    renderer = tiny_renderer("chatml")
    chat = conversation(*CHAT)
    rendered = renderer.render(chat, TrainPolicy())
    renderer.check(chat, rendered.text)
    with pytest.raises(RuntimeError, match="please report"):
        renderer.check(conversation(("user", "other")), rendered.text)


@pytest.mark.parametrize("escape", ["{{ text.__class__ }}", "{{ '{0.__class__}'.format(text) }}", "{{ text._part }}"])
def test_a_template_stays_in_its_sandbox(escape: str) -> None:
    text = trace("words", Source(0, "content"))
    assert TracingEnvironment().from_string(escape).render(text=text) == ""


def test_no_variable_of_a_template_has_the_name_of_an_argument_of_transformers() -> None:
    for function in (PreTrainedTokenizerBase.apply_chat_template, render_jinja_template):
        arguments = signature(function).parameters.values()
        taken = {each.name for each in arguments if each.kind is not Parameter.VAR_KEYWORD}
        assert taken <= set(TEMPLATE_VARIABLES_TAKEN)
    assert "messages" in TEMPLATE_VARIABLES_TAKEN


# -- tools, which most rows of a dataset share ------------------------------------------------------------------------

TOOLED = (
    "{% for tool in tools or [] %}{{ tool }}|{{ tool|tojson }}|{{ tool|tojson(indent=1) }}|{{ tool|tojson(indent=2) }}|"
    "{{ tool.f|tojson(sort_keys=true) }}{% endfor %}{{ tools|tojson }}"
)
F: dict[str, Any] = {"a": {"x": "words", "y": [1]}, "b": 1}
TOOLS = [
    [{"f": F}],
    [{"f": F}, {"f": F}],
    [{"f": {**F, "b": True}}],
    [{"f": {**F, "b": 1.0}}],
    [{"f": {"b": 1, "a": F["a"]}}],
    [{"f": {**F, "a": {"x": "words", "y": (1,)}}}],
    [],
    None,
]


def test_a_row_is_rendered_with_its_own_tools_whatever_the_last_one_had() -> None:
    template = TOOLED + str(tiny_tokenizer("chatml").chat_template)
    renderer = Renderer(template, tiny_tokenizer("chatml"))
    talk = conversation(*CHAT)
    for tools in [tools for first in TOOLS for second in TOOLS for tools in (first, second)]:
        chat = Conversation(talk.turns, copy.deepcopy(tools))
        rendered = renderer.render(chat, TrainPolicy())
        renderer.check(chat, rendered.text)
        assert rendered == Renderer(template, tiny_tokenizer("chatml")).render(chat, TrainPolicy())


def test_tools_that_hold_more_than_plain_values_are_read_anew_for_each_row() -> None:
    class Words:
        text = "one"

        def __str__(self) -> str:
            return self.text

    renderer = Renderer(
        "{{ tools[0].x if tools else '' }}" + str(tiny_tokenizer().chat_template), tiny_tokenizer("chatml")
    )
    tool = {"x": Words()}
    seen = []
    for word in ("one", "two"):
        tool["x"].text = word
        seen.append(renderer.render(Conversation(conversation(*CHAT).turns, [tool]), TrainPolicy()).text[:3])
    assert seen == ["one", "two"]


@pytest.mark.parametrize(
    "change", ["tools.append(1)", "tools.clear()", "tools[0].update(x=1)", "tools[0].pop('f')", "tools[0].f.a.y.pop()"]
)
def test_a_template_cannot_change_tools(change: str) -> None:
    template = "{% if tools %}{% set _ = " + change + " %}{% endif %}" + str(tiny_tokenizer().chat_template)
    with pytest.raises(RowError, match=r"chat template failed: access to attribute '\w+' of '\w+' object is unsafe"):
        Renderer(template, tiny_tokenizer()).render(Conversation(conversation(*CHAT).turns, TOOLS[0]), TrainPolicy())
