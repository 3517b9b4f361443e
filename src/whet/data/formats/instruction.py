"""An instruction and its answer in one prompt: Stanford Alpaca's form, in four styles, and its many relatives.

Each type is a line in a table below: which fields are the instruction, the input, the answer and the system text, in
which style they are written. The prompt and the answer are one text; the answer and the EOS after it are trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import ConfigError, Problem
from whet.core.nearest import suggestion
from whet.core.types import Document, Segment
from whet.data.formats.base import Row, optional_text, own, trains_on_inputs, type_name
from whet.data.templates.resolve import dataset_place
from whet.data.templates.traced import concat

#: Taori et al. 2023, Stanford Alpaca: the opening of a prompt with an input, and of one without.
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
)
CONCISE = "Below is an instruction that describes a task. Write a short response that appropriately completes it."


@dataclass(frozen=True, slots=True)
class Style:
    """How the parts of a prompt are written: text before and after each.

    Attributes:
        system: around the system text.
        instruction: around the instruction.
        input: around the input, which stands after the instruction; used only if there is one.
        answer: before the answer.
    """

    system: tuple[str, str]
    instruction: tuple[str, str]
    input: tuple[str, str]
    answer: str


STYLES: Mapping[str, Style] = {
    "instruct": Style(("", "\n\n"), ("### Instruction:\n", "\n\n"), ("### Input:\n", "\n\n"), "### Response:\n"),
    "chat": Style(("SYSTEM: ", "\n"), ("USER: ", "\n"), ("", "\n"), "ASSISTANT:"),
    "chatml": Style(
        ("<|im_start|>system\n", "<|im_end|>\n"),
        ("<|im_start|>user\n", ""),
        ("\n", ""),
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "phi": Style(("<|system|>\n", "<|end|>\n"), ("<|user|>\n", ""), ("\n", ""), "<|end|>\n<|assistant|>\n"),
    "orcamini": Style(("### System:\n", "\n\n"), ("### User:\n", "\n\n"), ("### Input:\n", "\n\n"), "### Response:\n"),
}


@dataclass(frozen=True, slots=True)
class Instruction:
    """Rows with an instruction and an answer.

    Attributes:
        style: a key of `STYLES`.
        instruction, input, answer: fields; ``input`` may be empty, null or missing, and None is no such field.
        system: field of the system text; it may be empty. None: ``opening`` says it.
        opening: system texts of prompts with and without an input.
        answer_prefix: put before the answer, and trained.
        train_prompt: train the prompt too.
    """

    style: str = "instruct"
    instruction: str = "instruction"
    input: str | None = "input"
    answer: str = "output"
    system: str | None = None
    opening: tuple[str, str] = (WITH_INPUT, WITHOUT_INPUT)
    answer_prefix: str = ""
    train_prompt: bool = False
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        has_input = self.input is not None and bool(optional_text(row, self.input))
        given = own(row, self.input) if has_input and self.input else ""
        if self.system is None:
            opening = self.opening[0 if given else 1]
        else:
            opening = own(row, self.system) if optional_text(row, self.system) else ""
        answer = concat((self.answer_prefix, own(row, self.answer)))
        prompt = prompt_text(self.style, opening, own(row, self.instruction), given)
        return answered(prompt, answer, train_prompt=self.train_prompt)


def prompt_text(style: str, opening: str, instruction: str, given: str = "") -> str:
    """A prompt in one of the `STYLES`; the opening and the input may be empty."""
    form = STYLES[style]
    parts = [
        *((form.system[0], opening, form.system[1]) if opening else ()),
        *(form.instruction[0], instruction, form.instruction[1]),
        *((form.input[0], given, form.input[1]) if given else ()),
        form.answer,
    ]
    return concat(parts)


def answered(prompt: str, answer: str, *, train_prompt: bool) -> Document:
    """A prompt of raw text and its answer, which is trained with the EOS after it."""
    return Document((Segment(prompt, train_prompt), Segment(answer, train=True)), add_bos=True, add_eos=True)


def chosen_style(dataset: DatasetConfig, config: Config) -> str:
    """The style behind the type's name; "" where none is written.

    Raises:
        ConfigError: no such style.
    """
    name, _, style = type_name(dataset, config).partition(":")
    if style and style not in STYLES:
        where = config.where((*dataset_place(config, dataset), "type"))
        raise ConfigError(Problem(where, f"'{style}' is not a style of '{name}'", suggestion(style, STYLES), "type"))
    return style


_UNPROMPTED = ("", "")
_OPEN_ORCA = Instruction("chat", "question", None, "response", "system_prompt")

#: Every type, as its options.
TYPES: Mapping[str, Instruction] = {
    "alpaca": Instruction(),
    "alpaca_chat.load": Instruction("chat"),
    "alpaca_chat.load_concise": Instruction("chat", opening=(CONCISE, CONCISE)),
    "alpaca_chat.load_qa": Instruction("chat", "question", None, "answer"),
    "alpaca_chat.load_camel_ai": Instruction("chat", "message_1", None, "message_2"),
    "alpaca_chat.load_no_prompt": Instruction("chat", opening=_UNPROMPTED),
    "alpaca_instruct.load": Instruction("instruct"),
    "alpaca_instruct.load_no_prompt": Instruction("instruct", opening=_UNPROMPTED),
    "alpaca_w_system.load": Instruction("chat", system="system"),
    "alpaca_w_system.load_chat": Instruction("chat", system="system"),
    "alpaca_w_system.load_instruct": Instruction("instruct", system="system"),
    "alpaca_w_system.load_open_orca": _OPEN_ORCA,
    "alpaca_w_system.load_open_orca_chatml": replace(_OPEN_ORCA, style="chatml"),
    "gpteacher": Instruction(answer="response"),
    "oasst": Instruction(instruction="INSTRUCTION", input=None, answer="RESPONSE"),
    "jeopardy": Instruction(instruction="question", input="category", answer="answer", answer_prefix="what is "),
    "summarizetldr": Instruction(instruction="article", input=None, answer="summary"),
    "orcamini": Instruction("orcamini", "instruction", None, "output", "system"),
}


def alpaca(dataset: DatasetConfig, config: Config) -> Instruction:
    """``{instruction, input?, output}``, whatever the type says."""
    return replace(TYPES["alpaca"], train_prompt=trains_on_inputs(dataset, config))


def instruction(dataset: DatasetConfig, config: Config) -> Instruction:
    """The format of ``type: name`` or ``type: name:style``.

    Raises:
        ConfigError: no such style.
    """
    name = type_name(dataset, config).partition(":")[0]
    format_ = TYPES[name if name in TYPES else f"{name}.load"]
    style = chosen_style(dataset, config)
    if not style and name.startswith("alpaca_chat") and dataset.conversation:
        style = dataset.conversation
        if style not in STYLES:
            where = config.where((*dataset_place(config, dataset), "conversation"))
            raise ConfigError(Problem(where, f"'{style}' is not a style of '{name}'", suggestion(style, STYLES)))
    return replace(format_, style=style or format_.style, train_prompt=trains_on_inputs(dataset, config))
