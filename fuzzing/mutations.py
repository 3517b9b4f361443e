"""Changes that keep the shape of what is fuzzed, so that it comes past its first parser."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from typing import Any

Mutate = Callable[[bytes, int, int], bytes]
"""(bytes, most bytes of the result, seed) -> other bytes."""

HARD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 7, 1e-9, 0.5, -0.0, 1e308, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**30),
    *(float("nan"), float("inf"), "", " ", "\0", "\x1b[31m", "\ud800", "\u202e", "é", "a" * 300, "..", "../../x"),
    *("/etc/passwd", "/dev/null", "~", "a/b", "org/name", ".", "a\nb", "[red]x[/]", "<script>", "%s", "{0}", "{{ 7 }}"),
    *("model.safetensors", "config.json", "q_proj", ".*", "(a+)+$", "all-linear", "LORA", "llama", "hub", "7", "1e999"),
    *([], [[]], {}, {"": None}, [0], ["a"], [None], {"a": 1}, [1, 2, 3], ["q_proj", 7]),
)


def of_shape(shape: str) -> Mutate:
    """The mutation for a target's shape; most of its changes keep it, every fourth is one of bytes."""
    known = {
        "json": _json,
        "json lines": _json_line,
        "yaml": _line_of_yaml,
        "template": _template,
        "safetensors": _header,
    }
    change = known.get(shape)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if change is None or chance.random() < 0.25:
            return _bytes(data, most, chance)
        try:
            for _ in range(chance.choice((1, 1, 1, 2, 4))):
                data = change(data, chance)
        except (ValueError, RecursionError, struct.error):
            return _bytes(data, most, chance)
        return data[:most]

    return mutate


def _bytes(data: bytes, most: int, chance: random.Random) -> bytes:
    import atheris

    return bytes(atheris.Mutate(data, most)) if data else chance.randbytes(min(8, most))


def _json(data: bytes, chance: random.Random) -> bytes:
    return json.dumps(changed(json.loads(data), chance)).encode("utf-8", "surrogatepass")


def _json_line(data: bytes, chance: random.Random) -> bytes:
    lines = data.split(b"\n")
    at = chance.randrange(len(lines))
    if not lines[at].strip():
        lines[at] = chance.choice((b"{}", b"7", b"[]", b"{", *lines))
        return b"\n".join(lines)
    return b"\n".join([*lines[:at], _json(lines[at], chance), *lines[at + chance.choice((0, 1, 1, 1)) :]])


def _header(data: bytes, chance: random.Random) -> bytes:
    """The JSON at the beginning of safetensors, with the length before it mended as a rule."""
    (length,) = struct.unpack("<Q", data[:8])
    header = _json(data[8 : 8 + length], chance)
    told = len(header) if chance.random() < 0.9 else chance.choice((0, 1, 2**31, 2**63, len(header) - 1))
    return struct.pack("<Q", told) + header + data[8 + length :]


def changed(tree: Any, chance: random.Random) -> Any:
    """A tree of plain values with one place in it changed."""
    places = _places(tree)
    place = chance.choice(places)
    kind = chance.random()
    if kind < 0.45 or not place:
        new = chance.choice(HARD)
        if kind < 0.1:
            new = _nested(tree, chance)
        return _put(tree, place, new) if place or kind < 0.1 else _grown(tree, chance)
    if kind < 0.6:
        return _put(tree, place, _at(tree, chance.choice(places)))
    if kind < 0.75:
        return _without(tree, place)
    if kind < 0.9:
        return _put(tree, place, _near(_at(tree, place), chance))
    return _put(tree, place, _grown(_at(tree, place), chance))


def _nested(value: Any, chance: random.Random) -> Any:
    for _ in range(chance.choice((1, 5, 300))):
        value = [value] if chance.random() < 0.5 else {"a": value}
    return value


