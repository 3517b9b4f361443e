"""Conversations -> texts with their trained characters, by a skeleton where one is known, else by the chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from whet.core.errors import RowError
from whet.core.log import warn
from whet.core.types import Conversation, Turn
from whet.data.ledger import HISTORY_CHOICE, REWRITTEN
from whet.data.templates.history import Change, history_change, trained_answers
from whet.data.templates.render import Rendered, Renderer, TrainPolicy
from whet.data.templates.skeleton import Skeletons
from whet.data.texts import TextBatch


class ConversationWriter:
    """Writes conversations into batches of texts.

    Args:
        renderer: of the chat template.
        policy: which turns are trained.
        keeps_history: accept a template that writes earlier turns otherwise.
        where: place of the dataset in the YAML, for a warning.
    """

    def __init__(self, renderer: Renderer, policy: TrainPolicy, *, keeps_history: bool, where: str) -> None:
        self._renderer, self._policy = renderer, policy
        self._keeps_history, self._where = keeps_history, where
        self._skeletons = Skeletons(renderer, policy, self._refuse_rewritten)
        self._warned = False

    def add(self, conversation: Conversation, batch: TextBatch) -> int:
        """Add the text of a conversation to a batch; returns its number there.

        Raises:
            RowError: the template refuses it, or rewrites its earlier turns.
        """
        found = self._skeletons.find(conversation)
        if found is not None:
            number = batch.fill(*found)
        else:
            renderer, policy = self._renderer, self._policy
            rendered = renderer.render(conversation, policy)
            self._refuse_rewritten(conversation, rendered, lambda part: renderer.render(part, policy))
            number = batch.add(rendered)
        if batch.first is None:
            batch.first = (conversation, number)
        return number

    def check(self, batch: TextBatch) -> None:
        """Compare one render of a batch with transformers' own: training on another text must not happen."""
        if batch.first is not None:
            conversation, number = batch.first
            self._renderer.check(conversation, batch.texts[number])

    def _refuse_rewritten(
        self, conversation: Conversation, rendered: Rendered, render: Callable[[Conversation], Rendered]
    ) -> None:
        if self._keeps_history or len(conversation.turns) < 3:
            return
        change, number = history_change(conversation, rendered, self._policy, render)
        if change is Change.TEXTS:
            raise RowError(REWRITTEN, f"message {number} is rendered otherwise when it is the last")
        if change is Change.WORDS and not self._warned:
            self._warned = True
            warn(
                f"{self._where}: the chat template writes other words around an answer when it is the last; "
                f"{HISTORY_CHOICE}"
            )


def refuse_untrained(conversation: Conversation, policy: TrainPolicy) -> None:
    """Raise RowError for a conversation with no turn to train."""
    turns = conversation.turns
    if not any(policy.trains(turn.role) if turn.train is None else turn.train for turn in turns):
        if any(detail.train for turn in turns for detail in turn.details):
            return
        wanted = " or ".join(sorted(policy.roles or ()))
        roles = ", ".join(dict.fromkeys(turn.role for turn in turns))
        raise RowError(f"no {wanted} turn", f"its turns are of: {roles}" if roles else "it has no turns")


def exploded(conversation: Conversation, policy: TrainPolicy) -> list[Conversation]:
    """A conversation for each trained answer, which is its last turn and all that is trained of it.

    Raises:
        RowError: no answer is trained.
    """
    turns = conversation.turns
    answers = trained_answers(conversation, policy)
    if not answers:
        raise RowError("no assistant turn", "`explode_turns` makes a sample of each trained answer, and there is none")
    return [Conversation((*_context(turns[:at]), turns[at]._replace(train=True)), conversation.tools) for at in answers]


def answered(prompt: Sequence[Turn], answer: Sequence[Turn], tools: Sequence[object] | None) -> Conversation:
    """A prompt and an answer as one conversation, of which the answer is trained."""
    return Conversation((*_context(prompt), *(turn._replace(train=True, details=()) for turn in answer)), tools)


def _context(turns: Sequence[Turn]) -> list[Turn]:
    """Turns of which nothing is trained."""
    return [turn._replace(train=False, details=()) for turn in turns]
