"""What a chat template does, learnt by asking it.

A template does not say what its header and its stop token are. Rendering a few made-up conversations shows both: the
text that ``add_generation_prompt`` appends, what of it stands before an assistant turn, what follows one. This is done
once for a template; the users' conversations are rendered once and compared with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whet.core.errors import DataError, Problem
from whet.data.templates.regions import Headers
from whet.data.templates.traced import Run

if TYPE_CHECKING:
    from whet.data.templates.render import Template

_USER = {"role": "user", "content": "whetquestionone"}
_ANSWER = {"role": "assistant", "content": "whetanswerone"}
_USER_2 = {"role": "user", "content": "whetquestiontwo"}
_ANSWER_2 = {"role": "assistant", "content": "whetanswertwo"}
_SYSTEM = {"role": "system", "content": "whetsystem"}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "whetcall1", "type": "function", "function": {"name": "whetfunction", "arguments": {"whetkey": 1}}}
    ],
}
_RESULT = {"role": "tool", "name": "whetfunction", "tool_call_id": "whetcall1", "content": "whetresult"}


@dataclass(frozen=True, slots=True)
class Facts:
    """What was learnt.

    Attributes:
        headers: how the assistant is announced.
        stop: what the template writes after an assistant turn, if it is one token or one word.
        writes: everything the template wrote of its own: its tokens are in here.
    """

    headers: Headers
    stop: str | None
    writes: str


def learn(template: Template, special: Sequence[str], eos: str | None, where: str) -> Facts:
    """Ask the template.

    Args:
        template: the compiled template.
        special: the tokenizer's control tokens.
        eos: its end-of-sequence token.
        where: for errors.

    Raises:
        DataError: it fails on the plainest conversations, or builds text from messages in a way that loses the trace.
    """
    rendered = _render_first(template, where)
    text, runs, conversation = rendered
    _refuse_lost_traces(text, runs, conversation, where)
    prompt = _generation_prompt(template, conversation, special)
    least = min(_matched(prompt, text, runs), len(prompt.rstrip()))
    tails = {role: tail for role, tail in _tails(template).items() if tail}
    writes = "\n".join([*_gaps(text, runs), prompt, *tails.values()])
    return Facts(Headers(prompt if least else "", least, tails), _stop(text, runs, special, eos), writes)


def _attempt(template: Template, messages: list[dict[str, Any]], prompt: bool = False) -> Any:
    """The render, or the reason why there is none."""
    from whet.data.templates.render import TEMPLATE_ERRORS

    try:
        return template.render(messages, prompt=prompt)
    except TEMPLATE_ERRORS as error:
        return error


def _render_first(template: Template, where: str) -> tuple[str, tuple[Run, ...], list[dict[str, Any]]]:
    """The first ordinary conversation that the template accepts: some want a system turn, some only one round."""
    reason = None
    for opening in ([], [_SYSTEM]):
        for rounds in ([_USER, _ANSWER, _USER_2, _ANSWER_2], [_USER, _ANSWER]):
            conversation = [*opening, *rounds]
            rendered = _attempt(template, conversation)
            if not isinstance(rendered, Exception):
                return rendered[0], rendered[1], conversation
            reason = reason or rendered
    found = f"the chat template fails on a plain question and answer: {reason}"
    raise DataError(Problem(where, found, "use another chat_template, or correct this one", "chat_template"))


def _refuse_lost_traces(text: str, runs: Sequence[Run], conversation: list[dict[str, Any]], where: str) -> None:
    """Every place where a made-up content stands must be known as such."""
    for number, message in enumerate(conversation):
        at = text.find(message["content"])
        while at >= 0:
            end = at + len(message["content"])
            if not any(run.source.message == number and run.begin <= at and end <= run.end for run in runs):
                found = f"the chat template writes the {message['role']}'s content in a way whet cannot follow"
                fix = "write the content with {{ message['content'] }}; the filters 'e' and 'safe' hide it"
                raise DataError(Problem(where, found, fix, "chat_template"))
            at = text.find(message["content"], end)


def _after_last(text: str, runs: Sequence[Run]) -> str:
    return text[max((run.end for run in runs if run.source.field not in ("role", "generation")), default=0) :]


def _generation_prompt(template: Template, conversation: list[dict[str, Any]], special: Sequence[str]) -> str:
    """What the template appends when asked for the generation prompt, instead of (or after) its usual ending."""
    question = conversation[: next(n for n, message in enumerate(conversation) if message["role"] == "user") + 1]
    without, with_prompt = _attempt(template, question), _attempt(template, question, prompt=True)
    if isinstance(with_prompt, Exception):
        return ""
    tail = _after_last(*with_prompt)
    closing = "" if isinstance(without, Exception) else _after_last(*without)
    return tail[_shared(tail, closing, special) :]


def _shared(one: str, other: str, special: Sequence[str]) -> int:
    """Length of the common beginning, not counting a part of a control token.

    >>> _shared("<|end|><|assistant|>", "<|end|><|endoftext|>", ["<|end|>", "<|assistant|>", "<|endoftext|>"])
    7
    """
    pairs = enumerate(zip(one, other, strict=False))
    length = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    for token in special:
        at = one.find(token, max(0, length - len(token) + 1))
        if 0 <= at < length < at + len(token):
            return at
    return length


def _matched(prompt: str, text: str, runs: Sequence[Run]) -> int:
    """So many characters of the generation prompt at least stand before each assistant's content."""
    lengths = []
    previous = 0
    for run in runs:
        if run.source.field != "content":
            continue
        if run.source.message % 2 == _parity(runs):
            before = text[previous : run.begin]
            lengths.append(next((n for n in range(len(prompt), 0, -1) if prompt[:n] in before), 0))
        previous = run.end
    return min(lengths, default=0)


def _parity(runs: Sequence[Run]) -> int:
    """Assistants have odd numbers, or even ones after a system turn: the last message is an assistant's."""
    return max(run.source.message for run in runs) % 2


def _tails(template: Template) -> dict[str, str]:
    """What follows a last message of each role that an assistant may answer."""
    asked: dict[str, list[dict[str, Any]]] = {
        "user": [_USER],
        "tool": [_USER, _CALL, _RESULT],
        "system": [_SYSTEM],
        "assistant": [_USER, _ANSWER],
    }
    tails = {}
    for role, messages in asked.items():
        rendered = _attempt(template, messages)
        if not isinstance(rendered, Exception):
            tails[role] = _after_last(*rendered)
    return tails


def _gaps(text: str, runs: Sequence[Run]) -> list[str]:
    gaps, at = [], 0
    for run in runs:
        gaps.append(text[at : run.begin])
        at = run.end
    return [*gaps, text[at:]]


def _stop(text: str, runs: Sequence[Run], special: Sequence[str], eos: str | None) -> str | None:
    """The first control token after the last assistant turn; else the word that stands there."""
    tail = _after_last(text, runs)
    tokens = {*special, *([eos] if eos else [])}
    found = [(tail.find(token), token) for token in tokens if token.strip() and token in tail]
    if found:
        return min(found, key=lambda pair: (pair[0], -len(pair[1])))[1]
    words = tail.split()
    return words[0] if len(words) == 1 else None
