"""What is learnt from one conversation and filled with another's texts is what the template makes of that other."""

from __future__ import annotations

from datetime import date
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conversations import WITHOUT_SYSTEM, contents
from tests.tiny_tokenizers import tiny_renderer, tiny_tokenizer

from whet.core.errors import RowError
from whet.core.types import Conversation, TrainRange, Turn
from whet.data.templates import skeleton as module
from whet.data.templates.regions import Span, merged
from whet.data.templates.render import Rendered, Renderer, TrainPolicy
from whet.data.templates.resolve import shipped
from whet.data.templates.skeleton import Skeleton, Skeletons

few = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

ANSWERS = TrainPolicy()


def talk(*turns: tuple[str, str], **more: Any) -> Conversation:
    return Conversation(tuple(Turn({"role": role, "content": content, **more}) for role, content in turns))


@cache
def skeletons_of(name: str) -> Skeletons:
    """One for all conversations of a test: whatever was learnt before must not matter."""
    return Skeletons(tiny_renderer(name), ANSWERS)


def spans_of(skeleton: Skeleton, texts: list[str], unit: str) -> tuple[list[Span], list[Span]]:
    """Trained and written spans, as `TextBatch` computes them."""
    lengths = np.array([[len(text if unit == "chars" else text.encode()) for text in texts]], dtype=np.int64)
    begins, ends, slot_begins, slot_ends = (part[0].tolist() for part in skeleton.spans(lengths, unit))
    pairs = [list(map(Span, first, last)) for first, last in ((begins, ends), (slot_begins, slot_ends))]
    return pairs[0], pairs[1]


def assert_equal(found: tuple[Skeleton, list[str]], rendered: Rendered) -> None:
    skeleton, texts = found
    assert skeleton.write(texts) == rendered.text

    def bytes_before(char: int) -> int:
        return len(rendered.text[:char].encode())

    for unit, at in (("chars", lambda char: char), ("bytes", bytes_before)):
        trained, written = spans_of(skeleton, texts, unit)
        assert trained == [Span(at(span.begin), at(span.end)) for span in rendered.spans]
        assert merged(written) == tuple(Span(at(span.begin), at(span.end)) for span in rendered.written)


#: What templates and tokenizers write themselves.
_MARKUP = [
    *("</think>", "<think>", "\n</think>\n\n", "<tool_response>", "</tool_response>", "<tool_call>", "<|im_end|>"),
    *("[INST]", "[/INST]", "</s>", "<s>", "<<SYS>>", "### Response:", "<|im_start|>assistant\n", "<end_of_turn>"),
    *(" [/INST] x", "assistant", "[TOOL_CALLS]", "\n\n", " ", "\u2028", "🙂", "e\u0301", "İ", "", "%s", "{{ x }}"),
]
odd_contents = st.lists(st.one_of(st.sampled_from(_MARKUP), contents), max_size=3).map("".join)


@st.composite
def odd_conversations(draw: st.DrawFn, template: str) -> Conversation:
    """Of few shapes, so that most are filled, and of all contents; few templates take every one of them."""
    system = template not in WITHOUT_SYSTEM and draw(st.booleans())
    roles = ["system"] * system + ["user", "assistant"] * draw(st.integers(1, 2)) + ["user"] * draw(st.booleans())
    if draw(st.integers(0, 4)) == 4:
        roles.insert(draw(st.integers(0, len(roles))), draw(st.sampled_from(["tool", "user", "system", "critic"])))
    repeated = draw(odd_contents)
    turns = []
    for role in roles:
        message = {"role": role, "content": draw(st.one_of(odd_contents, st.just(repeated), st.just("words")))}
        if role == "assistant" and draw(st.integers(0, 4)) == 4:
            message |= {"reasoning_content": draw(odd_contents), "thinking": draw(odd_contents)}
        turns.append(Turn(message, draw(st.sampled_from([None, None, None, True, False]))))
    return Conversation(tuple(turns))


@pytest.mark.parametrize("name", shipped())
@given(data=st.data())
@few
def test_a_filled_skeleton_is_what_the_template_makes(name: str, data: st.DataObject) -> None:
    conversation = data.draw(odd_conversations(name))
    found = skeletons_of(name).find(conversation)
    if found is not None:
        assert_equal(found, tiny_renderer(name).render(conversation, ANSWERS))


