"""A prompt of the user's own: ``type:`` as a mapping of formats and column names."""

from __future__ import annotations

from dataclasses import dataclass

from whet.config.config import Config
from whet.config.placeholders import Pieces, WrongFormat, pieces
from whet.config.schema.data import DatasetConfig, PromptFormat
from whet.config.tasks import task_of
from whet.core.errors import ConfigError, Problem
from whet.core.types import Document, PreferenceText, UnpairedText
from whet.data.formats.base import Format, Row, flag, optional_text, own, trains_on_inputs
from whet.data.formats.instruction import answered
from whet.data.templates.resolve import dataset_place
from whet.data.templates.traced import concat


@dataclass(frozen=True, slots=True)
class OwnInstruction:
    """An instruction, perhaps an input, and the answer; the answer and the EOS after it are trained.

    Attributes:
        with_input, without_input: the prompt of rows that have an input and of those that have none.
        around_system: text around the system text, where there is one; it comes first.
        default_system: system text of rows without one; may be empty.
        instruction, input, answer, system: columns.
        train_prompt: train the prompt too.
    """

    with_input: Pieces
    without_input: Pieces
    around_system: Pieces
    default_system: str = ""
    instruction: str = "instruction"
    input: str = "input"
    answer: str = "output"
    system: str = "system"
    train_prompt: bool = False
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        has_input = bool(optional_text(row, self.input))
        form = self.with_input if has_input else self.without_input
        values = {
            "instruction": own(row, self.instruction) if "instruction" in form.names else "",
            "input": own(row, self.input) if has_input else "",
        }
        system = own(row, self.system) if optional_text(row, self.system) else self.default_system
        before = self.around_system.fill({"system": system}) if system else []
        return answered(concat([*before, *form.fill(values)]), own(row, self.answer), train_prompt=self.train_prompt)


@dataclass(frozen=True, slots=True)
class OwnPairs:
    """A prompt and two answers, as raw text."""

    prompt_format: Pieces
    chosen_format: Pieces
    rejected_format: Pieces
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"
    system: str = "system"
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> PreferenceText:
        return PreferenceText(
            prompt=_prompt(self.prompt_format, row, self.prompt, self.system),
            chosen=concat(self.chosen_format.fill({"chosen": own(row, self.chosen)})),
            rejected=concat(self.rejected_format.fill({"rejected": own(row, self.rejected)})),
        )


@dataclass(frozen=True, slots=True)
class OwnUnpaired:
    """A prompt, an answer and whether it is wanted, as raw text."""

    prompt_format: Pieces
    completion_format: Pieces
    prompt: str = "prompt"
    completion: str = "completion"
    label: str = "label"
    system: str = "system"
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> UnpairedText:
        return UnpairedText(
            prompt=_prompt(self.prompt_format, row, self.prompt, self.system),
            completion=concat(self.completion_format.fill({"completion": own(row, self.completion)})),
            label=flag(row, self.label),
        )


def _prompt(form: Pieces, row: Row, prompt: str, system: str) -> str:
    given = own(row, system) if "system" in form.names and optional_text(row, system) else ""
    return concat(form.fill({"prompt": own(row, prompt) if "prompt" in form.names else "", "system": given}))


def own_prompt(dataset: DatasetConfig, config: Config) -> Format:
    """The format of a ``type`` that is a mapping.

    Raises:
        ConfigError: a format has a place that is not filled here, or the method has no prompts of one's own.
    """
    given, task = dataset.type, task_of(config)
    assert isinstance(given, PromptFormat)
    place = (*dataset_place(config, dataset), "type")

    def form(key: str, default: str, *allowed: str) -> Pieces:
        text = getattr(given, key)
        try:
            return pieces(default if text is None else text, allowed)
        except WrongFormat as error:
            raise ConfigError(Problem(config.where((*place, key)), f"{key} {error.found}", error.fix, "type")) from None

    if task == "supervised":
        return OwnInstruction(
            with_input=form("format", "{instruction} {input} ", "instruction", "input"),
            without_input=form("no_input_format", "{instruction} ", "instruction"),
            around_system=form("system_format", "{system}", "system"),
            default_system=given.system_prompt or "",
            instruction=given.field_instruction or "instruction",
            input=given.field_input or "input",
            answer=given.field_output or "output",
            system=given.field_system or "system",
            train_prompt=trains_on_inputs(dataset, config),
        )
    if task in ("preference", "odds", "reward"):
        return OwnPairs(
            prompt_format=form("prompt_format", "{prompt}", "prompt", "system"),
            chosen_format=form("chosen_format", "{chosen}", "chosen"),
            rejected_format=form("rejected_format", "{rejected}", "rejected"),
            prompt=given.field_prompt or "prompt",
            chosen=given.field_chosen or "chosen",
            rejected=given.field_rejected or "rejected",
            system=given.field_system or "system",
        )
    if task == "unpaired":
        return OwnUnpaired(
            prompt_format=form("prompt_format", "{prompt}", "prompt", "system"),
            completion_format=form("completion_format", "{completion}", "completion"),
            prompt=given.field_prompt or "prompt",
            completion=given.field_completion or "completion",
            label=given.field_label or "label",
            system=given.field_system or "system",
        )
    found = "a mapping is no type of this method's rows"
    raise ConfigError(Problem(config.where(place), found, "write the name of a type", "type"))
