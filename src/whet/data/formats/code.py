"""A function of the user's own, imported, with a hash of the source it comes from."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.config.user_code import code_folders, code_name, found_file
from whet.core.errors import ConfigError, Problem
from whet.core.nearest import nearest
from whet.data.formats.code_files import Roots, identity_of, source_files


@dataclass(frozen=True, slots=True)
class Code:
    """A function of the user's.

    Attributes:
        function: the function.
        shown: how it is called in messages.
        file: that it is written in; None where that is unknown.
        name, config_file: what `load_code` found it by; so it is found again in another process.
        identity: hash of the source of its module, of the user's own modules that it imports anywhere, and of the files
            that these say they depend on.
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
        ConfigError: it is not there, importing it fails, or a file that it says it depends on is not there.
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
        module = _imported(lambda: _module_of(file, Roots(folders)), name, where, key, folders)
        files = source_files([file], Roots(folders))
    else:
        module = _imported(lambda: _module_named(named.module, Roots(folders)), name, where, key, folders)
        files = _files_of(module, Roots(folders))
    function = getattr(module, named.function, None)
    if not callable(function):
        source = named.file or named.module
        callables = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        close = nearest(named.function, callables)
        fix = f"did you mean '{close}'?" if close else f"it has {', '.join(sorted(callables)) or 'no functions'}"
        raise ConfigError(Problem(where, f"there is no function '{named.function}' in {source}", fix, key))
    path = Path(module.__file__) if module.__file__ else None
    shown = f"{Path(named.file).name if named.file else named.module}:{named.function}"
    identity = identity_of(files)
    vars(module).setdefault(_IMPORTED_AS, identity)
    return Code(function, shown, path, identity, name, config_file)


def _imported(load: Callable[[], ModuleType], name: str, where: str, key: str, folders: list[Path]) -> ModuleType:
    sys.path += [str(folder) for folder in folders if str(folder) not in sys.path]
    try:
        return load()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # the user's code may raise anything, and a script may end itself
        lines = traceback.extract_tb(error.__traceback__)
        line = f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""
        found = f"importing '{name}' failed: {type(error).__name__}: {error}{line}"
        raise ConfigError(Problem(where, found, "correct the file, or install what it imports", key)) from error


def _module_of(file: Path, roots: Roots) -> ModuleType:
    """The module in a file, anew where it, or what it is made of, has changed since it was imported."""
    files = source_files([file], roots)
    prefix = f"whet_user_{hashlib.blake2b(str(file).encode(), digest_size=8).hexdigest()}_"
    name = prefix + identity_of(files)
    if name in sys.modules:
        return sys.modules[name]
    if older := [each for each in sys.modules if each.startswith(prefix)]:
        _forget(files, older)
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


def _module_named(name: str, roots: Roots) -> ModuleType:
    """As `_module_of`, of a module by its name."""
    known = sys.modules.get(name)
    if known is not None and _IMPORTED_AS in vars(known):
        files = _files_of(known, roots)
        if identity_of(files) != vars(known)[_IMPORTED_AS]:
            _forget(files, [name])
    return importlib.import_module(name)


_IMPORTED_AS = "__whet_identity__"
"""Name, in a module of the user's, of what its sources were when it was imported."""


def _forget(files: set[Path], names: list[str]) -> None:
    """Let modules be imported anew: those that are called so, and those in the files."""
    importlib.invalidate_caches()
    for name, module in list(sys.modules.items()):
        file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
        if name in names or (file and name != "__main__" and Path(file).absolute() in files):
            del sys.modules[name]


def _files_of(module: ModuleType, roots: Roots) -> set[Path]:
    """Files of a named module, of its packages and of what they are made of."""
    if not module.__file__:
        return set()
    file, parts = Path(module.__file__).absolute(), module.__name__.split(".")
    depth = len(parts) - (0 if file.stem == "__init__" else 1)
    within = Roots(roots.folders, (parts[0], file.parents[depth]))
    return source_files([file, *within.files(module.__name__)], within)