@given(data=st.data())
@settings(few, max_examples=60)
def test_it_holds_for_every_policy(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["chatml", "mistral_v3_tekken", "llama2", "gemma3"]))
    conversation = data.draw(odd_conversations(name))
    rules = st.sampled_from(["turn", "all", "last", "none"])
    policy = TrainPolicy(data.draw(st.sampled_from([None, frozenset({"user"})])), data.draw(rules), data.draw(rules))
    found = Skeletons(tiny_renderer(name), policy).find(conversation)
    if found is not None:
        assert_equal(found, tiny_renderer(name).render(conversation, policy))


@pytest.mark.parametrize("name", shipped())
def test_conversations_of_one_shape_run_the_template_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = tiny_renderer(name)
    skeletons = Skeletons(renderer, ANSWERS)
    runs = []
    render = renderer.template.render_traced
    monkeypatch.setattr(renderer.template, "render_traced", lambda *args: runs.append(args) or render(*args))
    for text in ("one", "two words", "東京"):
        turns = [("user", text), ("assistant", f"so {text}"), ("user", "and then?"), ("assistant", text)]
        assert skeletons.find(talk(*turns)) is not None
    assert len(runs) == 1


def test_another_answer_to_what_was_asked_is_another_skeleton() -> None:
    skeletons = Skeletons(tiny_renderer("qwen3"), ANSWERS)
    plain = talk(("user", "Q"), ("assistant", "A"))
    thinking = talk(("user", "Q"), ("assistant", "<think>\nhm\n</think>\n\nA"))
    first = skeletons.find(plain)
    second = skeletons.find(thinking)
    assert first is not None
    assert_equal(first, tiny_renderer("qwen3").render(plain, ANSWERS))
    assert second is None or second[0] is not first[0]
    assert skeletons.find(talk(("user", "another"), ("assistant", "one")))[0] is first[0]  # type: ignore[index]


def test_roles_wishes_and_fields_are_the_shape() -> None:
    skeletons = Skeletons(tiny_renderer("chatml"), ANSWERS)
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]

    def found(*turns: Turn, tools: list[Any] | None = None) -> Skeleton | None:
        match = skeletons.find(Conversation(turns, tools))
        return None if match is None else match[0]

    user, answer = (Turn(turn) for turn in turns)
    variants = [
        found(user, answer),
        found(Turn({**turns[0], "role": "system"}), answer),
        found(Turn(turns[0], True), answer),
        found(user, Turn(turns[1], False)),
        found(user, Turn({**turns[1], "name": "x"})),
    ]
    assert None not in variants
    assert len({id(skeleton) for skeleton in variants}) == len(variants)
    assert found(user, answer) is variants[0]
    # What is more than texts is left to the template.
    assert found(user, answer, tools=[]) is None
    assert found(user, Turn(turns[1], None, (TrainRange(0, 1, False),))) is None
    assert found(user, Turn({**turns[1], "name": None})) is None
    assert found(user, Turn({**turns[1], "tool_calls": []})) is None


def test_a_refused_conversation_teaches_that_those_like_it_are_left_to_the_template() -> None:
    def check(conversation: Conversation, rendered: Rendered, render: Any) -> None:
        if "bad" in rendered.text:
            raise RowError("bad", "")

    skeletons = Skeletons(tiny_renderer("chatml"), ANSWERS, check)
    assert skeletons.find(talk(("user", "bad"), ("assistant", "A"))) is None
    assert skeletons.find(talk(("user", "good"), ("assistant", "A"))) is None
    assert skeletons.find(talk(("system", "S"), ("user", "good"), ("assistant", "A"))) is not None


def test_a_template_of_the_day_is_learnt_for_its_renderers_day() -> None:
    tokenizer = tiny_tokenizer("chatml")
    template = "{{ strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    for day in (date(2026, 11, 21), date(2030, 1, 2)):
        renderer = Renderer(template, tokenizer, today=day)
        skeletons = Skeletons(renderer, ANSWERS)
        for question in ("Q", "another"):
            conversation = talk(("user", question), ("assistant", "A"))
            found = skeletons.find(conversation)
            assert found is not None
            assert found[0].write(found[1]) == renderer.render(conversation, ANSWERS).text
            assert found[0].write(found[1]).startswith(day.strftime("%d %b %Y"))


def test_no_more_is_learnt_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_LEAVES", 1)
    skeletons = Skeletons(tiny_renderer("chatml"), ANSWERS)
    for _ in range(2):
        assert skeletons.find(talk(("user", "Q"), ("assistant", "A"))) is not None
        assert skeletons.find(talk(("user", "Q"))) is None


