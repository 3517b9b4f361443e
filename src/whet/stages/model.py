"""The model: loaded, adapted, made fast, in the hands of its method's trainer, and scored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.core.log import say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Trainer

    from whet.data.order import Order
    from whet.data.store import PreparedSet
    from whet.data.streaming import StreamedSet
    from whet.training.scoring import Score
    from whet.training.steps import StepPlan


def make_model(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase) -> tuple[torch.nn.Module, bool]:
    """The model with its adapter, and whether it keeps the documents of a packed row apart (promise G4).

    Raises:
        ModelError: packing is asked for and this model cannot be packed.
    """
    import torch

    from whet.model.architecture import Unsupported
    from whet.model.isolation import isolates_documents
    from whet.model.levers import install_levers
    from whet.model.load import load_model
    from whet.model.trainable import trainable_summary

    config = resolved.config
    torch.manual_seed(resolved.seed)  # an adapter's start and new rows of the embedding are drawn
    loaded = load_model(config, resolved, tokenizer)
    say(f"attention: {loaded.attention.name or 'default'}: {loaded.attention.why}")
    autocast = getattr(torch, resolved.autocast_dtype) if resolved.autocast_dtype else None
    isolates = isolates_documents(loaded.model, autocast_dtype=autocast)
    if isinstance(isolates, Unsupported) and resolved.sample_packing:
        found = f"sample_packing: this model mixes packed documents: {isolates.reason}"
        fix = "write sample_packing: false, or leave attn_implementation to whet"
        raise ModelError(Problem(config.where("sample_packing"), found, fix, "sample_packing"))
    model: torch.nn.Module = loaded.model
    if config.adapter.adapter is not None:
        from whet.model.adapters import adapt

        model = adapt(loaded.model, config, resolved)
    elif config.model.spectrum_top_fraction is not None:
        from whet.model.spectrum import train_by_spectrum

        train_by_spectrum(loaded.model, config, resolved)
    say(str(trainable_summary(model)))
    for sentence in install_levers(model, config, resolved):
        say(sentence)
    return model, not isinstance(isolates, Unsupported)


def make_trainer(
    resolved: ResolvedRun,
    tokenizer: PreTrainedTokenizerBase,
    prepared: PreparedSet | StreamedSet,
    order: Order | None,
    plan: StepPlan,
) -> Trainer:
    """The model, in the hands of its method's trainer."""
    from whet.distributed.launch import join_ranks
    from whet.methods import METHODS
    from whet.methods.inputs import MethodInputs

    join_ranks(resolved.device, resolved.world_size, resolved.config.distributed.ddp_timeout)
    model, isolates = make_model(resolved, tokenizer)
    inputs = MethodInputs(
        resolved, plan, model, tokenizer, order, prepared.train, prepared.validation, isolates_documents=isolates
    )
    trainer: Trainer = METHODS.load(resolved.method, resolved.config.where("rl"))(inputs)
    return trainer


def score(resolved: ResolvedRun, trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> Score | None:
    """Exact match on `score_dataset`, on the first rank alone; None without one."""
    section = resolved.config.score
    if section.score_dataset is None or resolved.hardware.rank != 0:
        return None
    from whet.data.sources import read_json_lines
    from whet.training.scoring import Prompting, exact_match

    template = resolved.config.template
    rows = read_json_lines(section.score_dataset, limit=section.score_max_rows)
    prompting = Prompting(
        template.default_system_message, template.chat_template_kwargs or {}, template.eot_tokens or ()
    )
    with _autocast(resolved):
        return exact_match(
            trainer.model,
            tokenizer,
            rows,
            max_new_tokens=section.score_max_new_tokens,
            where=resolved.config.where("score_dataset"),
            prompting=prompting,
        )


def _autocast(resolved: ResolvedRun) -> torch.autocast:
    """The arithmetic of training, which transformers puts around a model when training begins."""
    import torch

    dtype = getattr(torch, resolved.autocast_dtype) if resolved.autocast_dtype else None
    return torch.autocast(resolved.device, dtype=dtype, enabled=dtype is not None)
