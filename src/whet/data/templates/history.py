"""Whether a chat template writes an earlier turn otherwise once more turns follow it.

Templates of thinking models drop the reasoning of earlier turns; others move the system text to the last question. A
whole conversation rendered once then trains the model on prompts that it is never given when it answers. The user
chooses: each answer as a sample of its own (``explode_turns``), or the text as the template writes it
(``keep_history``).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

from whet.core.errors import RowError
from whet.core.types import Conversation
from whet.data.templates.render import TEMPLATE_ERRORS, Rendered, TrainPolicy


class Change(Enum):
    """What a template does with earlier turns: nothing, it writes other words of its own, or other texts of theirs."""

    NONE = 0
    WORDS = 1
    TEXTS = 2


def history_change(
    conversation: Conversation,
    rendered: Rendered,
    policy: TrainPolicy,
    render: Callable[[Conversation], Rendered],
) -> tuple[Change, int]:
    """The worst change among some of the trained answers that are not the last, and the number of the message.

    Args:
        rendered: the whole conversation.
        render: renders its beginnings; raises RowError or one of `TEMPLATE_ERRORS`.

    Each such answer is rendered once more as the last turn; what stands up to its end must be the beginning of the
    whole.
    """
    worst, number = Change.NONE, 0
    for at in _to_compare(conversation, rendered, policy):
        whole = next((region for region in rendered.regions if region.message == at), None)
        try:
            alone = render(Conversation(conversation.turns[: at + 1], conversation.tools))
        except (RowError, *TEMPLATE_ERRORS):
            continue  # the template takes no conversation that ends here, so it is never asked to answer here
        own = next((region for region in alone.regions if region.message == at), None)
        if own is None:
            continue
        if whole is not None and alone.text[: own.end] == rendered.text[: whole.end]:
            continue
        change = (
            Change.TEXTS if whole is None or _texts(alone, own.end) != _texts(rendered, whole.end) else Change.WORDS
        )
        if change.value > worst.value:
            worst, number = change, at
    return worst, number


def _to_compare(conversation: Conversation, rendered: Rendered, policy: TrainPolicy) -> list[int]:
    """Answers that tell what a template does with the others: the first and the last before the end, of all, of those
    that bring more than a role and a text, and of those whose text is not written as the row has it. To try every
    answer would take the square of their number."""
    turns = conversation.turns
    earlier = [at for at in trained_answers(conversation, policy) if at < len(turns) - 1]
    richer = [at for at in earlier if len(turns[at].message) > 2]
    shown = {region.message: rendered.text[region.begin : region.end] for region in rendered.regions}
    altered = [at for at in earlier if str(turns[at].message.get("content") or "").strip() not in shown.get(at, "")]
    return sorted({at for answers in (earlier, richer, altered) for at in (*answers[:1], *answers[-1:])})


def trained_answers(conversation: Conversation, policy: TrainPolicy) -> list[int]:
    """Numbers of the assistant turns that are trained."""
    return [
        number
        for number, turn in enumerate(conversation.turns)
        if turn.role == "assistant" and (policy.trains(turn.role) if turn.train is None else turn.train)
    ]


def _texts(rendered: Rendered, end: int) -> list[str]:
    """What the row itself wrote, up to a character."""
    return [rendered.text[span.begin : min(span.end, end)] for span in rendered.written if span.begin < end]
