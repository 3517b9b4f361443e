"""A chat template in the language of Ollama's templates, which are Go's text/template.

Jinja is a language and Go's templates are another, so no template is translated. What a chat template writes around the
texts of a conversation is learnt by rendering a few, said in Go, and held against the Jinja render of others, some
longer. A template that writes anything else (today's date, other words in the third turn) has no counterpart here.

Of Go's language only what is built into text/template is used, of Ollama's variables those it documents: Messages with
Role and Content, and System, in which it joins the system messages (https://docs.ollama.com/template).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages], str]

_MARKS = ("\x02whet-a\x03", "\x02whet-b\x03", "\x02whet-c\x03")
_SYSTEM_MARK = "\x02whet-s\x03"

_REFUSALS = (TemplateError, TypeError, ValueError)
"""What a template raises at messages that it has no words for."""


class NotInGo(Exception):
    """Why a chat template has no counterpart in Go."""


@dataclass(frozen=True)
class SystemPieces:
    """What is written around a system message.

    Attributes:
        first: before and behind it, where the first question is the last.
        later: before and behind it, where it stands before the last question of several (Mistral); None where it is
            before the first in every conversation.
        is_written_empty: an empty one is written too, and not passed over.
    """

    first: tuple[str, str]
    later: tuple[str, str] | None = None
    is_written_empty: bool = False


@dataclass(frozen=True)
class Pieces:
    """What a template writes around texts, where user and assistant speak in turn and the user last.

    Attributes:
        beginning: before the first user text, without a system message.
        user_to_assistant, assistant_to_user: between the texts of two turns.
        ending: behind the last user text, where the answer begins.
        system: None where the template takes no system message.
        differences: what it does that Go's template cannot, in words.
    """

    beginning: str
    user_to_assistant: str
    assistant_to_user: str
    ending: str
    system: SystemPieces | None = None
    differences: tuple[str, ...] = ()

    def write(self, messages: Messages) -> str:
        """The prompt for a conversation, as the Go template writes it."""
        turns = list(messages)
        begins, last_question = self.beginning, self.assistant_to_user
        if turns[0]["role"] == "system" and (system := self.system) is not None:
            content = turns.pop(0)["content"]
            if content or system.is_written_empty:
                if system.later is None or len(turns) == 1:
                    begins = content.join(system.first)
                else:
                    last_question = content.join(system.later)
        text = begins
        for left, turn in zip(range(len(turns), 0, -1), turns, strict=True):
            behind_user = self.ending if left == 1 else self.user_to_assistant
            behind_answer = ("", last_question)[left - 1] if left <= 2 else self.assistant_to_user
            text += turn["content"] + (behind_user if turn["role"] == "user" else behind_answer)
        return text

    def in_go(self) -> str:
        """The same in Go's template language."""
        ending, between = _literal(self.ending), _literal(self.user_to_assistant)
        behind_user = ending if ending == between else f"{{{{ if eq $left 1 }}}}{ending}{{{{ else }}}}{between}{_END}"
        return (
            f"{self._beginning_in_go()}"
            "{{ range $i, $_ := .Messages }}{{ $left := len (slice $.Messages $i) }}"
            f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{behind_user}'
            f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{self._behind_answer_in_go()}'
            f"{_END}{_END}"
        )

    def _beginning_in_go(self) -> str:
        beginning = _literal(self.beginning)
        if self.system is None:
            return beginning
        before, after = map(_literal, self.system.first)
        here = self._has_system("")
        if self.system.later is not None:
            here = f"and (eq (len .Messages) 2) {_nested(here)}"
        return f"{{{{ if {here} }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{beginning}{_END}"

    def _behind_answer_in_go(self) -> str:
        back = _literal(self.assistant_to_user)
        if self.system is None or self.system.later is None:
            return f"{{{{ if gt $left 1 }}}}{back}{_END}"
        before, after = map(_literal, self.system.later)
        with_system = f"{before}{{{{ $.System }}}}{after}"
        return (
            f"{{{{ if gt $left 2 }}}}{back}{{{{ else if eq $left 2 }}}}"
            f"{{{{ if {self._has_system('$')} }}}}{with_system}{{{{ else }}}}{back}{_END}{_END}"
        )

    def _has_system(self, root: str) -> str:
        """A condition: there is a system message. One that is empty is seen by its role alone."""
        assert self.system is not None
        if not self.system.is_written_empty:
            return f"{root}.System"
        return f'or {root}.System (eq (index {root}.Messages 0).Role "system")'


_END = "{{ end }}"

_TO_SAY = re.compile(r'\{\{+|\{$|"""+|"$|[^\n\t -~\w]')
"""Parts of a text that would be read as something else by Go (braces) or end the text in a Modelfile (quotes). Others
are left out when Ollama reads a Modelfile, where they cannot be seen: looked at one by one."""


def _literal(text: str) -> str:
    """Text that Go's templates write as it is, and that a Modelfile keeps as it is."""
    return _TO_SAY.sub(lambda found: found[0] if _can_stand(found[0]) else f'{{{{ "{_escaped(found[0])}" }}}}', text)


