"""A function of the user's own, imported, with a hash of the source it comes from."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.config.user_code import code_folders, code_name, found_file
from whet.core.errors import ConfigError, Problem
from whet.core.nearest import nearest


@dataclass(frozen=True, slots=True)
class Code:
    """A function of the user's.

    Attributes:
        function: the function.
        shown: how it is called in messages.
        file: that it is written in; None where that is unknown.
        name, config_file: what `load_code` found it by; so it is found again in another process.
        identity: hash of the source of its module, and of the modules from the same folder that it imports.
    """

    function: Callable[..., Any]
    shown: str
    file: Path | None
    identity: str
    name: str
    config_file: str

    def __reduce__(self) -> tuple[Any, tuple[str, ...]]:
        return load_code, (self.name, self.config_file, "", "type")


def load_code(name: str, config_file: str, where: str, key: str) -> Code:
    """Import the function that ``file.py:function`` or ``package.module.function`` names.

    The folders it is looked for in stay on ``sys.path``, behind everything else, for the function may import more when
    it is called.

    Raises:
        ConfigError: it is not there, or importing it fails.
    """
    named = code_name(name)
    if named is None or not named.function:
        raise ConfigError(Problem(where, f"'{name}' is no function", "write my_file.py:my_function", key))
    folders = code_folders(config_file)
    if named.file is not None:
        file = found_file(named.file, config_file)
        if file is None:
            fix = "paths count from the working folder, then from the YAML's"
            raise ConfigError(Problem(where, f"there is no file '{named.file}'", fix, key))
        folders.append(file.parent.absolute())
        module = _imported(lambda: _module_of(file), name, where, key, folders)
    else:
        module = _imported(lambda: importlib.import_module(named.module), name, where, key, folders)
    function = getattr(module, named.function, None)
    if not callable(function):
        source = named.file or named.module
        callables = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        close = nearest(named.function, callables)
        fix = f"did you mean '{close}'?" if close else f"it has {', '.join(sorted(callables)) or 'no functions'}"
        raise ConfigError(Problem(where, f"there is no function '{named.function}' in {source}", fix, key))
    path = Path(module.__file__) if module.__file__ else None
    shown = f"{Path(named.file).name if named.file else named.module}:{named.function}"
    return Code(function, shown, path, _hash(module), name, config_file)


def _imported(load: Callable[[], ModuleType], name: str, where: str, key: str, folders: list[Path]) -> ModuleType:
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        return load()
    except Exception as error:  # the user's code may raise anything
        lines = traceback.extract_tb(error.__traceback__)
        line = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
        found = f"importing '{name}' failed: {type(error).__name__}: {error}{line}"
        raise ConfigError(Problem(where, found, "correct the file, or install what it imports", key)) from error


def _module_of(file: Path) -> ModuleType:
    """The module in a file, anew where the file has changed since it was imported."""
    source = file.read_bytes()
    name = f"whet_user_{hashlib.blake2b(str(file).encode() + source, digest_size=8).hexdigest()}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _hash(module: ModuleType) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(_files(module)):
        source = file.read_bytes()
        digest.update(f"{file.name}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def _files(module: ModuleType) -> set[Path]:
    """The module's file and those below its folder that it imports from, directly or not."""
    if not module.__file__:
        return set()
    folder = Path(module.__file__).parent
    found: set[Path] = set()
    waiting = [module]
    while waiting:
        file = Path(waiting[-1].__file__ or "")
        reached = waiting.pop()
        if file in found or not file.is_file() or folder not in file.parents:
            continue
        found.add(file)
        waiting += _reached(reached)
    return found


def _reached(module: ModuleType) -> Iterator[ModuleType]:
    """Modules that are, or have defined, what a module's names stand for."""
    for value in list(vars(module).values()):
        other = value if isinstance(value, ModuleType) else sys.modules.get(getattr(value, "__module__", None) or "")
        if isinstance(other, ModuleType) and getattr(other, "__file__", None):
            yield other
