"""Direct preference optimisation: the preferred of two answers becomes likelier, measured against a reference model."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from whet.config import Config
from whet.core.errors import ConfigError, Problem
from whet.data.store import PreferenceSplit
from whet.methods.inputs import MethodInputs
from whet.training.tracking import prepare_tracking

if TYPE_CHECKING:
    from whet.methods.trl_bridge import PreferenceTrainer

BETA = 0.1
"""`rl_beta` where nothing is written; the value of the paper's experiments (arXiv:2305.18290, appendix B)."""


def build_trainer(inputs: MethodInputs) -> PreferenceTrainer:
    """A trainer that is ready to train and to evaluate.

    Raises:
        ConfigError: trl is not installed, or it refuses a combination of keys.
    """
    config = inputs.resolved.config
    if find_spec("trl") is None:
        found = "rl: dpo needs the package trl, which is not installed"
        raise ConfigError(Problem(config.where("rl"), found, "pip install trl", "rl"))
    from whet.methods.trl_bridge import dpo_trainer, drop_reference_adapter
    from whet.training.arguments import argument_values
    from whet.training.callbacks.choose import add_callbacks
    from whet.training.loader import samples_of_step
    from whet.training.optimizers import build_optimizer
    from whet.training.schedules import build_scheduler, schedule_from

    resolved, plan, method = inputs.resolved, inputs.plan, config.method
    train, order = inputs.train, inputs.order
    assert isinstance(train, PreferenceSplit)
    assert order is not None
    assert inputs.validation is None or isinstance(inputs.validation, PreferenceSplit)
    prepare_tracking(resolved)
    schedule = schedule_from(config, plan.total_steps, plan.warmup_steps)
    try:
        trainer = dpo_trainer(
            inputs.model,
            _reference(inputs.model, config),
            inputs.tokenizer,
            train,
            inputs.validation,
            order,
            argument_values(resolved, plan),
            beta=BETA if method.rl_beta is None else method.rl_beta,
            losses=method.dpo_loss_type or ("sigmoid",),
            loss_weights=method.dpo_loss_weights,
            label_smoothing=method.dpo_label_smoothing or 0.0,
            precompute_reference=method.precompute_ref_log_probs,
            make_optimizer=lambda model: build_optimizer(model, config, trainer.args),
            make_scheduler=lambda optimizer, steps: build_scheduler(optimizer, schedule),
        )
    except (ValueError, NotImplementedError) as error:
        found = f"TRL refuses these settings: {error}"
        raise ConfigError(Problem(config.where("rl"), found, "change them", "rl")) from error
    if starts_as_nothing(config):
        drop_reference_adapter(trainer.model)

    def rows(step: int) -> list[str]:
        return [train.place(number) for number in samples_of_step(order, step, trainer.args)]

    add_callbacks(trainer, resolved, rows=rows, carried=(trainer.throughput, trainer.figures))
    return trainer


def starts_as_nothing(config: Config) -> bool:
    """Whether the adapter leaves the model unchanged before the first step, so that the base model is the reference."""
    adapter = config.adapter
    return adapter.lora_model_dir is None and adapter.peft_init_lora_weights in (None, True, "gaussian")


def _reference(model: Any, config: Config) -> Any:
    """A frozen copy of a model that is trained in full; an adapter needs none."""
    if config.adapter.adapter is not None or config.method.precompute_ref_log_probs:
        return None
    return copy.deepcopy(model).requires_grad_(False).eval()
