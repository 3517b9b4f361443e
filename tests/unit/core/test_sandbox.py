"""A hostile chat template ends, within what it may take, with an error that names it; an ordinary one is as it was."""

from __future__ import annotations

import resource
import threading
from contextlib import suppress

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from whet.core.errors import WhetError
from whet.core.sandbox import BoundedEnvironment, Limits, TooLarge, TooSlow, budget
from whet.data.templates.environment import TracingEnvironment
from whet.data.templates.render import TEMPLATE_ERRORS, Template

SMALL = Limits(steps=20_000, seconds=5.0, characters=1_000_000, made=10_000_000, items=20_000)
"""Limits for the tests, so that they cost little; what ends within these ends within those of a run."""

ENVIRONMENTS = [BoundedEnvironment, TracingEnvironment]


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "LIMITS", SMALL)


LOOPS = {
    "a loop in a loop": "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
    "a loop that passes all over": "{% for i in range(100000) if i < 0 %}{% endfor %}",
    "macros that call twice": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(40) }}",
    "a recursive loop": "{% set ns = namespace(n=0) %}{% for x in [1, 2] recursive %}{% set ns.n = ns.n + 1 %}"
    "{% if loop.depth < 40 %}{{ loop([1, 2]) }}{% endif %}{% endfor %}",
    "a block that calls itself": "{% set ns = namespace(n=0) %}{% block b %}{% set ns.n = ns.n + 1 %}"
    "{% if ns.n < 10**9 %}{{ self.b() }}{{ self.b() }}{% endif %}{% endblock %}",
    "calls of call blocks": "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call m() %}" * 16
    + "x"
    + "{% endcall %}" * 16,
    "the characters of a long text": "{% for c in 'a' * 900000 %}{% endfor %}",
    "a search for ever": "{% set s = 'x' * 900000 %}" + "{{ 'y' in s }}" * 2000,
    "long texts, one after the other": "{% for i in range(10000) %}{% set s = 'x' * 500000 %}{% endfor %}",
}
SIZES = {
    "a text repeated": "{{ 'a' * 10**10 }}",
    "a text repeated, the other way": "{{ 10**10 * 'a' }}",
    "a text doubled": "{% set s = 'x' * 1000 %}" + "{% set s = s + s %}" * 60,
    "a text joined to itself": "{% set s = 'x' * 1000 %}" + "{% set s = s ~ s %}" * 60,
    "many long terms": "{% set s = 'x' * 900000 %}{{ s" + " + s" * 100 + " }}",
    "a filter's width": "{{ 'x'|center(1000000000) }}",
    "a method's width": "{{ 'x'.ljust(10**9) }}",
    "a width in percent": "{{ '%1000000000d' % 1 }}",
    "a width in percent, given": "{{ '%*d' % (10**9, 1) }}",
    "a width of format": "{{ '{:>1000000000}'.format(1) }}",
    "a width of format, given": "{{ '{:>{w}}'.format(1, w=10**9) }}",
    "a width of format_map": "{{ '{a:>1000000000}'.format_map({'a': 1}) }}",
    "many fields of format": "{% set s = 'x' * 900000 %}{{ ('{0}' * 10000).format(s) }}",
    "many fields of percent": "{% set s = 'x' * 900000 %}{{ '%(a)s%(a)s%(a)s' % {'a': s} }}",
    "the filter format": "{% set s = 'x' * 900000 %}{{ '%s%s%s'|format(s, s, s) }}",
    "replacing": "{{ ('x' * 100000).replace('x', 'y' * 1000) }}",
    "the filter replace": "{{ ('x' * 100000)|replace('x', 'y' * 1000) }}",
    "a long indent": "{{ ('\n' * 10000)|indent(9000) }}",
    "an indent of JSON": "{{ {'a': 1}|tojson(indent=10**6) }}",
    "joining": "{{ ('a' * 1000).join(['b' * 1000] * 10000) }}",
    "the filter join": "{{ range(10000)|join('x' * 10000) }}",
    "translating": "{{ ('a' * 10000).translate({97: 'b' * 10000}) }}",
    "tabs": "{{ ('\t' * 10000).expandtabs(100000) }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "a list repeated": "{{ [0] * 10**9 }}",
    "a list doubled": "{% set a = [0] * 1000 %}" + "{% set a = a + a %}" * 40,
    "lists of lists": "{% set a = [0] * 10 %}" + "{% set a = [a, a, a, a, a, a, a, a, a, a] %}" * 20 + "{{ a }}",
    "mappings of mappings": "{% set a = {'a': 1} %}" + "{% set a = {'a': a, 'b': a} %}" * 40 + "{{ a|tojson }}",
    "tuples in dict()": "{% set a = (1, 2) %}" + "{% set a = dict(a=a, b=a) %}" * 40 + "{{ a }}",
    "lists kept by a loop": "{% set ns = namespace(l=[]) %}{% for i in range(19000) %}"
    "{% set ns.l = ns.l + [i] %}{% endfor %}",
    "pieces": "{{ ('a,' * 400000).split(',')|length }}",
    "the characters of a text": "{{ ('a' * 900000)|list|length }}",
    "a large number": "{{ 9999999999 ** 99999 }}",
    "a number squared": "{% set n = 7 ** 30000 %}" + "{% set n = n * n %}" * 40,
    "output": "{% set s = 'a' * 900000 %}" + "{{ s }}" * 1000,
    "comments to strip": "{{ ('<!--' * 200000)|striptags }}",
    "words to wrap": "{{ ('a' * 900000)|wordwrap(1) }}",
    "links": "{{ ('http://' * 100000)|urlize }}",
    "lists to sum": "{{ ([[1]] * 9000)|sum(start=[])|length }}",
    "mapped to long texts": "{{ range(100000)|map('string')|map('center', 900000)|list|length }}",
    "random words": "{{ lipsum(n=10**9) }}",
    "a long range": "{% for i in range(10**9) %}x{% endfor %}",
}


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("text", LOOPS.values(), ids=LOOPS)
def test_what_goes_on_for_ever_ends(text: str, environment: type[BoundedEnvironment]) -> None:
    with pytest.raises((TooSlow, TooLarge, RecursionError)):
        environment().from_string(text).render(messages=[])


