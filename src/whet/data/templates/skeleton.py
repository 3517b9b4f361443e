"""What a chat template makes of all conversations of one shape, learnt from one of them.

A corpus has few shapes (user, assistant, user, assistant) and many conversations. For the first conversation of a
shape the template is run with strings that write down what it asks about them (`whet.data.templates.watched`). Its
output then is a `Skeleton`: literal texts with slots between them, and the trained characters as places in the
literals. Another conversation that has the same shape and gives the same answers to all that was asked must come out
as the same literals with its own texts in the slots: no template is run for it. Whatever cannot be followed is left to
the template itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from whet.core.errors import RowError
from whet.core.types import Conversation
from whet.data.templates.regions import Span
from whet.data.templates.render import TEMPLATE_ERRORS, Rendered, Renderer, TrainPolicy
from whet.data.templates.traced import NO_OFFSET, Run, Source, trace
from whet.data.templates.watched import TESTS, Guard, Watch, Watched, cut

MOST_LEAVES = 10_000
"""Skeletons and questions kept in all; a corpus with more shapes renders the others by the template."""

_UNFOLLOWED = ("strftime_now", "autoescape")
"""Templates with these words are always run: the time is no text of a message, and escaping hides where texts go."""

Cuts = tuple[tuple[str, str | None], ...]
Shape = tuple[tuple[str | bool | None, ...], ...]


Check = Callable[[Conversation, Rendered, Callable[[Conversation], Rendered]], None]


@dataclass(frozen=True, slots=True)
class Slot:
    """A place where a field of a message is written, after its cuts."""

    message: int
    field: str
    cuts: Cuts


@dataclass(frozen=True, slots=True)
class Place:
    """A character of a literal: the literal's number, and how many characters stand before it in the literal."""

    literal: int
    offset: int


