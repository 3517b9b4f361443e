"""Which characters of a rendered conversation belong to which turn.

A traced render says which characters *derive* from a message; a turn is more: the model also writes what the template
puts around its words (``<tool_call>`` and the braces of a call, the end-of-turn token). This module finds a turn's
beginning (after its header) and end (its stop token) in the template's own text between the messages. What is inside
a message is never looked at, so no content can mislead it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from whet.core.types import TrainRange
from whet.data.templates.traced import GENERATION_BEGIN, GENERATION_END, Run


@dataclass(frozen=True, slots=True)
class Span:
    """Characters ``[begin, end)`` of a rendered text."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Stop:
    """A stop token that the template wrote after a turn: where, and whether it is the tokenizer's EOS."""

    begin: int
    end: int
    is_eos: bool


@dataclass(frozen=True, slots=True)
class Region:
    """Characters of one turn.

    Attributes:
        message: its number in the conversation.
        begin: first character after the header; of a turn that has no header of its own, of its content.
        end: after the last character that is the turn's, the stop token excluded.
        stop: the token that ends it, if the template wrote one.
        content: runs of the field ``content`` in it, to place the trained ranges of a row.
    """

    message: int
    begin: int
    end: int
    stop: Stop | None
    content: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Headers:
    """How a template announces the assistant; learnt from the template by `whet.data.templates.facts`.

    Attributes:
        generation_prompt: what ``add_generation_prompt`` appends; empty if nothing.
        least: so many characters of it at least stand before every assistant turn.
        tails: role -> what follows a last message of this role, for templates without a generation prompt.
    """

    generation_prompt: str
    least: int
    tails: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Cluster:
    """Neighbouring runs of one message; ``body`` are those that are not its role."""

    message: int
    begin: int
    end: int
    body: tuple[Run, ...]


def assistant_begin(text: str, headers: Headers, before: Span, previous_role: str | None) -> int | None:
    """Where the assistant's own text begins: after the header, which lies in the literal text ``before`` it.

    A template may put more after the generation prompt than before an earlier turn (``<think>``), so the longest
    beginning of the generation prompt counts. Returns None if there is no header.
    """
    prompt = headers.generation_prompt
    if prompt:
        for length in range(len(prompt), headers.least - 1, -1):
            found = text.rfind(prompt[:length], before.begin, before.end)
            if found >= 0:
                return found + length
        return None
    tail = headers.tails.get(previous_role or "", "")
    if tail:
        at = before.begin
        while at < before.end and at - before.begin < len(tail) and text[at] == tail[at - before.begin]:
            at += 1
        return at
    return before.begin + len(text[before.begin : before.end].rstrip())


def find_regions(
    text: str, runs: Sequence[Run], roles: Sequence[str], headers: Headers, stops: Mapping[str, bool]
) -> list[Region]:
    """The regions of every message that left a trace, in order of the text.

    Args:
        text: the render.
        runs: its runs, in order.
        roles: role of each message.
        headers: of the template.
        stops: stop token -> whether it is the tokenizer's EOS.

    A message may have several regions, if the template wrote it in several places. An assistant's region without a
    header before it (its words quoted elsewhere) is not among them.
    """
    blocks, runs = _generation_blocks(runs)
    clusters = _clusters(text, runs, stops)
    regions = []
    for number, cluster in enumerate(clusters):
        if cluster.message < 0:
            continue
        previous = clusters[number - 1] if number else None
        before = previous.end if previous else 0
        after = clusters[number + 1].begin if number + 1 < len(clusters) else len(text)
        body_begin = cluster.body[0].begin if cluster.body else after
        if roles[cluster.message] == "assistant":
            block = next((b for b in blocks if b.begin <= cluster.begin and cluster.end <= b.end), None)
            previous_role = roles[previous.message] if previous and previous.message >= 0 else None
            begin = block.begin if block else assistant_begin(text, headers, Span(before, body_begin), previous_role)
        else:
            begin = body_begin if cluster.body else None
        if begin is None:
            continue
        body_end = max(begin, cluster.body[-1].end) if cluster.body else begin
        stop = _first_stop(text, body_end, after, stops)
        closed = roles[cluster.message] == "assistant" and stop is not None
        end = stop.begin if closed and stop is not None else body_end
        content = tuple(run for run in cluster.body if run.source.field == "content")
        regions.append(Region(cluster.message, begin, end, stop, content))
    return regions