def _most_kilobytes() -> int:
    """Memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_what_grows_for_ever_ends_before_memory_does(environment: type[BoundedEnvironment]) -> None:
    before = _most_kilobytes()
    for name, text in SIZES.items():
        with pytest.raises((TooLarge, TooSlow, jinja2.UndefinedError, OverflowError)):
            pytest.fail(f"{name}: {len(environment().from_string(text).render(messages=[])):,} characters")
        assert _most_kilobytes() - before < 200_000, name


def test_it_ends_in_a_thread_as_well_and_each_render_has_its_own_budget() -> None:
    environment = BoundedEnvironment()
    slow = environment.from_string(LOOPS["a loop in a loop"])
    fair = environment.from_string("{% for i in range(15000) %}x{% endfor %}")
    found: list[object] = []

    def render() -> None:
        with pytest.raises(TooSlow):
            slow.render()
        found.extend(len(fair.render()) for _ in range(3))

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [15000] * 9
    with pytest.raises(TooSlow):
        list(slow.generate())


def test_the_error_names_the_template_and_its_place() -> None:
    template = Template("{# mine #}" + LOOPS["macros that call twice"], {}, "my.yaml:3:1")
    with pytest.raises(TooSlow) as caught:
        template.render([])
    assert str(caught.value).startswith("my.yaml:3:1: the chat template '{# mine #}{% macro m(n) %}")
    assert "it takes more than 20,000 steps -> use another chat_template" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% for i in [1] %}" * 30 + "{% endfor %}" * 30,
        "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
        "{{ x" + ".a" * 5000 + " }}",
        "{{ x" + "|e" * 5000 + " }}",
        "{{ " + "not " * 5000 + "1 }}",
        "x" * 300_000,
        "\0{{ '\0' }}",
    ],
)
def test_a_template_that_does_not_compile_is_an_error_of_the_users(text: str) -> None:
    with suppress(WhetError, *TEMPLATE_ERRORS):
        assert Template(text, {}).render([])


ORDINARY = [
    "{% for m in messages %}{{ '<' + m['role'] + '>' }}{{ m.content|trim }}{{ '\n' }}{% endfor %}",
    "{{ ('a' * 3) ~ 1 ~ none ~ [1, (2, 3)] }}{{ '%s-%05d' % ('x', 3) }}{{ '{:>4}|{a!r}'.format(1, a='y') }}",
    "{{ {'a': [1, 2], 'b': {'c': none}} }}{{ [1, 2] + [3] }}{{ 7 * 6 }}{{ 2 ** 10 }}{{ 'a' in 'cat' }}",
    "{{ ['b', 'a']|sort|join(', ') }}{{ 'a b'|replace(' ', '_')|upper|center(9) }}{{ 'x\ny'|indent(2) }}",
    "{% macro m(x, y=2) %}[{{ x }}{{ y }}{{ caller() if caller }}]{% endmacro %}{{ m(1) }}"
    "{% call m(3) %}c{% endcall %}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) if i is even %}{% set ns.n = ns.n + i %}{% else %}no{% endfor %}"
    "{{ ns.n }}{{ loop }}",
    "{% for x in [[1, [2]], 3] recursive %}{{ x if x is number else loop(x) }}{% endfor %}",
    "{{ 'a,b'.split(',') }}{{ '-'.join(['x', 'y']) }}{{ 'abc'[1:] }}{{ ' x '.strip() }}{{ 'x'.zfill(3) }}",
    "{% block a %}A{% endblock %}{{ self.a() }}{{ dict(a=1) }}{% filter upper %}u{% endfilter %}",
    "{{ [3, 1]|sum }}{{ 'a'|list }}{{ ({'b': 1}|dictsort) }}{{ range(3)|map('string')|list }}{{ 1 + 2 + 3 + 4 }}",
]


@pytest.mark.parametrize("text", ORDINARY)
def test_an_ordinary_template_writes_what_jinja_writes(text: str) -> None:
    messages = [{"role": "user", "content": " hi "}, {"role": "assistant", "content": "a"}]
    stock = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    bounded = BoundedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(text)
    assert bounded.render(messages=messages) == stock.render(messages=messages)


# -- templates that nobody thought of --------------------------------------------------------------------------------

atoms = st.sampled_from(
    ["'ab'", "s", "n", "l", "d", "messages", "10**9", "100000", "[s, s]", "{'a': l}", "(s, n)", "none", "ns.s", "ns.l"]
)
operations = st.sampled_from(
    [
        *("({0} + {1})", "({0} ~ {1})", "({0} * {1})", "({0} ** {1})", "({0} % {1})", "({0} in {1})", "({0} == {1})"),
        *("{0}|center({1})", "{0}|join({1})", "{0}|replace('a', {1})", "{0}|indent({1})", "{0}|list", "{0}|tojson"),
        *(
            "{0}.replace('b', {1})",
            "{0}.join({1})",
            "{0}.ljust({1})",
            "{0}.format({1})",
            "{0}.split({1})",
            "{0}.items()",
        ),
        *("range({0})", "{0}|map('string')|list", "{0}|sort", "{0}|batch({1})|list", "{0}|string", "{0}[{1}]"),
        *("dict(a={0}, b={1})", "[{0}, {1}]", "{0}|sum(start={1})", "{0}|wordwrap({1})", "{0}|title", "m({0})"),
        *("'%s%s'|format({0}, {1})", "'{{0:>9}}'.format({0})", "{0}|unique|list", "{0}|reverse|list", "{0}|length"),
    ]
)


def _operated(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.builds(lambda form, one, other: form.format(one, other), operations, inner, inner)


expressions = st.recursive(atoms, _operated, max_leaves=6)


def _nested(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=2, max_size=4).map("".join),
        st.builds("{{% for x in {0} %}}{1}{{% endfor %}}".format, expressions, inner),
        st.builds("{{% for i in range(50) %}}{0}{{% endfor %}}".format, inner),
        st.builds("{{% for x in {0} if {1} %}}{2}{{% endfor %}}".format, expressions, expressions, inner),
        st.builds("{{% if {0} %}}{1}{{% endif %}}".format, expressions, inner),
        st.builds("{{% filter upper %}}{0}{{% endfilter %}}".format, inner),
        st.builds("{{% set b %}}{0}{{% endset %}}{{{{ b ~ b }}}}".format, inner),
        st.builds("{{% for x in l recursive %}}{0}{{{{ loop(l) }}}}{{% endfor %}}".format, inner),
    )


statements = st.recursive(
    st.one_of(
        expressions.map("{{{{ {0} }}}}".format),
        expressions.map("{{% set ns.s = {0} %}}".format),
        expressions.map("{{% set ns.l = {0} %}}".format),
        st.just("text"),
    ),
    _nested,
    max_leaves=8,
)
PRELUDE = (
    "{% set ns = namespace(s='ab', l=[1]) %}{% set s = 'ab' * 5000 %}{% set n = 99999 %}{% set l = ['a', ['b'], s] %}"
    "{% set d = {'k': l} %}{% macro m(x) %}{% if x is string %}{{ x ~ x }}{{ m(none) }}{% endif %}{% endmacro %}"
)


@given(statements, st.sampled_from(ENVIRONMENTS))
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_template_ends_with_a_text_or_a_known_error(text: str, environment: type[BoundedEnvironment]) -> None:
    messages = [{"role": "user", "content": "hello {0} %s"}, {"role": "assistant", "content": "x" * 100}]
    try:
        out = environment().from_string(PRELUDE + text).render(messages=messages)
    except (*TEMPLATE_ERRORS, TooSlow, SyntaxError):
        return
    assert len(out) <= SMALL.characters
    # begin() has reset what this render took; what it took was within the limits, or it would have ended above.
    assert budget.spent.made <= SMALL.made