def _can_stand(text: str) -> bool:
    return is_kept(text) and not text.startswith(("{", '"'))


def is_kept(text: str) -> bool:
    """Whether Ollama, which leaves characters out of a Modelfile that nobody sees, takes the whole text from it."""
    return all(each.isprintable() or each in "\n\t" for each in text)


def _escaped(text: str) -> str:
    """As a constant in Go."""
    return "".join(each if " " <= each <= "~" and each not in '"\\' else f"\\U{ord(each):08x}" for each in text)


def _nested(condition: str) -> str:
    return f"({condition})" if " " in condition else condition


def learn(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any], *, adds_bos: bool) -> Pieces:
    """The pieces of a tokenizer's chat template, proved on other conversations than those they were learnt from.

    Args:
        kwargs: `chat_template_kwargs`.
        adds_bos: the program that runs the GGUF puts the BOS in front itself, so the template must not.

    Raises:
        NotInGo: it cannot be said so.
    """
    if not tokenizer.chat_template:
        raise NotInGo("the tokenizer has no chat template")
    if "strftime_now" in str(tokenizer.chat_template):
        raise NotInGo("the chat template writes today's date")

    def render(messages: Messages) -> str:
        text = str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **kwargs))
        bos = tokenizer.bos_token
        return text.removeprefix(bos) if adds_bos and bos else text

    a, b, c = _MARKS
    try:
        beginning, between, back, ending = _around(render(_chat(a, b, c)), (a, b, c))
        first, alone = _around(render(_chat(a)), (a,))
    except _REFUSALS as error:
        raise NotInGo(f"the chat template refuses a plain conversation ({error})") from error
    if (first, alone) != (beginning, ending):
        raise NotInGo("the chat template writes the first question of a conversation otherwise when others follow")
    system = _around_system(render, beginning)
    differences = _differences(render, system)
    if adds_bos and not _begins_with_bos(tokenizer, kwargs):
        differences.append(f"the GGUF has {tokenizer.bos_token} put in front, which was not there in training")
    pieces = Pieces(beginning, between, back, ending, system, tuple(differences))
    _prove(pieces, render)
    return pieces


def _begins_with_bos(tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> bool:
    text = tokenizer.apply_chat_template(_chat("x"), tokenize=False, **kwargs)
    return str(text).startswith(str(tokenizer.bos_token))


def _chat(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    turns = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *turns] if system is not None else turns


def _around(text: str, marks: Sequence[str]) -> list[str]:
    """What stands before, between and behind the marks."""
    pieces = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found or mark in text:
            raise NotInGo("the chat template does not write every text once, in the order of the turns")
        pieces.append(piece)
    return [*pieces, text]


def _around_system(render: Render, beginning: str) -> SystemPieces | None:
    a, b, c = _MARKS
    try:
        alone, several = render(_chat(a, system=_SYSTEM_MARK)), render(_chat(a, b, c, system=_SYSTEM_MARK))
        empty = render(_chat(a, system=""))
    except _REFUSALS:
        return None
    if _SYSTEM_MARK not in alone:
        return None
    before, after, _ = _around(alone, (_SYSTEM_MARK, a))
    later = None
    if several.find(_SYSTEM_MARK) > several.find(b):
        _, _, before_later, after_later, _ = _around(several, (a, b, _SYSTEM_MARK, c))
        later = (before_later, after_later)
    written_empty = empty.startswith(before + after + a)
    return SystemPieces((before, after), later, is_written_empty=written_empty and not empty.startswith(beginning + a))


def _differences(render: Render, system: SystemPieces | None) -> list[str]:
    """What a template does to texts themselves, which Go's language cannot."""
    a, b, _ = _MARKS
    found = []
    spaced = _chat(f" {a} ", f" {b} ", "Thanks!", system=None if system is None else " s ")
    if any(f" {mark} " not in render(spaced) for mark in (a, b)) or (system and " s " not in render(spaced)):
        found.append("in training, spaces at the ends of texts were taken off; Ollama leaves them")
    reasoned = f"<think>\n{a}\n</think>\n\n{b}"
    if reasoned not in render(_chat("Hello", reasoned, "Thanks!")):
        found.append("in training, the reasoning (<think>) of earlier answers was taken out; Ollama leaves it where a "
                     "client sends it back")  # fmt: skip
    return found


_WORDS = ("Hello", "{{ braces }} and\n\nlines", "Übung, 東京: 1 < 2?", "def f():\n    return 1", "Thanks!", "", '"{"')


def _prove(pieces: Pieces, render: Render) -> None:
    """Other texts, more turns, a system message before several: each as the Jinja template has it."""
    counts = (1, 3, 5, 7)
    probes = [_chat(*_WORDS[:count]) for count in counts] + [_chat("")]
    if pieces.system is not None:
        probes += [_chat(*_WORDS[:count], system=said) for count in counts for said in ("Be brief.", "")]
    for messages in probes:
        if pieces.write(messages) != render(messages):
            turns = f"{len([m for m in messages if m['role'] != 'system'])} turns"
            system = " and a system message" if messages[0]["role"] == "system" else ""
            raise NotInGo(f"the chat template writes {turns}{system} otherwise than turn by turn")
