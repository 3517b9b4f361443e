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
from whet.data.formats.base import Row, optional_text, text
from whet.data.templates.resolve import dataset_place
from whet.data.templates.traced import Source, Traced, trace

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
        style = STYLES[self.style]
        given = optional_text(row, self.input) if self.input else ""
        opening = self.opening[0 if given else 1] if self.system is None else optional_text(row, self.system)
        parts = [
            _around(style.system, self._own(opening, self.system)) if opening else "",
            _around(style.instruction, self._own(text(row, self.instruction), self.instruction)),
            _around(style.input, self._own(given, self.input)) if given else "",
            style.answer,
        ]
        prompt: str = Traced("").join(parts)
        answer = self._own(self.answer_prefix + text(row, self.answer), self.answer)
        segments = (Segment(prompt, self.train_prompt), Segment(answer, train=True))
        return Document(segments, add_bos=True, add_eos=True)

    @staticmethod
    def _own(value: str, field: str | None) -> str:
        """A text of the row, marked as such: it may hold no control token."""
        return trace(value, Source(0, field)) if field is not None else value


def _around(ends: tuple[str, str], content: str) -> str:
    return ends[0] + content + ends[1]


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


def instruction(dataset: DatasetConfig, config: Config) -> Instruction:
    """The format of ``type: name`` or ``type: name:style``.

    Raises:
        ConfigError: no such style.
    """
    name, _, style = (dataset.type or "").partition(":")
    format_ = TYPES[name if name in TYPES else f"{name}.load"]
    if not style and name.startswith("alpaca_chat"):
        style = dataset.conversation or ""
    if style and style not in STYLES:
        where = config.where((*dataset_place(config, dataset), "type"))
        raise ConfigError(Problem(where, f"'{style}' is not a style of '{name}'", suggestion(style, STYLES), "type"))
    on_inputs = config.data.train_on_inputs if dataset.train_on_inputs is None else dataset.train_on_inputs
    return replace(format_, style=style or format_.style, train_prompt=on_inputs)
