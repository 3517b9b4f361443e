"""A format of the user's own: ``type: my_formats.py:my_row`` or ``type: my_package.module.my_row``.

    def my_row(row: dict) -> dict | None: ...

What the function gives is read by the format that its keys say (``messages``, ``text``, ``chosen`` ...); None leaves
the row out. Functions that Axolotl would take are told by the name of their first parameter: ``tokenizer`` (gives an
object with ``tokenize_prompt``) and ``cfg`` (gives a transformation of a row, whose texts hold their markup already).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from inspect import Parameter, signature
from typing import Any, get_args

from pydantic import BaseModel

from whet.config.config import Config
from whet.config.schema import fields
from whet.config.schema.data import DatasetConfig
from whet.core.errors import ConfigError, Problem, RowError, RowLeftOut
from whet.core.types import Conversation, Preference, Prompt, Sample, Several, Unpaired
from whet.data.formats.base import CONFIGURED, Format, Row
from whet.data.formats.code import Code, load_code
from whet.data.templates.resolve import dataset_place

_SAMPLES = get_args(Sample)

ReadRow = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class OwnCode:
    """Rows that a function of the user's makes.

    Attributes:
        code: the function, and a hash of its source.
        read_as: key of what the function gives -> the format that reads it, the first that is there; "" for the rest.
        raw: as ``read_as``, for texts that hold their markup already.
        config, dataset: handed to functions made for Axolotl.
        template: as in `Format`; a function says that it needs none by an attribute ``template = None``.
        made_for: "tokenizer" or "cfg", the first parameter of a function made for Axolotl; None for one of whet's.
        make_row: what the function has made to be called for each row; None where it is called itself.
        is_raw: ``make_row`` gives texts that hold their markup already.
    """

    code: Code
    read_as: Mapping[str, Format]
    raw: Mapping[str, Format]
    config: Config
    dataset: DatasetConfig
    template: str | None = CONFIGURED
    cuts_long_rows: bool = False
    made_for: str | None = None
    make_row: ReadRow | None = field(default=None, compare=False)
    is_raw: bool = False

    def identity(self) -> str:
        """Hash of the source of the user's function and of the modules beside it that it imports."""
        return self.code.identity

    def bound(self, tokenizer: Any) -> OwnCode:
        """With the function that makes rows, which may want the tokenizer; without a template where there is none."""
        if self.made_for is None:
            template = self.config.template
            given = self.dataset.chat_template or self.dataset.chat_template_jinja
            has_template = given or template.chat_template or template.chat_template_jinja or tokenizer.chat_template
            return replace(self, template=self.template if has_template else None)
        try:
            make = _strategy(self, tokenizer) if self.made_for == "tokenizer" else _transform(self, tokenizer)
        except Exception as error:  # the user's code may raise anything
            raise ConfigError(self._problem(f"{self.code.shown} failed: {_told(error, self.code)}")) from error
        return replace(self, make_row=make, is_raw=self.made_for == "cfg", template=None)

    def read(self, row: Row) -> Sample:
        assert self.made_for is None or self.make_row is not None, "bound() comes before read()"
        function = self.make_row or self.code.function
        try:
            made = function(dict(row))
        except RowError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise RowError(f"error in {self.code.shown}", _told(error, self.code)) from error
        return self._sample(made)

    def _sample(self, made: Any) -> Sample:
        if made is None:
            raise RowLeftOut("left out by the user's own format", f"{self.code.shown} gave None")
        if isinstance(made, _SAMPLES):
            self._refuse_without_template(made)
            return made  # type: ignore[no-any-return]  # isinstance with a tuple of types
        if isinstance(made, Mapping):
            sample = self._format_of(made).read(made)
            self._refuse_without_template(sample)
            return sample
        if isinstance(made, list | tuple) and made:
            return Several(tuple(self._sample(one) for one in made))
        found = "an empty list" if isinstance(made, list | tuple) else f"a value of type {type(made).__name__}"
        raise RowError("wrong type", f"{self.code.shown} gave {found}, not a row")

    def _format_of(self, made: Mapping[str, Any]) -> Format:
        formats = self.raw if self.is_raw or self.template is None else self.read_as
        format_ = next((formats[key] for key in formats if key and made.get(key) is not None), formats.get(""))
        if format_ is None:
            keys = ", ".join(map(str, made)) or "no keys"
            raise RowError("unknown row", f"{self.code.shown} gave {keys}; known are {', '.join(formats)}")
        return format_

    def _refuse_without_template(self, sample: Sample) -> None:
        turns = isinstance(sample, Conversation | Preference | Unpaired) or (
            isinstance(sample, Prompt) and sample.text is None
        )
        if turns and self.template is None:
            raise RowError("no chat template", f"{self.code.shown} gave messages: set chat_template")

    def _problem(self, found: str) -> Problem:
        where = self.config.where((*dataset_place(self.config, self.dataset), "type"))
        return Problem(where, found, "correct the function", "type")