def _near(value: Any, chance: random.Random) -> Any:
    """A value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice((value + 1, value - 1, -value, value * 1000, value << 40, float(value), str(value)))
    if isinstance(value, str):
        cut = chance.randint(0, len(value))
        hard = chance.choice([each for each in HARD if isinstance(each, str)])
        return chance.choice((value[:cut], value[cut:], value[:cut] + hard + value[cut:], value * 2, [value]))
    return _grown(value, chance)


def _grown(value: Any, chance: random.Random) -> Any:
    if isinstance(value, list):
        return [*value, *value, chance.choice(HARD)] if chance.random() < 0.5 else [*value, chance.choice(HARD)]
    if isinstance(value, dict):
        key = chance.choice((*value, "", "a", "x/../y"))
        return {**value, str(key): chance.choice(HARD)}
    return [value, chance.choice(HARD)]


Place = tuple[Any, ...]


def _places(tree: Any, place: Place = (), deepest: int = 60) -> list[Place]:
    found: list[Place] = [place]
    if len(place) < deepest and isinstance(tree, dict | list):
        items = tree.items() if isinstance(tree, dict) else enumerate(tree)
        for key, value in items:
            found += _places(value, (*place, key), deepest)
    return found


def _at(tree: Any, place: Place) -> Any:
    for key in place:
        tree = tree[key]
    return tree


def _put(tree: Any, place: Place, value: Any) -> Any:
    if not place:
        return value
    copy = dict(tree) if isinstance(tree, dict) else list(tree)
    copy[place[0]] = _put(copy[place[0]], place[1:], value)
    return copy


def _without(tree: Any, place: Place) -> Any:
    *parents, last = place
    parent = _at(tree, tuple(parents))
    copy = dict(parent) if isinstance(parent, dict) else list(parent)
    del copy[last]
    return _put(tree, tuple(parents), copy)


_YAML = (
    "a: &a [*a]",
    "<<: *x",
    "? [1]",
    "---",
    "...",
    "%YAML 9.9",
    "'",
    "- x",
    "  x: 1",
    "!!python/object:x {}",
    "&a b",
)


def _line_of_yaml(data: bytes, chance: random.Random) -> bytes:
    lines = data.decode("utf-8", "replace").splitlines() or [""]
    at = chance.randrange(len(lines))
    line = lines[at]
    cut = chance.randint(0, len(line))
    key = line.partition(":")[0]
    hard = chance.choice(HARD)
    spelt = hard if isinstance(hard, str) else json.dumps(hard)
    new = chance.choice(
        [
            *(f"{key}: {spelt}", "", line * 2, line[:cut], f"  {line}", line.lstrip(), line[:cut] + spelt + line[cut:]),
            *(chance.choice(_YAML), chance.choice(lines), f"{key}: {chance.choice(lines).partition(':')[2]}"),
        ]
    )
    return "\n".join([*lines[:at], new, *lines[at + chance.choice((0, 1, 1)) :]]).encode("utf-8", "surrogatepass")


def _template(data: bytes, chance: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    cut = chance.randint(0, len(text))
    kind = chance.random()
    if kind < 0.5:
        new = "{{ " + expression(chance, 3) + " }}"
    elif kind < 0.8:
        new = statement(chance, 2)
    elif kind < 0.9:
        other = chance.randint(0, len(text))
        return (text[: min(cut, other)] + text[max(cut, other) :]).encode()
    else:
        new = text[cut : cut + 40]
    return (text[:cut] + new + text[cut:]).encode("utf-8", "surrogatepass")


_NAMES = ("messages", "tools", "bos_token", "x", "ns", "loop", "messages[0]", "messages[-1].content", "self", "cycler")
_FILTERS = (
    *(
        "length",
        "tojson",
        "trim",
        "upper",
        "title",
        "list",
        "join",
        "first",
        "last",
        "reverse",
        "sort",
        "string",
        "int",
    ),
    *("safe", "escape", "urlize", "striptags", "wordwrap", "center(99)", "indent(9)", "replace('a', 'bb')", "batch(2)"),
    *("map('string')", "map('upper')", "selectattr('role')", "rejectattr('x')", "groupby('role')", "items", "dictsort"),
    *("format(1)", "default('')", "slice(3)", "sum(start=[])", "unique", "xmlattr", "pprint", "truncate(9)", "float"),
    *("filesizeformat", "attr('content')", "attr('__class__')", "random", "min", "max", "abs", "round", "count", "e"),
)
_METHODS = (
    *("strip()", "split()", "split('a')", "replace('a', 'aa')", "join(['a', 'b'])", "format(1, x=2)", "upper()"),
    *("items()", "keys()", "values()", "get('x')", "center(99)", "zfill(99)", "splitlines()", "startswith('a')"),
    *("encode()", "__class__", "__init__.__globals__", "append(1)", "pop()", "update({})", "partition('a')", "title()"),
    *("translate({97: 'bb'})", "expandtabs(99)", "to_bytes(9, 'big')", "bit_length()", "format_map({})", "copy()"),
)
_CONSTANTS = (
    *("0", "1", "7", "-1", "10**9", "2**70", "1.5", "''", "'a'", "'%s'", "'%99d'", "'{:>99}'", "none", "true", "[]"),
    *("{}", "[1, 'a']", "(1,)", "{'a': 1}", "range(9)", "range(10**9)", "'a' * 99", "'a\tb\nc'", "'<b>'"),
)


def expression(chance: random.Random, depth: int) -> str:
    """A Jinja expression."""
    if depth == 0 or chance.random() < 0.15:
        return chance.choice(_NAMES if chance.random() < 0.5 else _CONSTANTS)

    def inner() -> str:
        return expression(chance, depth - 1)

    forms: tuple[Callable[[], str], ...] = (
        lambda: f"{inner()} | {chance.choice(_FILTERS)}",
        lambda: f"({inner()}).{chance.choice(_METHODS)}",
        lambda: (
            f"({inner()}) {chance.choice(('+', '*', '~', '%', '**', '//', '-', '/', 'in', '==', '<', 'and'))} {inner()}"
        ),
        lambda: f"({inner()})[{inner()}]",
        lambda: f"({inner()})[{inner()}:{inner()}:-1]",
        lambda: f"[{inner()}, {inner()}]",
        lambda: f"{{{inner()}: {inner()}}}",
        lambda: f"{inner()} if {inner()} else {inner()}",
        lambda: f"dict(a={inner()}, b={inner()})",
        lambda: f"namespace(a={inner()})",
        lambda: f"m({inner()})",
        lambda: f"raise_exception({inner()})",
        lambda: f"strftime_now({inner()})",
        lambda: f"{inner()} is {chance.choice(('string', 'mapping', 'iterable', 'defined', 'number', 'sequence'))}",
    )
    return chance.choice(forms)()


def statement(chance: random.Random, depth: int) -> str:
    """A Jinja statement with what is in it."""
    inside = statement(chance, depth - 1) if depth and chance.random() < 0.6 else "{{ " + expression(chance, 2) + " }}"
    value = expression(chance, 2)
    return chance.choice(
        (
            f"{{% for x in {value} %}}{inside}{{% endfor %}}",
            f"{{% for x in {value} if {expression(chance, 1)} recursive %}}{inside}{{{{ loop(x) }}}}{{% endfor %}}",
            f"{{% if {value} %}}{inside}{{% else %}}{inside}{{% endif %}}",
            f"{{% set x = {value} %}}{inside}",
            f"{{% set ns = namespace(a={value}) %}}{{% set ns.a = ns.a + {value} %}}{inside}",
            f"{{% macro m(x) %}}{inside}{{% endmacro %}}{{{{ m({value}) }}}}",
            f"{{% call m() %}}{inside}{{% endcall %}}",
            f"{{% filter {chance.choice(_FILTERS)} %}}{inside}{{% endfilter %}}",
            f"{{% generation %}}{inside}{{% endgeneration %}}",
            f"{{% set x %}}{inside}{{% endset %}}",
            f"{{%- block b %}}{inside}{{% endblock -%}}",
        )
    )
