"""A conversation -> the text its chat template makes of it, and which characters of it are trained.

There is one render. The labels are ranges of that very text, known from the traces its characters carry
(`whet.data.templates.traced`), and the ids are the ids of that text: what is trained is what
``tokenizer.apply_chat_template`` makes of the same messages, always.
"""

from __future__ import annotations

import marshal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from typing import Any

import jinja2

from whet.core.errors import ConfigError, Problem, RowError
from whet.core.sandbox import TooSlow
from whet.core.types import Conversation, Turn
from whet.data.templates.environment import Day, TracingEnvironment
from whet.data.templates.regions import Headers, Region, Span, find_regions, merged, paint
from whet.data.templates.traced import TOOLS, Run, Source, Traced, trace

#: What a template that does not accept a conversation may raise: its own `raise_exception`, and the errors of
#: Python operations it does on values of another kind than it expects.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
)


MOST_TOLD = 500
"""Characters of what a template says of its refusal."""


@dataclass(frozen=True, slots=True)
class TrainPolicy:
    """Which turns and stop tokens are trained, where a row does not say.

    Attributes:
        roles: roles whose turns are trained; None for all of them.
        train_on_eos: "turn" (the EOS of trained turns), "all" (of every turn), "last" (only the last of the sample)
            or "none".
        train_on_eot: the same for the other stop tokens.
    """

    roles: frozenset[str] | None = frozenset({"assistant"})
    train_on_eos: str = "turn"
    train_on_eot: str = "turn"

    def trains(self, role: str) -> bool:
        return self.roles is None or role in self.roles


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text and what is known of its characters.

    Attributes:
        text: the render.
        spans: trained characters; sorted, not touching.
        written: characters that come from the row, roles excepted: no control token may be among them.
        regions: every turn's place, in order of the text.
        runs: where each character comes from.
    """

    text: str
    spans: tuple[Span, ...]
    written: tuple[Span, ...]
    regions: tuple[Region, ...] = ()
    runs: tuple[Run, ...] = ()


class Template:
    """A compiled chat template with the variables it is given.

    Args:
        text: Jinja text.
        variables: what the template sees beside messages and tools: the tokenizer's special tokens and
            ``chat_template_kwargs``.
        where: place of the template's key in the config, for errors.
        today: the day that the template is told when it asks for the time.

    Attributes:
        text: as it was given.
        day: what the template was told of the time so far.

    Raises:
        ConfigError: the text is not Jinja.
    """

    def __init__(self, text: str, variables: Mapping[str, Any], where: str = "", today: date | None = None) -> None:
        self.day = Day(today or date.today())
        try:
            self._environment = TracingEnvironment(self.day)
            self._compiled = self._environment.from_string(text)
        except jinja2.TemplateSyntaxError as error:
            found = f"the chat template does not compile: {error.message} (its line {error.lineno})"
            raise ConfigError(Problem(where, found, "correct the template", "chat_template")) from error
        except (RecursionError, MemoryError, SyntaxError, ValueError) as error:  # Python's, of nested brackets or loops
            found = f"the chat template does not compile: {str(error)[:100] or type(error).__name__}"
            raise ConfigError(Problem(where, found, "nest less deeply", "chat_template")) from error
        except TEMPLATE_ERRORS as error:  # of a constant that is computed now, as {[1]: 2}
            found = f"the chat template does not compile: {str(error)[:100] or type(error).__name__}"
            raise ConfigError(Problem(where, found, "correct the template", "chat_template")) from error
        self._where = where
        self._variables = dict(variables)
        self._tools: tuple[bytes | None, list[Any]] = (None, [])
        self.text = text

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None = None, *, prompt: bool = False
    ) -> tuple[str, tuple[Run, ...]]:
        """The text and its runs; ``prompt`` asks for the generation prompt at the end.

        Raises:
            jinja2.TemplateError, TypeError, ValueError: the template does not accept the messages.
        """
        traced = [
            {key: trace(value, Source(number, key)) for key, value in message.items() if value is not None}
            for number, message in enumerate(messages)
        ]
        return self.render_traced(traced, tools, prompt=prompt)

    def render_traced(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, *, prompt: bool = False
    ) -> tuple[str, tuple[Run, ...]]:
        """As `render`, for messages whose strings are traced already."""
        try:
            text = self._compiled.render(
                messages=messages,
                tools=None if tools is None else self._traced_tools(list(tools)),
                documents=None,
                add_generation_prompt=prompt,
                **self._variables,
            )
        except TooSlow as error:
            found = f"the chat template '{_shown(self.text)}': {error.problems[0].found}"
            raise TooSlow(Problem(self._where, found, error.problems[0].fix, "chat_template")) from None
        return (str.__getitem__(text, slice(None)), text.runs) if isinstance(text, Traced) else (text, ())

    def _traced_tools(self, tools: list[Any]) -> list[Any]:
        """The tools with their strings traced; the last ones again where a row has the same, as most have."""
        content = _content(tools)
        known, traced = self._tools
        if content is None or content != known:
            traced = trace(tools, Source(TOOLS, "tools"))
            self._tools = (content, traced)
            self._environment.remember(traced if content is not None else None)
        return traced


def _shown(template: str) -> str:
    """How a template begins."""
    first = template.strip().partition("\n")[0]
    return first if len(first) <= 60 else f"{first[:57]}..."


def _content(tools: list[Any]) -> bytes | None:
    """Bytes that are the same for tools that no template can tell apart: of one order, with 1 and 1.0 and true kept
    apart; None where they hold more than plain values. (Version 2 of the format knows nothing of shared objects.)"""
    try:
        return marshal.dumps(tools, 2)
    except ValueError:
        return None


class Renderer:
    """Renders conversations with one template, and says what is trained.

    Args:
        template_text: Jinja text of the chat template.
        tokenizer: gives the special tokens the template may use, and the EOS.
        kwargs: ``chat_template_kwargs``.
        eot_tokens: tokens that end a turn, beside the EOS; None: the one the template itself writes after an
            assistant turn.
        where: place of the template's key in the config, for errors.
        today: the day that a template is told which asks for the time (``strftime_now``); the day of this call where
            it is left out. It stays that day.

    Attributes:
        date: that day, as 2026-11-21, where the template writes it into conversations; else empty.

    Raises:
        ConfigError: the template does not compile.
        DataError: it fails on an ordinary conversation, or hides from us what it does with its messages.
    """

    def __init__(
        self,
        template_text: str,
        tokenizer: Any,
        kwargs: Mapping[str, Any] | None = None,
        eot_tokens: Sequence[str] | None = None,
        where: str = "",
        today: date | None = None,
    ) -> None:
        from whet.data.templates.facts import learn

        self.template = Template(template_text, {**tokenizer.special_tokens_map, **(kwargs or {})}, where, today)
        self._stock = partial(tokenizer.apply_chat_template, tokenize=False, **(kwargs or {}))
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        facts = learn(self.template, special, tokenizer.eos_token, where)
        self.date = _date_written_by(self.template)
        self.headers: Headers = facts.headers
        self.stops: dict[str, bool] = {} if tokenizer.eos_token is None else {str(tokenizer.eos_token): True}
        if eot_tokens is not None:
            self.stops |= {token: False for token in eot_tokens if token not in self.stops}
        elif facts.stop is not None:
            self.stops.setdefault(facts.stop, False)
        self.writes: str = facts.writes
        #: Added tokens that the template speaks with, even where the tokenizer does not call them special.
        header = facts.headers.generation_prompt[: facts.headers.least]
        added = [token.content for token in tokenizer.added_tokens_decoder.values()]
        self.control: tuple[str, ...] = (*self.stops, *(name for name in added if name.strip() and name in header))

    def render(self, conversation: Conversation, policy: TrainPolicy) -> Rendered:
        """Render a conversation.

        Raises:
            RowError: the template refuses it ("chat template failed"), or the beginning of a trained turn cannot be
                told ("assistant header not found").
        """
        messages = [turn.message for turn in conversation.turns]
        try:
            text, runs = self.template.render(messages, conversation.tools)
        except TEMPLATE_ERRORS as error:
            raise RowError("chat template failed", str(error)[:MOST_TOLD]) from error
        return self.located(conversation, text, runs, policy)

    def located(self, conversation: Conversation, text: str, runs: Sequence[Run], policy: TrainPolicy) -> Rendered:
        """A traced render with its turns found in it; raises as `render`."""
        roles = [str(turn.role) for turn in conversation.turns]
        regions = find_regions(text, runs, roles, self.headers, self.stops)
        self._refuse_lost_turns(conversation, policy, runs, regions)
        _refuse_lost_calls(conversation, runs)
        spans = trained_spans(regions, conversation, policy)
        written = merged(Span(run.begin, run.end) for run in runs if run.source.field != "role")
        return Rendered(text, spans, written, tuple(regions), tuple(runs))

    def prompt(self, turns: Sequence[Turn], tools: Sequence[Any] | None = None) -> Rendered:
        """What a model is given when it shall answer: the turns and the generation prompt. Nothing is trained.

        Raises:
            RowError: the template refuses it.
        """
        try:
            text, runs = self.template.render([turn.message for turn in turns], tools, prompt=True)
        except TEMPLATE_ERRORS as error:
            raise RowError("chat template failed", str(error)[:MOST_TOLD]) from error
        return Rendered(text, (), merged(Span(run.begin, run.end) for run in runs if run.source.field != "role"))

    def check(self, conversation: Conversation, text: str) -> None:
        """Compare a render with transformers' own.

        Raises:
            RuntimeError: they differ; a fault of whet's, or of this version of transformers.
        """
        template, told = self.template.text, self.template.day.written
        days: dict[str, Any] = {"whet_told": told} if told else {}
        stock = self._stock(
            conversation.messages, tools=conversation.tools, chat_template=_TOLD * bool(told) + template, **days
        )
        if stock != text:
            raise RuntimeError("whet renders the chat template otherwise than transformers does; please report this")

    def _refuse_lost_turns(
        self, conversation: Conversation, policy: TrainPolicy, runs: Sequence[Run], regions: Sequence[Region]
    ) -> None:
        placed = {region.message for region in regions}
        shown = {run.source.message for run in runs}
        for number, turn in enumerate(conversation.turns):
            wanted = policy.trains(turn.role) if turn.train is None else turn.train
            if wanted and turn.role == "assistant" and number in shown and number not in placed:
                header = repr(self.headers.generation_prompt)
                raise RowError("assistant header not found", f"message {number} is not preceded by {header}")


_TOLD = "{% macro strftime_now(format) %}{{ whet_told[format] }}{% endmacro %}\n"
"""Put before a template it makes transformers tell it the same day: the clock has gone on since ours was rendered."""

_TOOL = {"type": "function", "function": {"name": "f", "description": "F", "parameters": {"type": "object"}}}


def _date_written_by(template: Template) -> str:
    """The day, if the template has written it into any of the conversations that were tried; empty if not.

    What a template has not told by then it may not write later: the day would stand in some samples, and not in the
    name of what is prepared.
    """
    question, system = {"role": "user", "content": "q"}, {"role": "system", "content": "s"}
    for messages in ([question], [system, question], [question, {"role": "assistant", "content": "a"}]):
        if "strftime_now" in template.text and not template.day.written:
            for tools in (None, [_TOOL]):
                with suppress(*TEMPLATE_ERRORS):
                    template.render(messages, tools)
    if template.day.written:
        return template.day.day.isoformat()
    template.day.refuses = "it asks for the date in some conversations only; give it one in chat_template_kwargs"
    return ""


def _refuse_lost_calls(conversation: Conversation, runs: Sequence[Run]) -> None:
    """A template that knows no tools leaves their calls out, and an empty answer would be trained instead."""
    written = {run.source.message for run in runs if run.source.field == "tool_calls"}
    for number, turn in enumerate(conversation.turns):
        if turn.message.get("tool_calls") and number not in written:
            raise RowError(
                "tool calls left out", f"the chat template does not write the tool_calls of message {number}"
            )


def trained_spans(regions: Sequence[Region], conversation: Conversation, policy: TrainPolicy) -> tuple[Span, ...]:
    """The trained characters of a rendered conversation."""
    spans: list[Span] = []
    trains: list[bool] = []
    for region in regions:
        turn = conversation.turns[region.message]
        trains.append(policy.trains(turn.role) if turn.train is None else turn.train)
        spans += paint(region, trains[-1], turn.details)
    for is_eos, rule in ((True, policy.train_on_eos), (False, policy.train_on_eot)):
        stops = [
            (region.stop, train)
            for region, train in zip(regions, trains, strict=True)
            if region.stop is not None and region.stop.is_eos == is_eos
        ]
        for number, (stop, train) in enumerate(stops):
            last = number == len(stops) - 1
            if rule == "all" or (rule == "turn" and train) or (rule == "last" and last):
                spans.append(Span(stop.begin, stop.end))
    return merged(spans)
