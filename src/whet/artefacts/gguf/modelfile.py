"""Ollama's Modelfile: the file, the training template in Go's template language, stop tokens, sampling.

Jinja is a language and Go's templates are another, so no template is translated. What a chat template writes around the
texts of a conversation is learnt by rendering a few, said in Go, and held against the Jinja render of others, some
longer. A template that writes anything else (today's date, a system message in the last turn, reasoning that
disappears) is left out, and Ollama then takes the one that it finds in the GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import GenerationConfig, PreTrainedTokenizerBase

from whet.config import Config

Messages = Sequence[Mapping[str, str]]

_MARKS = ("\x02whet-a\x03", "\x02whet-b\x03", "\x02whet-c\x03")

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""transformers' name -> Ollama's."""


class NotInGo(Exception):
    """Why a chat template has no counterpart in Go."""


@dataclass(frozen=True)
class Pieces:
    """What a template writes around texts, where user and assistant speak in turn and the user last.

    Attributes:
        beginning: before the first user text, without a system message.
        before_system, after_system: around a system message; None where the template takes none.
        user_to_assistant, assistant_to_user: between the texts of two turns.
        ending: behind the last user text, where the answer begins.
        trims: it takes the spaces off the ends of texts, which Ollama's language cannot.
    """

    beginning: str
    before_system: str | None
    after_system: str | None
    user_to_assistant: str
    assistant_to_user: str
    ending: str
    trims: bool = False

    def write(self, messages: Messages) -> str:
        """The prompt for a conversation, as the Go template writes it."""
        turns = list(messages)
        text = self.beginning
        if turns[0]["role"] == "system":
            assert self.before_system is not None
            text = f"{self.before_system}{turns.pop(0)['content']}{self.after_system}"
        for number, turn in enumerate(turns):
            is_last = number == len(turns) - 1
            behind = self.user_to_assistant if turn["role"] == "user" else self.assistant_to_user
            text += turn["content"] + (self.ending if is_last else behind)
        return text

    def in_go(self) -> str:
        """The same in Go's template language, with the variables that Ollama has."""
        beginning = _literal(self.beginning)
        if self.before_system is not None and self.after_system is not None:
            before, after = _literal(self.before_system), _literal(self.after_system)
            beginning = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{beginning}{{{{ end }}}}"
        behind_user = _literal(self.ending)
        if self.ending != self.user_to_assistant:
            other = _literal(self.user_to_assistant)
            behind_user = f"{{{{ if $last }}}}{behind_user}{{{{ else }}}}{other}{{{{ end }}}}"
        return (
            f"{beginning}"
            "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
            f'{{{{ if eq .Role "user" }}}}{{{{ .Content }}}}{behind_user}'
            '{{ else if eq .Role "assistant" }}{{ .Content }}'
            f"{{{{ if not $last }}}}{_literal(self.assistant_to_user)}{{{{ end }}}}"
            "{{ end }}{{ end }}"
        )


def _literal(text: str) -> str:
    """Text that Go's templates write as it is."""
    return text.replace("{{", '{{ "{{" }}')


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
    except TemplateError as error:
        raise NotInGo(f"the chat template refuses a plain conversation ({error})") from error
    if (first, alone) != (beginning, ending):
        raise NotInGo("the chat template writes the first question of a conversation otherwise when others follow")
    before_system, after_system = _around_system(render)
    trims = _trims(render)
    pieces = Pieces(beginning, before_system, after_system, between, back, ending, trims)
    _prove(pieces, render)
    return pieces


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


def _around_system(render: Any) -> tuple[str | None, str | None]:
    system, question = _MARKS[:2]
    try:
        text = render(_chat(question, system=system))
    except TemplateError:
        return None, None
    if system not in text:
        return None, None
    before, after, _ = _around(text, (system, question))
    return before, after


def _trims(render: Any) -> bool:
    spaced = f"  {_MARKS[0]}  "
    return spaced not in render(_chat(spaced))


def _prove(pieces: Pieces, render: Any) -> None:
    """Other texts, more turns, a system message before several: each as the Jinja template has it."""
    words = ("Hello", "{{ braces }} and\n\nlines", "Übung, 東京: 1 < 2?", "def f():\n    return 1", "Thanks!")
    probes = [_chat(*words[:count]) for count in (1, 3, 5)]
    if pieces.before_system is not None:
        probes += [_chat(*words[:count], system="Be brief.") for count in (1, 3, 5)]
    for messages in probes:
        if pieces.write(messages) != render(messages):
            turns = f"{len([m for m in messages if m['role'] != 'system'])} turns"
            system = " and a system message" if messages[0]["role"] == "system" else ""
            raise NotInGo(f"the chat template writes {turns}{system} otherwise than turn by turn")


def write_modelfile(
    path: Path,
    model: str,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig,
    config: Config,
) -> str:
    """Write the Modelfile beside a GGUF.

    Args:
        model: a file beside it, a path, or a name of Ollama's.
        adapter: a file beside it.

    Returns:
        a sentence on what became of the template.
    """
    source = model if "/" in model or not model.endswith(".gguf") else f"./{model}"
    lines = ["# ollama create my-model -f Modelfile", f"FROM {source}"]
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    kwargs = config.template.chat_template_kwargs or {}
    try:
        pieces = learn(tokenizer, kwargs, adds_bos=_adds_bos(tokenizer))
        go = pieces.in_go()
        if '"""' in go:
            raise NotInGo('the chat template writes """, which ends a text in a Modelfile')
        said = "with the training template in Go, compared with the Jinja render of conversations"
        if pieces.before_system is None:
            lines.append("# the chat template of training takes no system message: Ollama's is left out")
        if pieces.trims:
            lines.append("# in training, spaces at the ends of texts were taken off; Ollama leaves them")
        lines.append(f'TEMPLATE """{go}"""')
    except NotInGo as reason:
        said = f"without TEMPLATE, as {reason}; Ollama reads the template in the GGUF"
        lines.append(f"# no TEMPLATE: {reason}. Ollama takes what it can make of the template in the GGUF.")
    if system := config.template.default_system_message:
        can_stand = '"""' not in system
        lines.append(f'SYSTEM """{system}"""' if can_stand else f"# the system message of training: {system!r}")
    lines += [f'PARAMETER stop "{text}"' for text in _stops(tokenizer, generation)]
    lines += _sampling(generation)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return said


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.bos_token_id is not None and tokenizer("x").input_ids[0] == tokenizer.bos_token_id


def _stops(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[str]:
    """The texts of the tokens that end an answer; those that a Modelfile cannot say are in the GGUF all the same."""
    said = generation.eos_token_id
    ids = [said] if isinstance(said, int) else list(said or ())
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    texts = [tokenizer.convert_ids_to_tokens(index) for index in ids]
    return [text for text in texts if text and not {'"', "\n"} & set(text)]


def _sampling(generation: GenerationConfig) -> list[str]:
    if not generation.do_sample:
        return []
    values = {ours: getattr(generation, theirs, None) for theirs, ours in _SAMPLING.items()}
    return [f"PARAMETER {name} {value:g}" for name, value in values.items() if value is not None]
