"""How many of a held-out set's answers does the model give exactly? Asked before and after training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from whet.core.errors import DataError, Problem
from whet.model.stops import stop_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUM_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Answer:
    """One scored row: what the model was shown, what it should have said, what it said."""

    prompt: str
    expected: str
    got: str

    @property
    def is_correct(self) -> bool:
        """Equal to the last character; only the white space around the answer is forgiven."""
        return self.got.strip() == self.expected.strip()


@dataclass(frozen=True, slots=True)
class Score:
    """The outcome of one scoring.

    Attributes:
        num_rows: rows asked.
        num_correct: rows answered exactly.
        examples: the first few answers, wrong ones first.
    """

    num_rows: int
    num_correct: int
    examples: tuple[Answer, ...] = ()

    @property
    def share(self) -> float:
        """Correct answers among all, 0 to 1."""
        return self.num_correct / self.num_rows

    def __str__(self) -> str:
        return f"{self.num_correct} of {self.num_rows} exact ({self.share:.1%})"


@dataclass(frozen=True, slots=True)
class Prompting:
    """What the config adds to a row's own messages, so that a question looks as it did in training.

    Attributes:
        system: system message of conversations without one.
        template_kwargs: variables given to the chat template.
        eot_tokens: tokens that end an answer, beside those the tokenizer, the template and the model know.
    """

    system: str | None = None
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    eot_tokens: tuple[str, ...] = ()

    def messages(self, own: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A row's messages as the template sees them."""
        if self.system is None or any(message.get("role") == "system" for message in own):
            return own
        return [{"role": "system", "content": self.system}, *own]


def exact_match(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    conversations: Iterable[Mapping[str, Any]],
    max_new_tokens: int = 64,
    batch_size: int = 64,
    where: str = "score_dataset",
    prompting: Prompting | None = None,
) -> Score:
    """Greedy answers to the conversations, compared with their last assistant turns.

    The prompt is the chat template of all earlier messages with its generation prompt; an answer ends where a chat's
    would (`whet.model.stops`) or after ``max_new_tokens``. The model is left in the mode (train or eval) and with the
    ``use_cache`` setting it came with, and the random state is not touched: greedy decoding draws nothing.

    Args:
        conversations: rows ``{"messages": [..., {"role": "assistant", "content": "the expected answer"}]}``.
        batch_size: prompts that are answered together, padded on the left.
        prompting: what training added to the messages; nothing by default.
        where: how errors name the source of the rows.

    Raises:
        DataError: there is no row, or a row does not end with an assistant's text after at least one other message.
    """
    questions = [_question(row, f"{where}, row {number}") for number, row in enumerate(conversations, start=1)]
    if not questions:
        raise DataError(Problem(where, "no rows", "name a file with at least one conversation"))
    shortest_first = sorted(range(len(questions)), key=lambda index: _size(questions[index][0]))
    answers: dict[int, Answer] = {}
    prompting = prompting or Prompting()
    stops = stop_ids(tokenizer, getattr(model.generation_config, "eos_token_id", None), prompting.eot_tokens)
    with _answering(model):
        for chosen in _batches(shortest_first, batch_size):
            prompts = [
                tokenizer.apply_chat_template(
                    prompting.messages(questions[index][0]),
                    tokenize=False,
                    add_generation_prompt=True,
                    **prompting.template_kwargs,
                )
                for index in chosen
            ]
            replies = _greedy(model, tokenizer, prompts, stops, max_new_tokens)
            for index, prompt, reply in zip(chosen, prompts, replies, strict=True):
                answers[index] = Answer(prompt, questions[index][1], reply)
    in_order = [answers[index] for index in range(len(questions))]
    return Score(
        num_rows=len(in_order),
        num_correct=sum(answer.is_correct for answer in in_order),
        examples=tuple(sorted(in_order, key=lambda answer: answer.is_correct)[:NUM_EXAMPLES]),
    )


def _question(row: Mapping[str, Any], where: str) -> tuple[list[dict[str, Any]], str]:
    """The messages to answer and the expected answer."""
    messages = row.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or len(messages) < 2:
        raise DataError(
            Problem(where, "no list of at least two `messages`", "write a question and its answer as chat messages")
        )
    last = messages[-1]
    if last.get("role") != "assistant" or not isinstance(last.get("content"), str):
        raise DataError(
            Problem(where, "the last message is no assistant's text", "end the row with the answer that is expected")
        )
    return [dict(message) for message in messages[:-1]], last["content"]


def _size(messages: Sequence[Mapping[str, Any]]) -> int:
    return sum(len(str(message.get("content", ""))) for message in messages)


def _batches(indices: Sequence[int], size: int) -> Iterator[list[int]]:
    remaining = iter(indices)
    while batch := list(islice(remaining, size)):
        yield batch


@contextmanager
def _answering(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode with a key-value cache, for as long as the context lasts."""
    was_training, use_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        yield
    finally:
        model.train(was_training)
        model.config.use_cache = use_cache


def _greedy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    stops: list[int],
    max_new_tokens: int,
) -> list[str]:
    """The model's most likely continuations as text, without special tokens."""
    import torch
    from transformers import GenerationConfig

    encoded = tokenizer(prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt")
    ids_BT = encoded["input_ids"].to(model.device)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops or None,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.no_grad():
        generated_BT = model.generate(
            input_ids=ids_BT,
            attention_mask=encoded["attention_mask"].to(model.device),
            generation_config=settings,
        )
    texts: list[str] = tokenizer.batch_decode(generated_BT[:, ids_BT.shape[1] :], skip_special_tokens=True)
    return texts
