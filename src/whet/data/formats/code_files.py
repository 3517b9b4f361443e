"""The files that decide what a function of the user's own does.

These are found by reading the source, before and without running it: the file itself, every module of the user's own
that is imported anywhere in it (also inside functions, also by those modules), and what ``DEPENDS_ON`` names.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import all_suffixes
from pathlib import Path

from whet.core.errors import ConfigError, Problem

DEPENDS_ON = "DEPENDS_ON"
"""Name of the list, in a user's file, of other files that decide what it does; paths count from that file's folder."""


@dataclass(frozen=True, slots=True)
class Roots:
    """Where modules of the user's own are.

    Attributes:
        folders: that hold them.
        package: the name of a package, and the folder of packages it is installed in; None where there is none. Of such
            a folder only this package counts.
    """

    folders: Sequence[Path]
    package: tuple[str, Path] | None = None

    def files(self, module: str) -> set[Path]:
        """Files of a module and of the packages it is in; none where it is not the user's own."""
        parts = module.split(".")
        folders = dict.fromkeys([*self.folders, *_added_below(self.folders)])
        if self.package and self.package[0] == parts[0]:
            folders[self.package[1]] = None
        return {file for folder in folders for file in _module_files(folder, parts)}


def source_files(begin: Iterable[Path], roots: Roots) -> set[Path]:
    """The files that code in these ones is made of, and those that it says it depends on.

    Raises:
        ConfigError: a file that ``DEPENDS_ON`` names is not there.
    """
    found: set[Path] = set()
    waiting = [file.absolute() for file in begin]
    while waiting:
        file = waiting.pop()
        if file in found:
            continue
        found.add(file)
        tree = _parsed(file)
        if tree is not None:
            waiting += _imported(tree, file, roots)
            found |= _declared(tree, file)
    return found


def identity_of(files: Iterable[Path]) -> str:
    """Hash of the names and contents of files, wherever they stand."""
    digest = hashlib.blake2b(digest_size=16)
    for name, content in sorted((file.name, _hash(file)) for file in files):
        digest.update(f"{name}\0{content}\0".encode())
    return digest.hexdigest()


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parsed(file: Path) -> ast.Module | None:
    """The syntax of a file; None if it is no Python. What is wrong with it shows when it is imported."""
    if file.suffix != ".py":
        return None
    try:
        return ast.parse(file.read_bytes(), str(file))
    except (SyntaxError, ValueError):
        return None


def _imported(tree: ast.Module, file: Path, roots: Roots) -> Iterator[Path]:
    """Files of the user's own that are imported anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from roots.files(alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                name = f"{node.module}.{alias.name}" if node.module else alias.name
                if not node.level:
                    yield from roots.files(name)
                elif node.level <= len(file.parents):
                    yield from _module_files(file.parents[node.level - 1], name.split("."))
        elif isinstance(node, ast.Call) and (name := _called_import(node)):
            yield from roots.files(name)


def _called_import(node: ast.Call) -> str:
    """The module that ``import_module("it")`` or ``__import__("it")`` names; empty for any other call."""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if called not in ("import_module", "__import__") or not node.args:
        return ""
    name = getattr(node.args[0], "value", None)
    return name if isinstance(name, str) and not name.startswith(".") else ""


def _module_files(folder: Path, parts: Sequence[str]) -> list[Path]:
    """Files of the module ``parts`` in a folder, and of the packages on the way; the last part may be no module."""
    found: list[Path] = []
    for part in parts:
        names = [name for suffix in all_suffixes() for name in (f"{part}{suffix}", f"{part}/__init__{suffix}")]
        found += [folder / name for name in names if (folder / name).is_file()]
        folder = folder / part
    return found


def _added_below(folders: Sequence[Path]) -> list[Path]:
    """Folders below the user's that were added to ``sys.path``, those of Python and of installed packages aside."""
    installed = {Path(path) for path in sysconfig.get_paths().values()}
    added = [Path(entry) for entry in sys.path if entry]
    return [
        path
        for path in added
        if any(folder in path.parents for folder in folders)
        and not any(path == one or one in path.parents for one in installed)
        and not {"site-packages", "dist-packages"} & set(path.parts)
    ]


def _declared(tree: ast.Module, file: Path) -> set[Path]:
    """What ``DEPENDS_ON`` of a module names; of a folder, every file in it."""
    found: set[Path] = set()
    for node in tree.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign):
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if not any(getattr(target, "id", "") == DEPENDS_ON for target in targets):
            continue
        where = f"{file.name}:{node.lineno}"
        for name in _texts(node.value, where):
            path = file.parent / name
            if not path.exists():
                fix = f"correct the path; it counts from {file.parent}"
                raise ConfigError(Problem(where, f"{DEPENDS_ON}: there is no file '{name}'", fix))
            found |= {path} if path.is_file() else {each for each in path.rglob("*") if each.is_file()}
    return found


def _texts(node: ast.expr | None, where: str) -> list[str]:
    try:
        value = ast.literal_eval(node) if node is not None else None
    except ValueError:
        value = None
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return list(value)
    fix = 'write the paths themselves: DEPENDS_ON = ["names.txt"]'
    raise ConfigError(Problem(where, f"{DEPENDS_ON} is no list of texts", fix))
