"""A YAML text as a tree of values that know where they stand.

The tree is composed by ruamel.yaml and typed by YAML 1.2's core rules. What the composer would let pass (a key
written twice, an anchor inside itself, a tag) is reported here, every case of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode
from ruamel.yaml.nodes import Node as YamlNode

from whet.config.origins import Origin
from whet.config.scalars import Scalar, resolve_scalar
from whet.core.disk import read_small
from whet.core.errors import ConfigError, Problem
from whet.core.nearest import nearest

MOST_BYTES = 4_000_000
"""Of a file: a config with the texts of several chat templates in it has less than a tenth."""

MOST_VALUES = 50_000
"""Of a file, with its anchors written out: a list of lists of lists of the same ten is a thousand, and so on."""

_CORE_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge", "value")
}


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the tree.

    Attributes:
        value: a scalar, a tuple of nodes, or a mapping from the text of a key to its node.
        origin: where it was written; for an entry of a mapping that is the place of its key.
        plain: the source text of an unquoted scalar, whose type the key decides; None otherwise.
        key: the key as YAML types it (0 is a number), for an entry of a mapping.
    """

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    origin: Origin
    plain: str | None = None
    key: Scalar = None

    @property
    def entries(self) -> Mapping[str, Node] | None:
        return self.value if isinstance(self.value, Mapping) else None

    @property
    def items(self) -> tuple[Node, ...] | None:
        return self.value if isinstance(self.value, tuple) else None

    def raw(self) -> Any:
        """The value as plain Python, unquoted scalars typed by YAML alone."""
        if isinstance(self.value, Mapping):
            return {node.key if node.key is not None else name: node.raw() for name, node in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.raw() for node in self.value]
        return self.value


def read_yaml(path: Path, name: str) -> tuple[Node, list[Problem]]:
    """Read a file into a tree whose root is a mapping, and what is wrong with it.

    Args:
        path: the file.
        name: how the file is called in positions.

    Returns:
        The tree, and problems that leave it readable: keys written twice, tags, keys that are no words.

    Raises:
        ConfigError: no such file, not UTF-8, not YAML, empty, or not a mapping.
    """
    try:
        text = read_small(path, MOST_BYTES).decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(Problem(name, "there is no such file", _files_nearby(path))) from None
    except IsADirectoryError:
        raise ConfigError(Problem(name, "this is a folder", "name a YAML file in it")) from None
    except OSError as error:
        raise ConfigError(
            Problem(name, f"the file cannot be read: {error.strerror}", "check path, permissions and size")
        ) from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(
            Problem(f"{name}:{line}", f"byte {error.object[error.start]:#04x} is not UTF-8", "save the file as UTF-8")
        ) from None
    return parse_yaml(text, name)


def parse_yaml(text: str, name: str) -> tuple[Node, list[Problem]]:
    """Read a text into a tree whose root is a mapping; returns and raises as `read_yaml` does."""
    composed = _compose(text, name)
    if composed is None:
        raise ConfigError(Problem(name, "the file is empty", "write at least base_model, datasets and learning_rate"))
    builder = _Builder(name)
    try:
        root = builder.build(composed)
    except _TooManyValues as many:
        found = f"with its anchors written out, the file has more than {MOST_VALUES:,} values"
        raise ConfigError(Problem(many.where, found, "write fewer `*names`")) from None
    if root.entries is None:
        raise ConfigError(
            Problem(
                root.origin.where, f"the file holds {_kind(root)}, not keys with values", "write `key: value` lines"
            )
        )
    return root, builder.problems


def parse_flow(text: str, origin: Origin) -> Node | None:
    """Read the value of an option or variable that is written as [..] or {..}; None when it is not YAML."""
    try:
        composed = _yaml().compose(text)
    except (YAMLError, RecursionError, LookupError, ValueError, TypeError, AttributeError):
        return None
    builder = _Builder("", origin)
    try:
        node = builder.build(composed)
    except _TooManyValues:
        return None
    return None if builder.problems else node


def _yaml() -> YAML:
    return YAML(typ="safe", pure=True)


def _compose(text: str, name: str) -> YamlNode | None:
    try:
        node: YamlNode | None = _yaml().compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}:{mark.column + 1}" if mark else name
        raise ConfigError(
            Problem(where, f"this is not YAML: {error.problem or error.context}", _syntax_advice(str(error.problem)))
        ) from None
    except YAMLError as error:
        raise ConfigError(Problem(name, f"this is not YAML: {error}", "remove the characters it names")) from None
    except RecursionError:
        raise ConfigError(Problem(name, "brackets are nested hundreds deep", "close them")) from None
    except (LookupError, ValueError, TypeError, AttributeError) as error:
        # ruamel.yaml 0.19 fails so at directives (`%YAML 9.9`) and at some escapes that name no character.
        found = f"this is no YAML that can be read ({type(error).__name__}: {str(error)[:100]})"
        raise ConfigError(Problem(name, found, "remove lines that begin with %, and odd escapes")) from None
    return node


