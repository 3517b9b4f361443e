"""An import that is put off tells no one anything that is not so, and is made up for when it is needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from whet.core.deferred import _FINDER, Deferral, deferred, is_loaded

LARGE = """
__version__ = "1.0"
class Tensor: pass
class Other: pass
def size(n): return n + 1
marked = []
def mark(function):
    marked.append(function)
    return function
"""

# What another library does at its top.
USER = """
import large_pkg
import large_pkg as alias
from large_pkg import Tensor, size
def is_tensor(value: Tensor | None) -> bool: return isinstance(value, (int, Tensor)) and not isinstance(value, int)
@large_pkg.mark
def marked(): return 7
"""

DEFERRAL = Deferral("large_pkg", "a test", names=("Tensor", "size", "inner.Deep"), marks=("mark",))


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A large package with a submodule, and a library that uses it."""
    (tmp_path / "large_pkg").mkdir()
    (tmp_path / "large_pkg" / "__init__.py").write_text(LARGE)
    (tmp_path / "large_pkg" / "inner.py").write_text("import large_pkg\nclass Deep(large_pkg.Tensor): pass\n")
    (tmp_path / "using_pkg.py").write_text(USER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("large_pkg", "large_pkg.inner", "using_pkg"):
        sys.modules.pop(name, None)
        _FINDER.waiting.pop(name, None)


def test_what_only_asks_for_classes_does_not_load_the_package() -> None:
    with deferred([DEFERRAL]):
        using = importlib.import_module("using_pkg")
    assert not using.is_tensor("no")
    assert not is_loaded("large_pkg")
    assert "large_pkg" not in sys.modules


def test_the_package_is_found_by_who_looks_for_it() -> None:
    with deferred([DEFERRAL]):
        spec = importlib.util.find_spec("large_pkg")
        assert spec is not None
        assert spec.origin is not None


def test_a_package_that_is_not_installed_is_still_missing() -> None:
    with deferred([Deferral("no_such_pkg", "a test")]), pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_pkg")


def test_once_it_is_loaded_no_module_holds_a_stand_in() -> None:
    with deferred([DEFERRAL]):
        using = importlib.import_module("using_pkg")
    large = importlib.import_module("large_pkg")
    assert using.Tensor is large.Tensor
    assert using.size is large.size
    assert using.alias is using.large_pkg is large
    assert using.is_tensor(large.Tensor())
    assert large.marked == [using.marked]


def test_what_is_used_is_loaded() -> None:
    with deferred([DEFERRAL]):
        using = importlib.import_module("using_pkg")
    assert using.size(1) == 2
    assert is_loaded("large_pkg")


def test_a_name_that_is_not_listed_loads_the_package_at_once() -> None:
    with deferred([DEFERRAL]):
        large = importlib.import_module("large_pkg")
        assert large.Other.__name__ == "Other"
        assert is_loaded("large_pkg")


def test_a_class_may_be_made_of_a_stand_in() -> None:
    with deferred([DEFERRAL]):
        using = importlib.import_module("using_pkg")

    class Mine(using.Tensor):  # type: ignore[name-defined,misc]
        pass

    assert Mine.__mro__[1] is importlib.import_module("large_pkg").Tensor


def test_a_submodule_brings_its_real_package() -> None:
    with deferred([DEFERRAL]):
        inner = importlib.import_module("large_pkg.inner")
    large = importlib.import_module("large_pkg")
    assert large.inner is inner
    assert issubclass(inner.Deep, large.Tensor)
    assert sys.modules["large_pkg.inner"] is inner


def test_parts_are_looked_up_without_loading() -> None:
    with deferred([DEFERRAL]):
        large = importlib.import_module("large_pkg")
        assert hasattr(large.inner, "Deep")
        assert not is_loaded("large_pkg")


def test_what_is_set_on_it_is_set_on_the_real_one() -> None:
    with deferred([DEFERRAL]):
        large = importlib.import_module("large_pkg")
        large.switch = True
    assert importlib.import_module("large_pkg").switch


def test_a_second_time_keeps_what_the_first_has_noted() -> None:
    with deferred([DEFERRAL]):
        using = importlib.import_module("using_pkg")
    with deferred([DEFERRAL]):
        pass
    assert importlib.import_module("large_pkg").marked == [using.marked]
