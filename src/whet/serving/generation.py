"""The engine of transformers: ``model.generate`` in a thread of its own, its text piece by piece."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import torch
from jinja2.exceptions import TemplateError
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from whet.core.errors import ModelError, Problem
from whet.serving.incremental import IncrementalText
from whet.serving.sampling import Sampling


class GenerationEngine:
    """Answers with a transformers model; see `whet.serving.engine.Engine`.

    Args:
        model: a causal language model in evaluation mode.
        tokenizer: with the chat template of training.
        stops: ids that end an answer.
        description: one line that says which model this is.
        template_kwargs: variables of the chat template, as in training.
        default_sampling: the settings used unless the user asks for others.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        stops: Sequence[int],
        description: str,
        template_kwargs: Mapping[str, Any] | None = None,
        default_sampling: Sampling | None = None,
    ) -> None:
        self.description = description
        self.default_sampling = default_sampling or Sampling()
        self._model = model
        self._tokenizer = tokenizer
        self._stops = list(stops)
        self._template_kwargs = dict(template_kwargs or {})

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """``apply_chat_template(messages, add_generation_prompt=True)``, nothing more.

        A model without a chat template continues text: the ids are those of all that was said, joined.

        Raises:
            ModelError: the template refuses these messages (a system turn it has no place for, for instance).
        """
        if not self._tokenizer.chat_template:
            return list(self._tokenizer("".join(message["content"] for message in messages))["input_ids"])
        try:
            return list(
                self._tokenizer.apply_chat_template(
                    [dict(message) for message in messages],
                    add_generation_prompt=True,
                    tokenize=True,
                    return_dict=False,
                    **self._template_kwargs,
                )
            )
        except (TemplateError, ArithmeticError, RecursionError) as error:
            raise ModelError(
                Problem(
                    "chat template",
                    f"it refuses this conversation: {str(error)[:500]}",
                    "/undo the last turn, or begin a /new one",
                )
            ) from error

    def stream(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Iterator[str]:
        """Yield the answer as it is generated; closing the iterator ends the generation.

        Raises:
            ModelError: see `prompt_ids`; or the prompt leaves no room in the model's context.
        """
        ids = self.prompt_ids(messages)
        room = self._room(len(ids))
        pieces = _Pieces(self._tokenizer)
        answer = Thread(
            target=self._generate, args=(ids, sampling, min(room, sampling.max_new_tokens), pieces), daemon=True
        )
        answer.start()
        try:
            yield from pieces
        finally:
            pieces.cancelled.set()
            answer.join()

    def _room(self, num_prompt_tokens: int) -> int:
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        room = (context or 2**31) - num_prompt_tokens
        if room <= 0:
            raise ModelError(
                Problem(
                    "chat",
                    f"the conversation has {num_prompt_tokens} tokens, the model's context {context}",
                    "begin a /new one",
                )
            )
        return room

    def _generate(self, ids: list[int], sampling: Sampling, max_new_tokens: int, pieces: _Pieces) -> None:
        try:
            if sampling.seed is not None:
                torch.manual_seed(sampling.seed)
            input_ids = torch.tensor([ids], device=self._model.device)
            with torch.inference_mode():
                self._model.generate(
                    input_ids=input_ids,
                    attention_mask=torch.ones_like(input_ids),
                    generation_config=self._generation_config(sampling, max_new_tokens),
                    streamer=pieces,
                    stopping_criteria=StoppingCriteriaList([_Cancelled(pieces.cancelled)]),
                )
        # Whatever goes wrong in this thread belongs to the one that waits for the text: it is raised there.
        except Exception as error:  # noqa: BLE001
            pieces.fail(error)

    def _generation_config(self, sampling: Sampling, max_new_tokens: int) -> GenerationConfig:
        choices: dict[str, Any] = {"do_sample": sampling.temperature > 0}
        if sampling.temperature > 0:
            choices |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
            choices["min_p"] = sampling.min_p or None
        pad = self._tokenizer.pad_token_id
        return GenerationConfig(
            max_new_tokens=max_new_tokens,
            repetition_penalty=sampling.repetition_penalty,
            eos_token_id=self._stops or None,
            pad_token_id=pad if pad is not None else (self._stops or [0])[0],
            **choices,
        )


class _Pieces(BaseStreamer):
    """The text of a generation, as an iterator for another thread.

    transformers' own TextStreamer holds text back until a space and forgets the tokens before a line break, which
    changes the text of tokenizers that write a word's space with its first token.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.cancelled = Event()
        self._text = IncrementalText(tokenizer)
        self._queue: SimpleQueue[str | Exception | None] = SimpleQueue()
        self._prompt_is_next = True

    def put(self, value: torch.Tensor) -> None:
        """Take token ids; the first call brings the prompt."""
        if self._prompt_is_next:
            self._prompt_is_next = False
            return
        for token in value.flatten().tolist():
            self._queue.put(self._text.add(token))

    def end(self) -> None:
        self._queue.put(self._text.rest())
        self._queue.put(None)

    def fail(self, error: Exception) -> None:
        self._queue.put(error)

    def __iter__(self) -> Iterator[str]:
        while (piece := self._queue.get()) is not None:
            if isinstance(piece, Exception):
                raise piece
            if piece:
                yield piece


class _Cancelled(StoppingCriteria):
    def __init__(self, cancelled: Event) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), self._cancelled.is_set(), device=input_ids.device)