# -- templates that decide by what a message says ----------------------------------------------------------------------

#: Conditions, each of which is true of some contents and false of others.
DECISIONS = r"""
content|length > 3
content[0] == 'a'
content[:2] == 'ab'
content[-1] == 'b'
content in 'abc yes'
content not in 'abc yes'
'a' in content
'a' not in content
content in ['a', 'b']
content in ('a', 'b')
content in {'a': 1, 'b': 2}
content in messages[0].content
content in message.role
message.role in content
content == 'a'
content != 'a'
'a' == content
content == message.role
message.role == content
content < 'b'
'b' < content
content >= 'b'
content.startswith('a')
content.startswith(('a', 'b'))
content.endswith('b')
content.startswith('a', 1)
'abc yes'.startswith(content)
'abc yes'.endswith(content)
'abc yes'.find(content) >= 0
'abc yes'.rfind(content) >= 0
'abc yes'.count(content)
'abc yes'.partition(content)[1]
'abc yes'.rpartition(content)[1]
'abc yes'.replace(content, '') == 'abc yes'
'abc yes'.strip(content) == 'abc yes'
'abc yes'.removeprefix(content) == 'abc yes'
('abc yes'.split(content))|length > 1
message.role.startswith(content)
message.role.find(content) >= 0
message.role.count(content)
content.split(',')|length > 1
content.split('</think>')[-1] == 'x'
content.find('a') >= 0
content.count('a') > 1
content.index('a') if 'a' in content else 0
content.isdigit()
content.islower()
content.isspace()
content is string
content is sequence
content is iterable
content is mapping
content is number
content is lower
content is upper
content is escaped
content is in('abc')
content is in(['a', 'b'])
'a' is in(content)
content is eq('a')
content is ne('a')
content is equalto('a')
content is sameas('a')
content is lt('b')
content is gt('b')
content is filter
content is test
content is callable
content is none
content is defined
content is true
content|int > 5
content|int(0, 16) > 5
content|int(default=9) == 9
content|float > 2
content|wordcount > 1
content|upper == 'ABC'
content|lower == 'abc'
content|trim == 'a'
content|trim|length > 2
content|trim('a') == 'b'
content.strip() == 'a'
content.strip('a') == 'b'
content.lstrip(' ')|length > 2
content|replace('a', 'b') == 'b'
content|default('x', true) == 'x'
content|default('x') == 'x'
content|first == 'a'
content|last == 'b'
content|list == ['a']
content|join(',') == 'a'
content|sort|join == 'abc'
content|unique|list|length > 1
content|reverse == 'cba'
content|tojson == '"a"'
content|string == 'a'
content|e == 'a'
content|safe == 'a'
content|forceescape == 'a'
content|urlencode == 'a'
content|title == 'Abc'
content|capitalize == 'Abc'
content|center(8) == '   a    '
content|truncate(3) == 'a'
content|wordwrap(5) == 'a'
content|indent == 'a'
content|striptags == 'a'
content|filesizeformat == '7 Bytes' if content == '7' else false
content|pprint == "'a'"
content|batch(2)|list|length > 1
content|slice(2)|list|length > 1
content|map('upper')|join == 'ABC'
content|select('in', 'abc')|list|length > 1
content|min == 'a'
content|max == 'c'
content|random == 'a'
content|format == 'a'
content|count > 2
'abc yes'|replace(content, '') == 'abc yes'
'abc yes'|trim(content) == 'abc yes'
'abc yes'|replace('a', content) == content
'a,b'|join(content) == 'a'
['a','b']|join(content) == 'aab'
['a','b']|select('equalto', content)|list
['a','b']|select('in', content)|list
['abc','b']|map('replace', content, '')|join == 'abcb'
['abc yes']|select('in', content)|list|length
[content]|select('in', 'abc')|list|length
[content]|reject('in', 'abc')|list|length
[content]|map('length')|first > 2
[content]|map('int')|first > 2
[content]|map('wordcount')|first > 1
[content]|sort == ['a']
[content, 'b']|sort|first == 'a'
[content, 'b']|unique|list|length == 1
[content, 'b']|unique(case_sensitive=true)|list|length == 1
[content, 'b']|max == 'b'
[content]|sum(start='') == 'a'
messages|selectattr('content', 'equalto', 'a')|list|length
messages|selectattr('content', 'in', 'abc')|list|length
messages|rejectattr('content', 'in', 'abc')|list|length
messages|selectattr('content')|list|length > 1
messages|map(attribute='content')|join == 'aa'
messages|map(attribute='content')|list == ['a','a']
messages|groupby('content')|length > 1
messages|groupby('content', case_sensitive=true)|length > 1
messages|sort(attribute='content')|first == message
messages|unique(attribute='content')|list|length == 1
messages|unique(attribute='content', case_sensitive=true)|list|length == 1
message == messages[0]
message in messages[:1]
messages.index(message) == 0
messages.count(message) == 2
message|length > 1
message|tojson == 'x'
message|string == 'x'
message|dictsort(by='value')|first|first == 'content'
message|dictsort|length > 1
message.values()|list == ['user', 'a']
message.items()|list|length > 1
message|items|list|length > 1
message[content]
message[content] is defined
message.get(content)
{'a': 1, 'b': 2}[content]
{'a': 1, 'b': 2}.get(content, 0)
{'a': 1}.get('a') == content
'abc'[content|int]
'abcdefghijkl'[content|int(0)]
dict(a=content).a == 'a'
dict(a=content) == {'a': 'a'}
dict.fromkeys(content)|length > 2
{content: 1}|length
namespace(a=content).a == 'a'
content ~ 'x' == 'ax'
(content ~ '') == 'a'
('' ~ content) == 'a'
(content ~ content) == 'aa'
content + 'x' == 'ax'
content * 2 == 'aa'
content % () == 'a'
'%s' % content == 'a'
'%5s' % content == '    a'
'%.1s' % content == 'a'
'%s-%s' % (content, 'x') == 'a-x'
'%(content)s' % message == 'a'
'{}'.format(content) == 'a'
'{:>3}'.format(content) == '  a'
'{0[0]}'.format(content) == 'a'
'{content}'.format(content=content) == 'a'
'{!r}'.format(content) == "'a'"
'{content}'.format_map(message) == 'a'
content.format(1) == '1'
content.format_map({}) == 'a'
'%s'|format(content) == 'a'
content|attr('upper') is defined
content is divisibleby 2
content.encode() == 'a'
content.join(['x', 'y']) == 'xay'
''.join([content]) == 'a'
','.join([content, 'b']) == 'a,b'
content.splitlines()|length > 1
content.casefold() == 'abc'
content.translate({97: 'b'}) == 'b'
content.zfill(3) == '00a'
content.isidentifier()
content and content != 'b'
not content
content or false
loop.changed(content)
loop.previtem is defined and loop.previtem.content == content
loop.nextitem is defined and loop.nextitem == message
range(content|length)|list|length > 2
cycler(content, 'x').next() == 'a'
joiner(content)() == ''
[content] == ['a']
(content, 1) == ('a', 1)
[[content]] == [['a']]
{'a': content} == {'a': 'a'}
[content][0] == 'a'
(content|e) ~ '' == 'a'
'a'|e == content
('abc'|e).find(content) >= 0
content in ('abc'|e)
('x'|e) + content == 'x&lt;b&gt;&amp;'
content.upper().lower() == 'abc'
content|replace('x', '')|length > 3
(content if content == 'a' else 'z') == 'z'
content == 'a' == true
content == 'a' or content in 'bcd'
'a' < content < 'c'
'a' in content in 'abc'
content in 'abc' in 'abcd'
'abc yes'.split(content, 1)[0] == 'abc yes'
'abc'.index(content) if content == 'a' else false
content is not in 'abc'
content is not lower
('abc', content)|join|length > 4
content|map('length')|list|length > 2
content|list|length > 2
content|xmlattr is defined
dict(x=content)|xmlattr == ' x="a"'
dict(x=content)|urlencode == 'x=a'
dict(x=content)|tojson|length > 12
dict(x=content)|items|list|length
[content]|tojson|length > 6
[content]|string|length > 6
[content]|pprint|length > 6
[1, 2]|batch(2, content)|list|length
'ab'|center(content|length) == 'ab'
'ab\ncd'|indent(content) == 'x'
'a b c'|wordwrap(1, wrapstring=content) == 'x'
3.5|round(0, content) == 4
[3,1]|sort(reverse=content) == [3,1]
[3,1]|sum(attribute=content) == 4
[{'a': 1}]|map(attribute=content)|list == [1]
[{'a': 1}]|sum(attribute=content)
[{'a': 1}]|selectattr(content)|list|length
[{'a': 1}]|join(attribute=content) == '1'
message|attr(content) is defined
['x']|map(content)|list == ['X']
['x']|select(content)|list|length
1|string(content)
5 in content|map('int')|list
content|abs
raise_exception(content) if content == 'b' else true
content|safe ~ content|length > 3
content is filter or content == 'a'
content.title() == 'Abc'
(content|safe).startswith('a')
(content|safe)|length > 3
(content|e)|length > 3
"""