def _generation_blocks(runs: Sequence[Run]) -> tuple[list[Span], list[Run]]:
    """The ``{% generation %}`` blocks, and the runs without their marks."""
    blocks: list[Span] = []
    rest: list[Run] = []
    begin = 0
    for run in runs:
        if run.source.message == GENERATION_BEGIN:
            begin = run.begin
        elif run.source.message == GENERATION_END:
            blocks.append(Span(begin, run.end))
        else:
            rest.append(run)
    return blocks, rest


def _clusters(text: str, runs: Sequence[Run], stops: Iterable[str]) -> list[_Cluster]:
    """Runs grouped by message; a stop token in the text between two runs parts them (a call quoted by its result)."""
    groups: list[list[Run]] = []
    for run in runs:
        if groups and groups[-1][-1].source.message == run.source.message:
            gap = text[groups[-1][-1].end : run.begin]
            if not any(stop in gap for stop in stops):
                groups[-1].append(run)
                continue
        groups.append([run])
    return [
        _Cluster(
            group[0].source.message,
            group[0].begin,
            group[-1].end,
            tuple(run for run in group if run.source.field != "role"),
        )
        for group in groups
    ]


def _first_stop(text: str, begin: int, end: int, stops: Mapping[str, bool]) -> Stop | None:
    found = [(at, token) for token in stops if (at := text.find(token, begin, end)) >= 0]
    if not found:
        return None
    at, token = min(found, key=lambda pair: (pair[0], -len(pair[1])))
    return Stop(at, at + len(token), stops[token])


def paint(region: Region, train: bool, details: Sequence[TrainRange]) -> list[Span]:
    """The trained characters of a region, its stop token excluded.

    Args:
        region: the turn.
        train: what holds for characters that ``details`` does not name.
        details: ranges of the message's content. Characters that the template rewrote follow ``train``.
    """
    if not details:
        return [Span(region.begin, region.end)] if train and region.begin < region.end else []
    trained = bytearray([train]) * (region.end - region.begin)
    for run in region.content:
        if run.offset < 0:
            continue
        for detail in details:
            begin = max(detail.begin, run.offset)
            end = min(detail.end, run.offset + run.end - run.begin)
            if begin < end:
                at = run.begin - region.begin - run.offset
                trained[at + begin : at + end] = bytes([detail.train]) * (end - begin)
    return [Span(region.begin + begin, region.begin + end) for begin, end in _ones(trained)]


def _ones(flags: bytearray) -> list[tuple[int, int]]:
    """The ranges of ones.

    >>> _ones(bytearray([0, 1, 1, 0, 1]))
    [(1, 3), (4, 5)]
    """
    found = []
    begin = flags.find(1)
    while begin >= 0:
        end = flags.find(0, begin)
        end = len(flags) if end < 0 else end
        found.append((begin, end))
        begin = flags.find(1, end)
    return found


def merged(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same characters as sorted spans that do not touch.

    >>> merged([Span(4, 6), Span(0, 2), Span(2, 3)])
    (Span(begin=0, end=3), Span(begin=4, end=6))
    """
    found: list[Span] = []
    for span in sorted(spans, key=lambda span: span.begin):
        if found and span.begin <= found[-1].end:
            found[-1] = Span(found[-1].begin, max(found[-1].end, span.end))
        elif span.begin < span.end:
            found.append(span)
    return tuple(found)
