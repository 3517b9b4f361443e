"""Instructions whose prompt or answer is put together from several columns: questions with a context or with choices,
answers with a reflection, and answers that are judged and revised.

Each type is a line of the table below. The words around the columns are whet's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from whet.config.config import Config
from whet.config.schema.data import DatasetConfig
from whet.core.errors import RowError
from whet.core.types import Document
from whet.data.formats.base import Row, kind, listed, own, required, text, trains_on_inputs, type_name
from whet.data.formats.instruction import WITH_INPUT, WITHOUT_INPUT, answered, chosen_style, prompt_text
from whet.data.templates.traced import Source, concat, trace

NO_ANSWER = "The context does not answer the question."
FROM_CONTEXT = "Answer the question. Everything that is needed stands in the text before it."
IF_IN_CONTEXT = "Answer the question from the context. If the context does not answer it, say so."
EXPLAIN_CHOICE = "Pick the choice that answers the question best, and explain why."
CONCISE_CHOICE = "Pick the choice that answers the question best. Answer briefly."
BE_CREATIVE = "Answer the question in depth, accurately and with imagination."
BE_CRITICAL = "Judge the response to the question: score it and name everything that could be better."
REVISE = "Write the response to the question again, better, as its critique asks."


@dataclass(frozen=True, slots=True)
class Composed:
    """Rows of several columns.

    Attributes:
        parts: a row -> the instruction, the input (may be empty) and the answer.
        opening: text before prompts with and without an input.
        style: a key of `instruction.STYLES`.
        train_prompt: train the prompt too.
    """

    parts: Callable[[Row], tuple[str, str, str]]
    opening: tuple[str, str]
    style: str = "instruct"
    train_prompt: bool = False
    template: str | None = None
    cuts_long_rows: bool = False

    def read(self, row: Row) -> Document:
        instruction, given, answer = self.parts(row)
        prompt = prompt_text(self.style, self.opening[0 if given else 1], instruction, given)
        return answered(prompt, answer, train_prompt=self.train_prompt)


def _context_then_question(row: Row) -> tuple[str, str, str]:
    return concat((own(row, "article"), "\n\n", own(row, "question"))), "", own(row, "answer")


def _named_context(row: Row) -> tuple[str, str, str]:
    return _context(row), "", own(row, "answer")


def _context_without_answer(row: Row) -> tuple[str, str, str]:
    return _context(row), "", NO_ANSWER


def _context(row: Row) -> str:
    return concat(("Context: ", own(row, "context"), "\nQuestion: ", own(row, "question")))


def _choices(row: Row) -> tuple[str, str, str]:
    lines: list[str] = []
    for number, choice in enumerate(listed(row, "choices")):
        if not isinstance(choice, str):
            raise RowError("wrong type", f"choice {number} is {kind(choice)}, not a string")
        lines += ('\n- "', trace(choice, Source(0, "choices")), '"')
    return concat((own(row, "question"), *lines)), "", own(row, "solution", "explanation")


def _reflection(row: Row) -> tuple[str, str, str]:
    given = own(row, "input") if row.get("input") else ""
    parts = (own(row, "output"), "\n\n### Reflection:\n", own(row, "reflection"))
    return own(row, "instruction"), given, concat((*parts, "\n\n### Corrected:\n", own(row, "corrected")))


def _answer(row: Row) -> tuple[str, str, str]:
    return own(row, "instruction"), "", own(row, "revision", "answer")


def _critique(row: Row) -> tuple[str, str, str]:
    return _question_and_response(row), "", _judgement(row)


def _revision(row: Row) -> tuple[str, str, str]:
    return concat((_question_and_response(row), "\nCritique:\n", _judgement(row))), "", own(row, "revision")


def _question_and_response(row: Row) -> str:
    return concat(("Question: ", own(row, "instruction"), "\nResponse: ", own(row, "answer")))


def _judgement(row: Row) -> str:
    """The columns ``scores`` and ``critiques``, each an object or a text, as lines of YAML."""
    lines = []
    for name in ("scores", "critiques"):
        value = required(row, name)
        if isinstance(value, Mapping):
            lines += [f"{key}: {item}" for key, item in value.items() if item is not None]
        else:
            lines.append(text(row, name).strip())
    marked: str = trace("\n".join(lines), Source(0, "critiques"))
    return marked


def _asks(sentence: str) -> tuple[str, str]:
    return sentence, sentence


#: Every type, as its options.
TYPES: Mapping[str, Composed] = {
    "context_qa.load": Composed(_context_then_question, _asks(FROM_CONTEXT)),
    "context_qa.load_v2": Composed(_named_context, _asks(IF_IN_CONTEXT)),
    "context_qa.load_404": Composed(_context_without_answer, _asks(IF_IN_CONTEXT)),
    "explainchoice": Composed(_choices, _asks(EXPLAIN_CHOICE)),
    "concisechoice": Composed(_choices, _asks(CONCISE_CHOICE)),
    "reflection": Composed(_reflection, (WITH_INPUT, WITHOUT_INPUT)),
    "creative_acr.load_answer": Composed(_answer, _asks(BE_CREATIVE)),
    "creative_acr.load_critique": Composed(_critique, _asks(BE_CRITICAL)),
    "creative_acr.load_revise": Composed(_revision, _asks(REVISE)),
}

_DEFAULTS = {"context_qa": "context_qa.load", "creative_acr": "creative_acr.load_answer"}


def composed(dataset: DatasetConfig, config: Config) -> Composed:
    """The format of ``type: name`` or, where styles are known, ``type: name:style``.

    Raises:
        ConfigError: no such style.
    """
    name = type_name(dataset, config).partition(":")[0]
    format_ = TYPES[_DEFAULTS.get(name, name)]
    style = chosen_style(dataset, config) or format_.style
    return replace(format_, style=style, train_prompt=trains_on_inputs(dataset, config))
