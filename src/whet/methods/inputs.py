"""What a method is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from whet.config.resolve import ResolvedRun
from whet.data.mixing import mix_of
from whet.data.order import Order
from whet.data.store import PreferenceSplit, Split
from whet.data.streaming import StreamSetup
from whet.training.steps import StepPlan

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, eq=False)
class MethodInputs:
    """Everything that the stages before made.

    Attributes:
        model: with its adapter, if it has one.
        order: of the training samples; None for a stream.
        plan: counted from ``order``.
        train, validation: a `PreferenceSplit` for preference methods, else a `Split`; to train on also a stream.
        isolates_documents: whether the model keeps the documents of one flattened row apart; False gives every
            sample a padded row of its own.
    """

    resolved: ResolvedRun
    plan: StepPlan
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    order: Order | None
    train: Split | PreferenceSplit | StreamSetup
    validation: Split | PreferenceSplit | None = None
    isolates_documents: bool = True


def training_order(resolved: ResolvedRun, train: Split | PreferenceSplit) -> Order:
    """The order of a run's training samples.

    Raises:
        ConfigError: the mix names a dataset that there is not, or one without samples.
    """
    config = resolved.config
    return Order(
        train.lengths,
        resolved.sequence_len,
        packed=resolved.sample_packing,
        micro_batch_size=resolved.micro_batch_size,
        seed=resolved.seed,
        shuffle=config.data.shuffle_merged_datasets and not config.data.curriculum_sampling,
        mix=mix_of(config, train.lengths, train.source, train.names, resolved.seed),
        neighbours=config.packing.sample_packing_sequentially,
        balance_steps=resolved.global_batch_size if config.packing.sample_packing_balance else None,
        whole_micro_batches=isinstance(train, PreferenceSplit),
    )