#: The same in statements, and everything that writes a content otherwise.
BODIES = r"""
{% for c in content %}[{{ c }}]{% endfor %}
{% for c in content %}{% if loop.index < 3 %}{{ c }}{% endif %}{% else %}none{% endfor %}
{% for p in content.split(',') %}<{{ p }}>{% endfor %}
{% set ns = namespace(n=0) %}{% for c in content %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}
{% set ns = namespace(s='') %}{% if 'a' in content %}{% set ns.s = content %}{% endif %}{{ ns.s }}
{% macro m(x, y='z') %}{{ x|length }}{{ y }}{% endmacro %}{{ m(content) }}
{% macro m(x) %}({{ x }}){% endmacro %}{{ m(content) }}
{% macro m(x) %}({{ x }}){% endmacro %}{% if m(content) == '(a)' %}Y{% endif %}
{% macro m() %}[{{ caller() }}]{% endmacro %}{% call m() %}{{ content }}{% endcall %}
{% set x %}{{ content }}!{% endset %}{{ x|length }}
{% set x %}{{ content }}{% endset %}{% if x == 'a' %}Y{% endif %}{{ x }}
{% set x %}{{ content }}{% endset %}{% if x in 'abc' %}Y{% endif %}
{% set x %}{{ content }}{% endset %}{% if not x %}E{% endif %}
{% set x | upper %}{{ content }}{% endset %}{{ x }}
{% filter upper %}{{ content }}{% endfilter %}
{% filter length %}{{ content }}{% endfilter %}
{% filter wordcount %}{{ content }}{% endfilter %}
{% filter trim %} {{ content }} {% endfilter %}
{{ content|e }}
{{ content|safe }}
{{ content|forceescape }}
{{ content|urlencode }}
{{ content|tojson }}
{{ content|length }}
{{ content|striptags }}
{{ content|int }}
{{ content|float }}
{{ content|wordcount }}
{{ content|upper }}
{{ content|e|upper }}
{% autoescape true %}{{ content }}{% endautoescape %}
{% autoescape true %}{{ '<' ~ content }}{% endautoescape %}
{% autoescape true %}{% set x %}{{ content }}{% endset %}{{ x|length }}{% endautoescape %}
{{ ('x'|e) + content }}
{{ ('x'|e) ~ content }}
{{ ('x'|safe).join([content, content]) }}
{{ ('%s'|safe) % content }}
{{ ('%s'|safe)|format(content) }}
{{ ('{}'|safe).format(content) }}
{{ content[1:] }}
{{ content[::-1] }}
{{ content.split('</think>')[-1].lstrip('\n') }}
{{ content.split('</think>')|last }}
{{ content.replace('a', 'bb') }}
{{ content|replace('a', '') }}
{{ content.upper() }}
{{ content.title() }}
{{ content * 2 }}
{{ '%10s' % content }}
{{ '%s' % content }}
{{ '{:>9}'.format(content) }}
{{ '{}|{}'.format(content, 1) }}
{{ '%r' % content }}
{{ '%s' % [content] }}
{{ [content] }}
{{ message }}
{{ messages }}
{{ message.values() }}
{{ message.items()|list }}
{{ message|tojson }}
{{ namespace(a=content) }}
{{ dict(a=content) }}
{{ (content,) }}
{{ messages|map(attribute='content')|join(', ') }}
{{ messages|map(attribute='content')|map('upper')|join }}
{{ messages|groupby('content')|length }}
{{ messages|sort(attribute='content')|map(attribute='role')|join }}
{{ messages|dictsort if false else '' }}
{{ messages|selectattr('content','in','abc')|map(attribute='role')|join(',') }}
{{ {'a': 'X', 'b': 'Z'}[content] }}
{{ {'a': 'X'}.get(content, 'D') }}
{{ message[content] }}
{{ 'abcdefghijklm'[content|int] }}
{{ [1,2,3][:content|length]|join }}
{{ content.strip().strip('a') }}
{{ content.strip(content) }}
{{ 'xax'.strip(content) }}
{{ 'xax'|trim(content) }}
{{ content|trim(content) }}
{{ 'a-b'.replace(content, 'Q') }}
{{ 'a-b'|replace(content, 'Q') }}
{{ 'a' if content in 'abc' else 'b' }}
{{ content in 'abc' }}
{{ content == 'a' }}
{{ content < 'b' }}
{{ 'b' in content }}
{{ content|default('D', true) }}
{{ content or 'D' }}
{{ content and 'D' }}
{{ content ~ 1 ~ none }}
{{ content ~ content|length }}
{{ 'abc'.split(content)|length }}
{{ 'abc'.partition(content)|length }}
{{ 'abc'.partition(content)[1] }}
{{ 'abc yes'.partition(content)[0] }}
{{ message.role.replace(content, '') }}
{{ message.role|replace(content, '') }}
{{ content.center(9) }}
{{ content|center(9) }}
{{ content|indent(2) }}
{{ content|indent(2, true) }}
{{ content|wordwrap(4) }}
{{ content|truncate(4, true) }}
{{ content.splitlines()|join('/') }}
{{ content|list|join('/') }}
{{ content|batch(2)|map('join')|join('/') }}
{{ content|first }}
{{ content|last }}
{{ content|reverse }}
{{ content|sort|join }}
{{ content|unique|join }}
{% if content is filter %}F{% endif %}
{% with x = content|length %}{{ x }}{% endwith %}
{% with x = content %}{{ x }}{% endwith %}
{{ loop.cycle(content, 'x') }}
{% if loop.changed(content) %}C{% endif %}
{{ loop.previtem.content if loop.previtem is defined else '' }}
{{ raise_exception('no') if content == 'b' else 'ok' }}
{{ raise_exception('no') if content in 'bcd' else 'ok' }}
{{ content.strip() }}{% if content.strip() != content %}T{% endif %}
{{ content.lstrip('\n') }}{{ content.rstrip() }}
{% if content.strip() == 'a' %}{{ content }}{% else %}{{ content.strip() }}{% endif %}
{% if content.startswith('a') and content.endswith('b') %}{{ content }}{% endif %}
{% set content = content.strip() %}{% if content %}[{{ content }}]{% endif %}
{{ content.zfill(4) }}{{ content.expandtabs() }}
{{ content.maketrans('a', 'b') }}
{{ content.split() | length }}
{{ content|pprint }}
{{ content|string|string }}
{{ content.__len__() }}
{{ content.runs }}
{{ content.watch }}
{{ content.lose }}
{{ content._cuts }}
{{ content.lose() }}
{{ content.watch.guards }}
"""

