"""Types that are a function of the user's own: ``my_formats.py:my_row`` or ``my_package.module.my_row``.

Nothing is imported here; a config must be judged before anything runs.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass
from pathlib import Path

_FILE = re.compile(r"(?P<file>.+\.py)(?::(?P<function>\w+))?$")
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")


@dataclass(frozen=True, slots=True)
class CodeName:
    """Where a function is said to be.

    Attributes:
        file: of the function, as it was written; None where a module is named.
        module: the module; empty where a file is named.
        function: its name; empty where none was written.
    """

    file: str | None
    module: str
    function: str


def code_name(name: str) -> CodeName | None:
    """A name taken apart, or None where it can be no function.

    >>> code_name("rows/mine.py:row")
    CodeName(file='rows/mine.py', module='', function='row')
    >>> code_name("package.module.row")
    CodeName(file=None, module='package.module', function='row')
    >>> code_name("alpaca:chat")
    """
    if found := _FILE.match(name):
        return CodeName(found["file"], "", found["function"] or "")
    if _DOTTED.match(name):
        module, _, function = name.rpartition(".")
        return CodeName(None, module, function)
    return None


def code_folders(config_file: str) -> list[Path]:
    """Folders that a user's code is looked for in: the working folder, then the YAML's."""
    folders = [Path.cwd(), Path(config_file).parent.absolute()] if config_file else [Path.cwd()]
    return list(dict.fromkeys(folders))


def found_file(name: str, config_file: str) -> Path | None:
    """The file of a `CodeName`, where there is one."""
    places = [folder / Path(name).expanduser() for folder in code_folders(config_file)]
    return next((place for place in places if place.is_file()), None)


def is_importable(module: str, config_file: str) -> bool:
    """Whether there is a package or a module of this name: beside the config, or installed."""
    top = module.partition(".")[0]
    if any((folder / f"{top}.py").is_file() or (folder / top).is_dir() for folder in code_folders(config_file)):
        return True
    try:
        return top in sys.modules or importlib.util.find_spec(top) is not None
    except (ImportError, ValueError):
        return False
