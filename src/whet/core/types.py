"""The values that flow from a row of a dataset to a sample, and the facts of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

IGNORED = -100
"""The label of a token that is not a target; the value that PyTorch's cross entropy skips."""


@dataclass(frozen=True, slots=True)
class TrainRange:
    """Characters ``[begin, end)`` of a message's content, and whether they are trained."""

    begin: int
    end: int
    train: bool


class Turn(NamedTuple):
    """One message of a conversation. A tuple, because millions are made and a frozen dataclass takes longer.

    Attributes:
        message: exactly what the chat template sees; holds at least ``role``.
        train: the row's own wish for this turn; None leaves it to the roles that are trained.
        details: ranges of the content that differ from ``train``.
    """

    message: Mapping[str, Any]
    train: bool | None = None
    details: tuple[TrainRange, ...] = ()

    @property
    def role(self) -> str:
        return str(self.message["role"])


class Conversation(NamedTuple):
    """Messages to be rendered by a chat template, and the tools offered in it (kept verbatim)."""

    turns: tuple[Turn, ...]
    tools: Sequence[Any] | None = None

    @property
    def messages(self) -> list[dict[str, Any]]:
        return [dict(turn.message) for turn in self.turns]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of raw text and whether it is trained."""

    text: str
    train: bool


@dataclass(frozen=True, slots=True)
class Document:
    """Raw text in segments; no chat template touches it.

    Attributes:
        segments: the text, in order; tokenised as one string.
        add_bos: put the tokenizer's beginning-of-sequence token first, if it has one. Not trained.
        add_eos: put the end-of-sequence token last. Trained when the last segment is.
    """

    segments: tuple[Segment, ...]
    add_bos: bool = False
    add_eos: bool = False


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row that came as token ids; ``supervised[i]`` says whether ``input_ids[i]`` is a target. Equal lengths."""

    input_ids: Sequence[int]
    supervised: Sequence[bool]


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt and two answers to it, the first preferred."""

    prompt: tuple[Turn, ...]
    chosen: tuple[Turn, ...]
    rejected: tuple[Turn, ...]
    tools: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class PreferenceText:
    """As `Preference`, in raw text: no chat template touches it, so it holds every special token it needs."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Unpaired:
    """One prompt, one answer to it, and whether that answer is wanted (Kahneman-Tversky optimisation)."""

    prompt: tuple[Turn, ...]
    completion: tuple[Turn, ...]
    label: bool
    tools: Sequence[Any] | None = None


@dataclass(frozen=True, slots=True)
class UnpairedText:
    """As `Unpaired`, in raw text."""

    prompt: str
    completion: str
    label: bool


@dataclass(frozen=True, slots=True)
class Stepwise:
    """A prompt and the steps of a solution, each right or wrong (process reward). Raw text.

    Attributes:
        prompt: what is asked; not labelled.
        steps: the solution, without separators; at least one.
        labels: whether each step is right; as many as ``steps``.
        separator: put after each step; the label of a step stands on its last token.
        max_completion_length: most tokens of the steps and their separators; None for no limit.
        last_only: only the last step is labelled.
    """

    prompt: str
    steps: tuple[str, ...]
    labels: tuple[bool, ...]
    separator: str = "\n"
    max_completion_length: int | None = None
    last_only: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that the model itself answers while it trains (GRPO, EBFT).

    Attributes:
        turns: the prompt's messages; empty where the prompt is ``text``.
        tools: offered in the prompt, verbatim.
        answer: the reference answer, where the row has one.
        columns: the row's other columns, verbatim; reward functions read them.
        text: a prompt of raw text, which no chat template touches; None where it is messages.
    """

    turns: tuple[Turn, ...] = ()
    tools: Sequence[Any] | None = None
    answer: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True, slots=True)
class Several:
    """A row that holds several samples, all of one kind (each answer of a conversation, say); at least one."""

    samples: tuple[Sample, ...]


Sample = (
    Conversation
    | Document
    | Tokens
    | Preference
    | PreferenceText
    | Unpaired
    | UnpairedText
    | Stepwise
    | Prompt
    | Several
)


@dataclass(frozen=True, slots=True)
class Hardware:
    """The facts of the machine that a run depends on.

    Attributes:
        device: "cpu", "cuda" or "mps".
        device_name: as the vendor calls it.
        num_devices: accelerators visible to this process (1 on CPU).
        world_size, rank, local_rank: of the process group to be joined; 1, 0, 0 outside a launcher.
        bf16: whether bfloat16 arithmetic is native on the device.
        num_cpus: cores this process may use.
        memory_bytes: of one device (of the host, on CPU).
        compute_capability: of a CUDA device, as NVIDIA numbers its generations ((9, 0) for Hopper); None elsewhere.
    """

    device: str
    device_name: str = ""
    num_devices: int = 1
    world_size: int = 1
    rank: int = 0
    local_rank: int = 0
    bf16: bool = False
    num_cpus: int = 1
    memory_bytes: int = 0
    compute_capability: tuple[int, int] | None = None