_POOL = [
    *(
        "hello there",
        "a",
        "b",
        "abc",
        "7",
        "12",
        "0x1f",
        "yes no",
        " a ",
        "content",
        "upper",
        "assistant",
        "a,b",
        "<b>&",
    ),
    *("a</think>b", "%s", "", "a\nb\nc", "é", "Abc", "xxxxxxxxxxxx"),
]

FRAGMENTS = [f"{{% if ({line}) %}}Y{{% else %}}N{{% endif %}}" for line in DECISIONS.strip().splitlines()]
FRAGMENTS += BODIES.strip().splitlines()


@pytest.mark.parametrize("first", ["hello there", "7", "a", ""])
def test_no_template_is_too_nasty(first: str) -> None:
    """Whatever a template does with a content, its text is never wrong: it is learnt, or left to the template.

    The fragment stands where a template's first look at plain conversations (`facts`) does not see it.
    """
    tokenizer = tiny_tokenizer("chatml")
    pool = [first, *(content for content in _POOL if content != first)]
    learnt = 0
    for fragment in FRAGMENTS:
        renderer = Renderer(
            "{% for message in messages %}{% set content = message['content'] %}<|im_start|>{{ message['role'] }}\n"
            "{{ content }}{% if messages|length == 3 %}" + fragment + "{% endif %}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
            tokenizer,
        )
        skeletons = Skeletons(renderer, ANSWERS)
        for content in pool:
            conversation = talk(("system", "S"), ("user", "hello there"), ("assistant", content))
            found = skeletons.find(conversation)
            if found is not None:
                learnt += 1
                renderer.check(conversation, found[0].write(found[1]))
    assert learnt > 1000  # else nothing was tried
