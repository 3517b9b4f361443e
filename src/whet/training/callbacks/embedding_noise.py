"""NEFTune (Jain et al., 2023, arXiv:2310.05914): uniform noise on the embeddings while training.

The paper scales it by alpha / sqrt(L d), L the length of the sample. transformers takes the length of the row, which in
a pack is that of all documents together, and with padding that of the longest; here L is each document's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from whet.model.loss import innermost


class EmbeddingNoise(TrainerCallback):
    """Adds the noise from the beginning of training to its end, and never in an evaluation.

    Args:
        alpha: 5 in the paper.
    """

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._lengths_BT: torch.Tensor | None = None
        self._hooks: list[RemovableHandle] = []

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None
        base: Any = innermost(model)
        decoder: torch.nn.Module = base.base_model  # called with the batch, whoever computes the logits
        self._hooks = [
            decoder.register_forward_pre_hook(self._see_lengths, with_kwargs=True),
            base.get_input_embeddings().register_forward_hook(self._add),
        ]

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _see_lengths(self, decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._lengths_BT = document_lengths(kwargs.get("attention_mask"), kwargs.get("position_ids"))

    def _add(self, embedding: torch.nn.Module, args: tuple[Any, ...], output_BTD: torch.Tensor) -> torch.Tensor | None:
        if not embedding.training:
            return None
        lengths = self._lengths_BT
        if lengths is None or lengths.shape[-1] != output_BTD.shape[1]:
            lengths = output_BTD.new_full((1, output_BTD.shape[1]), output_BTD.shape[1])
        size = self._alpha / (lengths.float() * output_BTD.shape[-1]).sqrt()
        noise = torch.empty_like(output_BTD).uniform_(-1, 1)
        return output_BTD + noise * size.to(output_BTD.dtype)[..., None]


def document_lengths(attention_mask: torch.Tensor | None, position_ids: torch.Tensor | None) -> torch.Tensor | None:
    """int64[B, T] or [1, T]: of each token, the length of the document that it is in; None where nothing tells.

    Args:
        attention_mask: [B, T], 1 where a padded row has a token.
        position_ids: [B, T], which begin again at 0 with each document of a flattened row.

    >>> document_lengths(None, torch.tensor([[0, 1, 2, 0, 1]]))
    tensor([[3, 3, 3, 2, 2]])
    >>> document_lengths(torch.tensor([[1, 1, 0], [1, 1, 1]]), None)
    tensor([[2, 2, 2],
            [3, 3, 3]])
    """
    if attention_mask is not None and attention_mask.ndim == 2:
        return attention_mask.sum(dim=1, keepdim=True).clamp(min=1).expand_as(attention_mask)
    if position_ids is None or position_ids.ndim != 2:
        return None
    begins = position_ids == 0
    begins[:, 0] = True  # of a row that does not begin at 0
    document = begins.flatten().cumsum(0) - 1
    return torch.bincount(document)[document].view_as(position_ids)