def _syntax_advice(problem: str) -> str:
    if "\\t" in problem:
        return "indent with spaces, not with tabs"
    if "mapping values are not allowed" in problem:
        return "put text that holds ': ' in quotes, and check the indentation"
    if "expected a single document" in problem or "but found another document" in problem:
        return "keep one document: remove what follows '---'"
    return "check indentation, quotes and brackets here and on the line before"


def _files_nearby(path: Path) -> str:
    folder = path.parent
    if path.parts[:1] in (("http:",), ("https:",)):
        return "download it first; a config is read from this machine alone"
    if not folder.is_dir():
        return f"the folder {folder} does not exist either; check the path"
    found = (entry.name for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    files = sorted(name for name in found if not name.startswith("."))
    close = nearest(path.name, files)
    if close:
        return f"did you mean {folder / close}?"
    return f"the YAML files in {folder} are: {', '.join(files)}" if files else f"there is no YAML file in {folder}"


def _kind(node: Node) -> str:
    if node.entries is not None:
        return "a mapping"
    return "a list" if node.items is not None else f"the single value {node.value!r}"


class _TooManyValues(Exception):
    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where


class _Builder:
    """Turns composed YAML into our tree, collecting what is wrong with it."""

    def __init__(self, name: str, origin: Origin | None = None) -> None:
        self.name = name
        self.problems: list[Problem] = []
        self._fixed_origin = origin
        self._open: list[YamlNode] = []
        self._built = 0

    def build(self, node: YamlNode) -> Node:
        self._built += 1
        if self._built > MOST_VALUES:
            raise _TooManyValues(self._origin(node).where)
        if any(node is outer for outer in self._open):
            self._report(node, "an anchor is used inside itself", "write the value out")
            return Node(None, self._origin(node))
        self._open.append(node)
        try:
            return self._dispatch(node)
        finally:
            self._open.pop()

    def _dispatch(self, node: YamlNode) -> Node:
        origin = self._origin(node)
        if str(node.tag) not in _CORE_TAGS:
            self._report(node, f"the tag {node.tag} means nothing here", "remove it")
            return Node(None, origin)
        if isinstance(node, ScalarNode):
            if node.style in ("'", '"', "|", ">"):
                return Node(node.value, origin)
            return Node(resolve_scalar(node.value), origin, plain=node.value)
        if isinstance(node, SequenceNode):
            return Node(tuple(self.build(item) for item in node.value), origin)
        assert isinstance(node, MappingNode)
        return Node(self._entries(node), origin)

    def _entries(self, node: MappingNode) -> dict[str, Node]:
        merged: dict[str, Node] = {}
        entries: dict[str, Node] = {}
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                self._report(key, "a key is a list or a mapping", "write a word as the key")
                continue
            if key.value == "<<" and key.style is None:
                merged = {**self._merged(value), **merged}
                continue
            text = key.value
            if text in lines:
                self._report(
                    key, f"'{text}' is written twice, first on line {lines[text]}", "keep one of the two lines", text
                )
                continue
            lines[text] = key.start_mark.line + 1
            typed = text if key.style in ("'", '"') else resolve_scalar(text)
            entries[text] = replace(self.build(value), origin=self._origin(key), key=typed)
        return {**merged, **entries}

    def _merged(self, value: YamlNode) -> dict[str, Node]:
        """The entries that `<<:` brings in; of several mappings the earlier one wins."""
        sources = value.value if isinstance(value, SequenceNode) else [value]
        found: dict[str, Node] = {}
        for source in sources:
            if not isinstance(source, MappingNode):
                self._report(source, "'<<' names something that is not a mapping", "name an anchor of a mapping")
                continue
            found = {**(self.build(source).entries or {}), **found}
        return found

    def _origin(self, node: YamlNode) -> Origin:
        if self._fixed_origin is not None:
            return self._fixed_origin
        mark = node.start_mark
        return Origin("file", f"{self.name}:{mark.line + 1}:{mark.column + 1}")

    def _report(self, node: YamlNode, found: str, fix: str, key: str | None = None) -> None:
        self.problems.append(Problem(self._origin(node).where, found, fix, key))
