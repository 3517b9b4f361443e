"""A traced string is the string it was made from, and each of its characters knows where it came from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.data.templates.environment import TracingEnvironment
from whet.data.templates.traced import MIXED, Source, Traced, concat, derive, trace

texts = st.text(st.sampled_from("ab \n\tßİé🙂%{}.,"), max_size=12)
pieces = st.text(st.sampled_from("ab \nß"), min_size=1, max_size=2)
SOURCE = Source(3, "content")

OPERATIONS: dict[str, Callable[[str, str, int], Any]] = {
    "slice": lambda s, p, n: s[n : n + 3],
    "tail": lambda s, p, n: s[-n:],
    "step": lambda s, p, n: s[::-1],
    "iterate": lambda s, p, n: list(s),
    "add": lambda s, p, n: s + p,
    "add in front": lambda s, p, n: p + s,
    "repeat": lambda s, p, n: s * n,
    "strip": lambda s, p, n: s.strip(),
    "strip characters": lambda s, p, n: s.strip(p),
    "lstrip": lambda s, p, n: s.lstrip(),
    "rstrip": lambda s, p, n: s.rstrip(p),
    "split": lambda s, p, n: s.split(),
    "split once": lambda s, p, n: s.split(None, 1),
    "split by": lambda s, p, n: s.split(p, n),
    "rsplit": lambda s, p, n: s.rsplit(None, n),
    "rsplit by": lambda s, p, n: s.rsplit(p, n),
    "splitlines": lambda s, p, n: s.splitlines(),
    "splitlines with ends": lambda s, p, n: s.splitlines(True),
    "partition": lambda s, p, n: s.partition(p),
    "rpartition": lambda s, p, n: s.rpartition(p),
    "replace": lambda s, p, n: s.replace(p, "xyz"),
    "replace some": lambda s, p, n: s.replace(p, "", n),
    "replace nothing": lambda s, p, n: s.replace("", "-"),
    "join": lambda s, p, n: s.join([p, "q", p]),
    "removeprefix": lambda s, p, n: s.removeprefix(p),
    "removesuffix": lambda s, p, n: s.removesuffix(p),
    "upper": lambda s, p, n: s.upper(),
    "lower": lambda s, p, n: s.lower(),
    "title": lambda s, p, n: s.title(),
    "capitalize": lambda s, p, n: s.capitalize(),
    "swapcase": lambda s, p, n: s.swapcase(),
    "casefold": lambda s, p, n: s.casefold(),
    "center": lambda s, p, n: s.center(n * 5),
    "ljust": lambda s, p, n: s.ljust(n * 5),
    "zfill": lambda s, p, n: s.zfill(n * 5),
    "expandtabs": lambda s, p, n: s.expandtabs(),
    "as text": lambda s, p, n: str(s),
    "in a format": lambda s, p, n: f"{s}",
}
QUESTIONS: list[Callable[[str, str], Any]] = [
    lambda s, p: hash(s),
    lambda s, p: len(s),
    lambda s, p: p in s,
    lambda s, p: s.find(p),
    lambda s, p: s.count(p),
    lambda s, p: s.startswith(p),
    lambda s, p: s < p,
    lambda s, p: s == p,
    lambda s, p: repr(s),
    lambda s, p: s.isspace(),
    lambda s, p: s.encode(),
    lambda s, p: bool(s),
    lambda s, p: {s: 1}.get(str.__str__(s)),
]


def strings(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("name", OPERATIONS)
@given(text=texts, piece=pieces, number=st.integers(0, 4))
def test_an_operation_gives_the_same_text_and_true_offsets(name: str, text: str, piece: str, number: int) -> None:
    plain = OPERATIONS[name](text, piece, number)
    traced = OPERATIONS[name](trace(text, SOURCE), piece, number)
    assert traced == plain
    for string in strings(traced):
        for run in getattr(string, "runs", ()):
            assert run.source == SOURCE
            assert 0 <= run.begin <= run.end <= len(string)
            if run.offset >= 0 and name not in {
                "upper",
                "lower",
                "title",
                "capitalize",
                "swapcase",
                "casefold",
                "expandtabs",
            }:
                written = str.__getitem__(string, slice(run.begin, run.end))
                assert written == text[run.offset : run.offset + run.end - run.begin]


@pytest.mark.parametrize("name", ["slice", "strip", "split", "splitlines", "partition", "rsplit by", "iterate"])
@given(text=texts, piece=pieces, number=st.integers(0, 4))
def test_a_part_of_a_message_is_the_messages_to_the_last_character(
    name: str, text: str, piece: str, number: int
) -> None:
    for string in strings(OPERATIONS[name](trace(text, SOURCE), piece, number)):
        assert [(run.begin, run.end) for run in string.runs] == [(0, len(string))]


@pytest.mark.parametrize("question", QUESTIONS)
@given(text=texts, piece=pieces)
def test_a_question_has_the_same_answer(question: Callable[[str, str], Any], text: str, piece: str) -> None:
    assert question(trace(text, SOURCE), piece) == question(text, piece)


def test_an_empty_message_leaves_a_mark_where_it_was_written() -> None:
    text = "<a>" + trace("   ", SOURCE).strip() + "</a>"
    assert isinstance(text, Traced)
    assert [(run.begin, run.end) for run in text.runs] == [(3, 3)]


def test_text_made_of_two_messages_belongs_to_neither() -> None:
    made = derive("x", trace("a", Source(0, "content")), [trace("b", Source(1, "content"))])
    assert isinstance(made, Traced)
    assert made.runs[0].source.message == MIXED


@pytest.mark.parametrize(
    ("template", "values"),
    [("%s and %5s", ("a", "b")), ("%(x)s!", {"x": "a"}), ("%d%%", 3), ("%-4s|", "a"), ("%.2f %s", (1.5, "b"))],
)
def test_percent_formatting_keeps_the_text(template: str, values: Any) -> None:
    plain = template % values
    assert Traced(template) % trace(values, SOURCE) == plain
    assert trace(template, SOURCE) % values == plain


@pytest.mark.parametrize("template", ["{} {}", "{1}{0}", "{0!r:>6}", "{0:>{width}}", "{{}}{x}"])
def test_brace_formatting_keeps_the_text(template: str) -> None:
    given_ = {"x": "y", "width": 5}
    plain = template.format("a", "b", **given_)
    traced = trace(["a", "b"], SOURCE)
    assert Traced(template).format(*traced, **given_) == plain
    assert trace(template, SOURCE).format(*traced, **given_) == plain


#: Ways in which templates write a content; `[…]` are its characters in the render.
WAYS = {
    "<{{ m.content }}>": "<[hi you]>",
    "{{ '<' + m['content'] + '>' }}": "<[hi you]>",
    "{{ '<' ~ m.content ~ 3 ~ '>' }}": "<[hi you]3>",
    "{{ m.content | trim | upper }}": "[HI YOU]",
    "{{ m.content | replace('hi', 'ho') }}": "[ho you]",
    "{{ 'a-b' | replace('-', m.content) }}": "a[hi you]b",
    "{{ m.content.split(' ')[-1] }}": "[you]",
    "{{ m.content[3:] }}": "[you]",
    "{{ ['x', m.content] | join('-') }}": "x-[hi you]",
    "{{ '-'.join(['x', m.content]) }}": "x-[hi you]",
    "{{ [m] | map(attribute='content') | join }}": "[hi you]",
    "{{ '{}!'.format(m.content) }}": "[hi you]!",
    "{{ '%s!' % m.content }}": "[hi you]!",
    "{{ '%s %s!' % (1, m.content) }}": "1 [hi you]!",
    "{{ '%s!' | format(m.content) }}": "[hi you]!",
    "{{ m.content | tojson }}": '["hi you"]',
    "{{ {'a': m.content} | tojson }}": '[{"a": "hi you"}]',
    "{{ [m.content] }}": "[['hi you']]",
    "{{ m.content | string | default('x') }}": "[hi you]",
    "{{ m.content | title }}": "[Hi You]",
    "{{ m.content | indent(2) }}": "[hi you]",
    "{% set x = m.content %}{{ x }}": "[hi you]",
    "{% set x %}<{{ m.content }}{% endset %}{{ x }}": "<[hi you]",
    "{% set ns = namespace(x='') %}{% for i in [1, 2] %}{% set ns.x = ns.x + m.content %}{% endfor %}{{ ns.x }}": (
        "[hi youhi you]"
    ),
    "{% macro f(x) %}({{ x }}){% endmacro %}{{ f(m.content) }}": "([hi you])",
    "{% macro f() %}({{ caller() }}){% endmacro %}{% call f() %}{{ m.content }}{% endcall %}": "([hi you])",
    "{% filter upper %}a{{ m.content }}{% endfilter %}": "A[HI YOU]",
    "{% generation %}a{{ m.content }}{% endgeneration %}": "a[hi you]",
    "{% for c in m.content %}{{ c }}.{% endfor %}": "[h].[i].[ ].[y].[o].[u].",
    "{{ m.content | length }}": "6",
    "{{ 'yes' if m.content == 'hi you' and m.content is string else 'no' }}": "yes",
    "{{ m.content.title() if 'hi' in m.content }}": "[Hi You]",
    "{{ m.content or 'x' }}": "[hi you]",
}


@pytest.mark.parametrize("template", WAYS)
def test_a_content_is_known_however_the_template_writes_it(template: str) -> None:
    compiled = TracingEnvironment().from_string(template)
    plain = compiled.render(m={"content": "hi you"})
    traced = compiled.render(m=trace({"content": "hi you"}, Source(0, "content")))
    assert traced == plain
    runs = [run for run in getattr(traced, "runs", ()) if run.source.message == 0]
    marked, at = [], 0
    for run in runs:
        marked += [plain[at : run.begin], "[", plain[run.begin : run.end], "]"]
        at = run.end
    assert "".join([*marked, plain[at:]]).replace("[]", "").replace("][", "") == WAYS[template]


def test_concat_joins_runs_in_order() -> None:
    text = concat(["a", trace("b", SOURCE), "", trace("c", SOURCE)])
    assert isinstance(text, Traced)
    assert [(run.begin, run.end) for run in text.runs] == [(1, 2), (2, 3)]
