"""What a chat needs of a model, whatever runs it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from whet.serving.sampling import Sampling


class Engine(Protocol):
    """A model that continues conversations.

    Attributes:
        description: one line that says which model answers.
        default_sampling: the settings the model's own generation config asks for.
    """

    description: str
    default_sampling: Sampling

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """The ids the model sees: the training template's render, with the header of the answer."""
        ...

    def stream(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Iterator[str]:
        """The answer in pieces of text, as they become known."""
        ...
