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
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from whet.core.errors import RowError
from whet.core.types import Conversation
from whet.data.templates.regions import Span
from whet.data.templates.render import TEMPLATE_ERRORS, Rendered, Renderer, TrainPolicy
from whet.data.templates.traced import Run, Source, trace
from whet.data.templates.watched import TESTS, Guard, Watch, Watched, cut

MOST_LEAVES = 10_000
"""Skeletons and questions kept in all; a corpus with more shapes renders the others by the template."""

_UNFOLLOWED = ("autoescape",)
"""Templates with these words are always run: escaping hides where texts go."""

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


@dataclass(slots=True)
class _Leaf:
    """Where all questions are answered: the slots, and a skeleton for each set of slots that are not empty.

    A template writes an empty text too, but what stands around it may then be another turn's, so a conversation with
    empty texts is learnt by itself.
    """

    slots: tuple[Slot, ...]
    full: Skeleton | _Lost | None = None
    others: dict[tuple[bool, ...], Skeleton | _Lost] = field(default_factory=dict)

    def texts(self, messages: Sequence[Mapping[str, str]]) -> list[str]:
        """The texts of the slots."""
        return [
            cut(messages[slot.message][slot.field], slot.cuts) if slot.cuts else messages[slot.message][slot.field]
            for slot in self.slots
        ]

    def skeleton(self, texts: Sequence[str]) -> Skeleton | _Lost | None:
        return self.full if all(texts) else self.others.get(tuple(map(bool, texts)))

    def learn(self, texts: Sequence[str], skeleton: Skeleton | _Lost) -> None:
        if all(texts):
            self.full = skeleton
        else:
            self.others[tuple(map(bool, texts))] = skeleton


_Node = _Ask | _Leaf | _Lost | None


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
        if type(node) is _Lost:
            return None
        if type(node) is not _Leaf:
            return self._learnt(shape, conversation, None)
        texts = node.texts(messages)
        skeleton = node.skeleton(texts)
        if skeleton is None:
            return self._learnt(shape, conversation, node)
        if type(skeleton) is not Skeleton:
            return None
        return skeleton, texts if skeleton is node.full else [text for text in texts if text]

    def _learnt(
        self, shape: Shape, conversation: Conversation, known: _Leaf | None
    ) -> tuple[Skeleton, list[str]] | None:
        """Render a conversation under watch and keep what it teaches; ``known`` is the leaf that it leads to."""
        if self._leaves >= MOST_LEAVES:
            return None
        self._leaves += 1
        watch = Watch()
        slots, learnt = self._skeleton(conversation, watch)
        leaf = known or _Leaf(slots)
        texts = leaf.texts([turn.message for turn in conversation.turns])
        if known is not None and known.slots != slots and type(learnt) is Skeleton:
            learnt = _Lost("an empty text changes what is written")
        leaf.learn(texts, learnt)
        if known is None:
            self._add(shape, leaf if isinstance(learnt, Skeleton) else learnt, watch.guards)
        return (learnt, [text for text in texts if text]) if type(learnt) is Skeleton else None

    def _add(self, shape: Shape, leaf: _Leaf | _Lost, guards: Sequence[Guard]) -> None:
        """Enter the way to a leaf."""
        node: _Node = leaf
        for guard in reversed(guards):
            ask = _Ask(guard.source, guard.cuts, guard.test, guard.argument)
            ask.yes, ask.no = (node, None) if guard.answer else (None, node)
            node = ask
        self._roots[shape] = _merged(self._roots.get(shape), node, guards)

    def _skeleton(self, conversation: Conversation, watch: Watch) -> tuple[tuple[Slot, ...], Skeleton | _Lost]:
        messages = [
            {
                key: trace(value, Source(n, key)) if key == "role" else Watched.of(value, Source(n, key), watch)
                for key, value in turn.message.items()
            }
            for n, turn in enumerate(conversation.turns)
        ]

        beginnings: list[tuple[int, Rendered]] = []

        def render(part: Conversation) -> Rendered:
            text, runs = self._renderer.template.render_traced(messages[: len(part.turns)], None)
            return self._renderer.located(part, text, runs, self._policy)

        def render_beginning(part: Conversation) -> Rendered:
            rendered = render(part)
            beginnings.append((len(part.turns) - 1, rendered))
            return rendered

        try:
            rendered = render(conversation)
            self._check(conversation, rendered, render_beginning)
        except (RowError, *TEMPLATE_ERRORS) as error:
            return (), _Lost(str(error))
        if watch.lost is not None:
            return (), _Lost(watch.lost)
        runs = _slots(rendered)
        if any(run.cuts is None for run in runs):
            return (), _Lost("a part of a text")
        for message, beginning in beginnings:
            guards = _alike(message, beginning, rendered, conversation)
            if guards is None:
                return (), _Lost("the beginning of a conversation is written otherwise")
            watch.guards += guards
        slots = tuple(Slot(run.source.message, run.source.field, run.cuts or ()) for run in runs)
        return slots, _cut_out(rendered.text, [run for run in runs if run.begin < run.end], rendered)


def _slots(rendered: Rendered, end: int | None = None) -> list[Run]:
    """The runs of messages' texts, empty ones too; up to a character."""
    return [
        run
        for run in rendered.runs
        if run.source.field not in ("role", "generation") and (end is None or run.begin < end)
    ]


def _alike(message: int, beginning: Rendered, whole: Rendered, conversation: Conversation) -> list[Guard] | None:
    """What must hold of other texts for a beginning to stand in the whole as it stands alone up to a message's end.

    Both write the same fields in the same order: where they cut one differently, both cuts must come out alike. None
    where they do not, so that nothing can be said of other texts.
    """
    ends = [
        next((region.end for region in rendered.regions if region.message == message), None)
        for rendered in (beginning, whole)
    ]
    if ends[0] is None:
        return []
    alone, within = _slots(beginning, ends[0]), _slots(whole, ends[1])
    if [run.source for run in alone] != [run.source for run in within]:
        return None
    guards = []
    for one, other in zip(alone, within, strict=True):
        if one.cuts is None or other.cuts is None:
            return None
        if one.cuts != other.cuts:
            text = conversation.turns[one.source.message].message[one.source.field]
            cuts = (one.cuts, other.cuts)
            guards.append(Guard(one.source, (), "alike", cuts, TESTS["alike"](text, cuts)))
    return guards


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
