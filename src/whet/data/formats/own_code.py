"""A format of the user's own: ``type: my_formats.py:my_row`` or ``type: my_package.module.my_row``.

    def my_row(row: dict) -> dict | None: ...

What the function gives is read by the format that its keys say (``messages``, ``text``, ``chosen`` ...); None leaves
the row out. Functions that Axolotl would take are told by the name of their first parameter: ``tokenizer`` (gives an
object with ``tokenize_prompt``) and ``cfg`` (gives a transformation of a row, whose texts hold their markup already).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from inspect import Parameter, signature
from typing import Any, get_args

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import ConfigError, Problem, RowError, RowLeftOut, WhetError
from whet.core.types import Conversation, Preference, Prompt, Sample, Several, Unpaired
from whet.data.formats.base import CONFIGURED, Format, Row
from whet.data.formats.code import Code, load_code
from whet.data.formats.settings import Asked, Settings
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
        """That of the code, and the dataset's number where the function is given it."""
        return "".join([self.code.identity, *map(str, _number(self).values())])

    def bound(self, tokenizer: Any) -> OwnCode:
        """With the function that makes rows, which may want the tokenizer; without a template where there is none."""
        if self.made_for is None:
            template = self.config.template
            given = self.dataset.chat_template or self.dataset.chat_template_jinja
            has_template = given or template.chat_template or template.chat_template_jinja or tokenizer.chat_template
            return replace(self, template=self.template if has_template else None)
        asked = Asked(self._asks_late)
        made = _strategy if self.made_for == "tokenizer" else _transform
        try:
            make = made(self, tokenizer, asked)
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            raise ConfigError(self._problem(f"{self.code.shown} failed: {_told(error, self.code)}")) from error
        asked.close()
        return replace(self, make_row=make, is_raw=self.made_for == "cfg", template=None)

    def read(self, row: Row) -> Sample:
        assert self.made_for is None or self.make_row is not None, "bound() comes before read()"
        function = self.make_row or self.code.function
        try:
            made = function(dict(row))
        except (RowError, WhetError):
            raise
        except (Exception, SystemExit) as error:  # the user's code may raise anything
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
            samples = tuple(self._sample(one) for one in made)
            if any(isinstance(sample, Several) for sample in samples):
                raise RowError("wrong type", f"{self.code.shown} gave a list within a list, not a list of rows")
            return Several(samples)
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

    def _problem(self, found: str, fix: str = "correct the function") -> Problem:
        where = self.config.where((*dataset_place(self.config, self.dataset), "type"))
        return Problem(where, found, fix, "type")

    def _asks_late(self, option: str) -> Problem:
        found = (
            f"{self.code.shown} reads `{option}` while it reads rows, too late to name the prepared set by its value"
        )
        return self._problem(found, "read it outside the row function, and use the value there")


def _made_for(function: Callable[..., Any]) -> str | None:
    try:
        first = next(iter(signature(function).parameters), None)
    except (TypeError, ValueError):  # a callable written in C has no signature
        return None
    return first if first in ("tokenizer", "cfg") else None


def _strategy(format_: OwnCode, tokenizer: Any, asked: Asked) -> ReadRow:
    """``load(tokenizer, cfg, ds_cfg)`` gives an object that tokenises rows, one at a time or a batch."""
    function = format_.code.function
    arguments = (tokenizer, *_settings(format_, asked))
    strategy = function(*arguments[: len(signature(function).parameters)])
    if not getattr(strategy, "supports_batched", False):
        return strategy.tokenize_prompt  # type: ignore[no-any-return]  # the user's object

    def rows(row: dict[str, Any]) -> list[dict[str, Any]]:
        columns = strategy.tokenize_prompt({key: [value] for key, value in row.items()})
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    return rows


def _transform(format_: OwnCode, tokenizer: Any, asked: Asked) -> ReadRow:
    """``fn(cfg)`` gives ``transform(row[, tokenizer])``, alone or with the columns to remove."""
    function = format_.code.function
    made = function(_settings(format_, asked)[0], **_number(format_))
    transform, mapped = made if isinstance(made, tuple) else (made, {})
    removed = mapped.get("remove_columns") or ()
    more = {"tokenizer": tokenizer} if "tokenizer" in signature(transform).parameters else {}

    def row_of(row: dict[str, Any]) -> dict[str, Any] | None:
        kept = {} if removed == "__all__" else {key: value for key, value in row.items() if key not in removed}
        new = transform(row, **more)
        return None if new is None else {**kept, **new}

    return row_of


def _number(format_: OwnCode) -> dict[str, Any]:
    """The dataset's place among the datasets, for a function made for Axolotl that takes it."""
    if format_.made_for != "cfg":
        return {}
    parameters = signature(format_.code.function).parameters
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters.values())
    place = dataset_place(format_.config, format_.dataset)
    return {"dataset_idx": place[1]} if place and (takes_any or "dataset_idx" in parameters) else {}


def _settings(format_: OwnCode, asked: Asked) -> tuple[Settings, Settings]:
    """Those of the config and of the dataset."""
    place = dataset_place(format_.config, format_.dataset)
    name = f"{place[0]}[{place[1]}]" if place else "dataset"
    return Settings.of_config(format_.config, asked), Settings.of_block(format_.dataset, asked, name)


def _told(error: BaseException, code: Code) -> str:
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