def _made_for(function: Callable[..., Any]) -> str | None:
    try:
        first = next(iter(signature(function).parameters), None)
    except (TypeError, ValueError):  # a callable written in C has no signature
        return None
    return first if first in ("tokenizer", "cfg") else None


def _strategy(format_: OwnCode, tokenizer: Any) -> ReadRow:
    """``load(tokenizer, cfg, ds_cfg)`` gives an object that tokenises rows, one at a time or a batch."""
    function = format_.code.function
    arguments = (tokenizer, *_options(format_))
    strategy = function(*arguments[: len(signature(function).parameters)])
    if not getattr(strategy, "supports_batched", False):
        return strategy.tokenize_prompt  # type: ignore[no-any-return]  # the user's object

    def rows(row: dict[str, Any]) -> list[dict[str, Any]]:
        columns = strategy.tokenize_prompt({key: [value] for key, value in row.items()})
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return rows


def _transform(format_: OwnCode, tokenizer: Any) -> ReadRow:
    """``fn(cfg)`` gives ``transform(row[, tokenizer])``, alone or with the columns to remove."""
    function, config = format_.code.function, format_.config
    parameters = signature(function).parameters
    place = dataset_place(config, format_.dataset)
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    options = {"dataset_idx": place[1]} if place and (takes_any or "dataset_idx" in parameters) else {}
    made = function(_options(format_)[0], **options)
    transform, mapped = made if isinstance(made, tuple) else (made, {})
    removed = mapped.get("remove_columns") or ()
    more = {"tokenizer": tokenizer} if "tokenizer" in signature(transform).parameters else {}

    def row_of(row: dict[str, Any]) -> dict[str, Any] | None:
        kept = {} if removed == "__all__" else {key: value for key, value in row.items() if key not in removed}
        new = transform(row, **more)
        return None if new is None else {**kept, **new}

    return row_of


class Settings(Mapping[str, Any]):
    """Options whose names are attributes and keys; one that is not there is None, as Axolotl's are.

    An option is looked up when it is asked for, so what a function reads is known, and what it does not read does not
    name the prepared set.
    """

    def __init__(self, names: Collection[str], value: Callable[[str], Any]) -> None:
        self._names, self._value = names, value

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        value = self._value(name)
        if isinstance(value, BaseModel):
            return Settings(type(value).model_fields, partial(getattr, value))
        return Settings(value, value.__getitem__) if isinstance(value, dict) else value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self.get(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _options(format_: OwnCode) -> tuple[Settings, Settings]:
    """Those of the config and of the dataset."""
    dataset = format_.dataset
    return Settings(fields(), format_.config.value), Settings(type(dataset).model_fields, partial(getattr, dataset))


def _told(error: Exception, code: Code) -> str:
    """The exception's type and text, and the line of the user's file where it arose."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(code.file)]
    return f"{type(error).__name__}: {error}" + (f" (line {lines[-1]})" if lines else "")


def own_code(
    dataset: DatasetConfig,
    config: Config,
    name: str,
    read_as: Mapping[str, Format],
    raw: Mapping[str, Format],
) -> OwnCode:
    """The format of a function of the user's own.

    Raises:
        ConfigError: the file, the module or the function is not there, or its file cannot be imported.
    """
    key = "type" if dataset.type == name else "input_transform"
    code = load_code(name, config.file, config.where((*dataset_place(config, dataset), key)), key)
    template = getattr(code.function, "template", CONFIGURED)
    return OwnCode(code, read_as, raw, config, dataset, template, made_for=_made_for(code.function))