@dataclass(frozen=True, eq=False)
class Skeleton:
    """The output of a template for one shape.

    Attributes:
        literals: one more than slots; literal k stands before slot k.
        slots: in order of the text.
        trained: beginnings and ends of the trained characters, all within literals or at their edges.
    """

    literals: tuple[str, ...]
    slots: tuple[Slot, ...]
    trained: tuple[tuple[Place, Place], ...]

    def fill(self, messages: Sequence[Mapping[str, str]]) -> list[str] | None:
        """The texts of the slots; None if one is empty, which no skeleton is made for."""
        texts = [
            cut(messages[slot.message][slot.field], slot.cuts) if slot.cuts else messages[slot.message][slot.field]
            for slot in self.slots
        ]
        return texts if all(texts) else None

    def write(self, texts: Sequence[str]) -> str:
        """The whole text."""
        parts: list[str] = [""] * (2 * len(texts) + 1)
        parts[0::2] = self.literals
        parts[1::2] = texts
        return "".join(parts)

    def spans(
        self, lengths: npt.NDArray[np.int64], unit: str
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Where trained and written characters begin and end in N texts of this skeleton.

        Args:
            lengths: int64[N, slots], of the texts in the slots, in the unit.
            unit: "bytes" (of UTF-8) or "chars".

        Returns:
            begins and ends int64[N, S] of the trained spans, begins and ends int64[N, slots] of the slots.
        """
        of_literals = np.array([_length(literal, unit) for literal in self.literals], dtype=np.int64)
        slot_begins = np.cumsum(lengths, axis=1) - lengths + np.cumsum(of_literals)[:-1]
        literal_begins = np.zeros((len(lengths), len(self.literals)), dtype=np.int64)
        literal_begins[:, 1:] = slot_begins + lengths

        def located(places: Sequence[Place]) -> npt.NDArray[np.int64]:
            offsets = [_length(self.literals[place.literal][: place.offset], unit) for place in places]
            found: npt.NDArray[np.int64] = literal_begins[:, [place.literal for place in places]] + np.array(
                offsets, dtype=np.int64
            )
            return found

        begins, ends = ([pair[side] for pair in self.trained] for side in (0, 1))
        return located(begins), located(ends), slot_begins, slot_begins + lengths


@dataclass(slots=True)
class _Ask:
    """A question, and where each answer leads."""

    source: Source
    cuts: Cuts
    test: str
    argument: object
    yes: _Node = None
    no: _Node = None


@dataclass(frozen=True, slots=True)
class _Lost:
    """From here on the template itself has to be run, because of `why`."""

    why: str


_Node = _Ask | Skeleton | _Lost | None


class Skeletons:
    """The skeletons of one template under one policy, learnt as conversations come.

    Args:
        renderer: of the template.
        policy: which turns are trained.
        check: called with each conversation that is learnt from, its render, and what renders parts of it; a RowError
            it raises leaves all like it to the template.
    """

    def __init__(self, renderer: Renderer, policy: TrainPolicy, check: Check = lambda *_: None) -> None:
        self._renderer, self._policy, self._check = renderer, policy, check
        self._roots: dict[Shape, _Node] = {}
        self._leaves = 0
        self._usable = not any(word in renderer.template.text for word in _UNFOLLOWED)

    def find(self, conversation: Conversation) -> tuple[Skeleton, list[str]] | None:
        """The skeleton of a conversation and the texts of its slots; None where the template must be run."""
        shape = _shape(conversation)
        if shape is None or not self._usable:
            return None
        messages = [turn.message for turn in conversation.turns]
        node = self._roots.get(shape)
        while type(node) is _Ask:
            text = messages[node.source.message][node.source.field]
            node = node.yes if TESTS[node.test](cut(text, node.cuts), node.argument) else node.no
        if node is None and self._leaves < MOST_LEAVES:
            node = self._learnt(shape, conversation)
        if type(node) is not Skeleton:
            return None
        texts = node.fill(messages)
        return None if texts is None else (node, texts)

    def _learnt(self, shape: Shape, conversation: Conversation) -> _Node:
        """Render a conversation under watch and keep what it teaches."""
        self._leaves += 1
        watch = Watch()
        leaf = self._skeleton(conversation, watch)
        if leaf is None:
            return None  # an empty text: this conversation teaches nothing about others
        node: _Node = leaf
        for guard in reversed(watch.guards):
            ask = _Ask(guard.source, guard.cuts, guard.test, guard.argument)
            ask.yes, ask.no = (node, None) if guard.answer else (None, node)
            node = ask
        self._roots[shape] = _merged(self._roots.get(shape), node, watch.guards)
        return leaf

    def _skeleton(self, conversation: Conversation, watch: Watch) -> Skeleton | _Lost | None:
        messages = [
            {
                key: trace(value, Source(n, key)) if key == "role" else Watched.of(value, Source(n, key), watch)
                for key, value in turn.message.items()
            }
            for n, turn in enumerate(conversation.turns)
        ]

        def render(part: Conversation) -> tuple[Rendered, tuple[Run, ...]]:
            text, runs = self._renderer.template.render_traced(messages[: len(part.turns)], None)
            return self._renderer.located(part, text, runs, self._policy), runs

        try:
            rendered, runs = render(conversation)
            self._check(conversation, rendered, lambda part: render(part)[0])
        except (RowError, *TEMPLATE_ERRORS) as error:
            return _Lost(str(error))
        if watch.lost is not None:
            return _Lost(watch.lost)
        slots = [run for run in runs if run.source.field not in ("role", "generation")]
        if any(run.begin == run.end for run in slots):
            return None
        if any(run.cuts is None or run.offset == NO_OFFSET for run in slots):
            return _Lost("a part of a text")
        return _cut_out(rendered.text, slots, rendered)


def _merged(old: _Node, new: _Node, guards: Sequence[Guard]) -> _Node:
    """The old questions with the new way in them: a template asks the same things until an answer differs."""
    if old is None:
        return new
    if not isinstance(old, _Ask) or not isinstance(new, _Ask):
        return _Lost("the template does not always ask the same")
    if (old.source, old.cuts, old.test, old.argument) != (new.source, new.cuts, new.test, new.argument):
        return _Lost("the template does not always ask the same")
    if guards[0].answer:
        old.yes = _merged(old.yes, new.yes, guards[1:])
    else:
        old.no = _merged(old.no, new.no, guards[1:])
    return old


def _shape(conversation: Conversation) -> Shape | None:
    """What decides a render beside the texts: roles, wishes and keys, in order; None if there is more than texts."""
    if conversation.tools is not None:
        return None
    shape = []
    for turn in conversation.turns:
        if turn.details:
            return None
        message = turn.message
        for value in message.values():
            if type(value) is not str:
                return None
        shape.append((message["role"], turn.train, *message))
    return tuple(shape)


def _cut_out(text: str, slots: Sequence[Run], rendered: Rendered) -> Skeleton | _Lost:
    """The skeleton of a render; lost if a trained span begins or ends inside a slot."""
    edges = [0, *(edge for run in slots for edge in (run.begin, run.end)), len(text)]
    literals = [Span(edges[at], edges[at + 1]) for at in range(0, len(edges), 2)]

    def place(char: int) -> Place | None:
        number = next((n for n, span in enumerate(literals) if span.begin <= char <= span.end), None)
        return None if number is None else Place(number, char - literals[number].begin)

    trained = [(place(span.begin), place(span.end)) for span in rendered.spans]
    kept = tuple((begin, end) for begin, end in trained if begin is not None and end is not None)
    if len(kept) < len(trained):
        return _Lost("a span that ends inside a text")
    return Skeleton(
        tuple(text[span.begin : span.end] for span in literals),
        tuple(Slot(run.source.message, run.source.field, run.cuts or ()) for run in slots),
        kept,
    )


def _length(text: str, unit: str) -> int:
    return len(text) if unit == "chars" or text.isascii() else len(text.encode())
