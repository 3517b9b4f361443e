"""Imports of other libraries put off until what they bring is used.

A library may import a large optional package at its top for the sake of one ``isinstance`` in a function that this run
never calls. Within `deferred`, such an import binds stand-ins for names that are known to be harmless to put off; each
becomes the real thing when it is called, subclassed or looked into. It is what PEP 810 (``lazy import``) will do in the
language, for a list of modules.

Nothing is told that is not so: the package is still found by whoever looks for it (`importlib.util.find_spec`), no
answer of an availability check is changed, and a name that is not listed loads the package at once. The one answer a
stand-in gives by itself is that nothing is an instance of a class whose module has not been loaded, which is true.
After the context every import is as always, and once the real module is loaded no other module holds a stand-in.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from operator import attrgetter
from types import ModuleType
from typing import Any, Union


def is_loaded(name: str) -> bool:
    """Whether a module is there, and not in the middle of being loaded."""
    module = sys.modules.get(name)
    initializing = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return module is not None and not isinstance(module, _Deferred) and not initializing


@dataclass(frozen=True)
class Deferral:
    """A module whose import may be put off.

    Attributes:
        module: its full name.
        reason: who imports it at the top, and what for.
        names: classes and functions of it that are bound by such imports, dotted where they are looked up in a part.
        marks: decorators of it that note something about a function and return it; they are applied when it is loaded.
        instead: functions of it that have an equal that needs no loading.
    """

    module: str
    reason: str
    names: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    instead: Mapping[str, Callable[..., Any]] = field(default_factory=dict)


class StandIn:
    """Stands for a class or function of a module that is not loaded yet."""

    def __init__(self, module: str, name: str) -> None:
        self.__module__ = module
        self.__name__ = self.__qualname__ = name
        self._parts: dict[str, StandIn] = {}

    def _real(self) -> Any:
        return attrgetter(self.__qualname__)(_load(self.__module__))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __instancecheck__(self, instance: object) -> bool:
        return is_loaded(self.__module__) and isinstance(instance, self._real())

    def __subclasscheck__(self, subclass: type) -> bool:
        return is_loaded(self.__module__) and issubclass(subclass, self._real())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._real(),)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `inspect` and `functools` ask every object for these
            raise AttributeError(name)
        return self._parts[name] if name in self._parts else getattr(self._real(), name)

    def __or__(self, other: Any) -> Any:  # annotations
        return Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def __repr__(self) -> str:
        return f"<{self.__module__}.{self.__name__}, not loaded yet>"


class _Deferred(ModuleType):
    """In `sys.modules` in place of a module, while imports of it are put off."""

    def __init__(self, deferral: Deferral, spec: ModuleSpec) -> None:
        super().__init__(deferral.module)
        self.__spec__ = spec
        self.__path__: list[str] = []  # its submodules are found by `_Finder`
        for name in deferral.names:
            whole, _, part = name.partition(".")
            standing = self.__dict__.setdefault(whole, StandIn(deferral.module, whole))
            if part:
                standing._parts[part] = StandIn(deferral.module, name)
        self.__dict__.update({name: self._marking(name) for name in deferral.marks})
        self.__dict__.update(deferral.instead)
        self.__dict__["_marked"] = []

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            setattr(_load(self.__name__), name, value)

    def _marking(self, mark: str) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            self._marked.append((mark, function))
            return function

        return decorate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":  # `inspect` asks every loaded module for its file
            raise AttributeError(name)
        return getattr(_load(self.__name__), name)


class _Finder:
    """Loads a deferred module when one of its submodules is imported, and settles its stand-ins when it is loaded."""

    def __init__(self) -> None:
        self.waiting: dict[str, _Deferred] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        parent = name.rpartition(".")[0]
        if isinstance(sys.modules.get(parent), _Deferred):
            _load(parent)
            return importlib.util.spec_from_loader(name, _Loaded(importlib.import_module(name)))
        return self._settling(name, path) if name in self.waiting else None

    def _settling(self, name: str, path: Any) -> ModuleSpec | None:
        """The spec that others find, with a loader that replaces stand-ins when it is done."""
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, None) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            if (stub := self.waiting.pop(name, None)) is not None:
                _settle(stub, module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


class _Loaded(Loader):
    """A loader of what is loaded already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


_FINDER = _Finder()


@contextmanager
def deferred(deferrals: Iterable[Deferral]) -> Iterator[None]:
    """Within it, an import of a listed module binds stand-ins for the listed names.

    Modules that are loaded already, or whose package is not installed, are left alone.
    """
    listed = [deferral for deferral in deferrals if deferral.module not in sys.modules]
    for deferral in listed:
        name, package = deferral.module, deferral.module.partition(".")[0]
        if (spec := importlib.util.find_spec(package)) is not None:
            made = _Deferred(deferral, spec if name == package else ModuleSpec(name, None))
            sys.modules[name] = _FINDER.waiting.setdefault(name, made)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    try:
        yield
    finally:
        for deferral in listed:
            _withdraw(deferral.module)


def _withdraw(name: str) -> None:
    if isinstance(sys.modules.get(name), _Deferred):
        del sys.modules[name]


def _load(name: str) -> ModuleType:
    """The real module. The other deferred modules of its package are withdrawn: a package must not see stand-ins of
    itself."""
    package = name.partition(".")[0]
    for other in list(_FINDER.waiting):
        if other.partition(".")[0] == package:
            _withdraw(other)
    return importlib.import_module(name)


def _settle(stub: _Deferred, real: ModuleType) -> None:
    """Put the real things in place of a module's stand-ins, wherever a module has bound them."""
    standing = {id(value): value for value in vars(stub).values() if isinstance(value, StandIn)}
    for module in list(sys.modules.values()):
        if not isinstance(module, ModuleType) or isinstance(module, _Deferred):
            continue
        for name, value in list(vars(module).items()):
            if value is stub:
                setattr(module, name, real)
            elif id(value) in standing:
                setattr(module, name, getattr(real, value.__name__))
    for mark, function in stub._marked:
        getattr(real, mark)(function)
