"""Rules about batches, and about when to save, evaluate and stop."""

from __future__ import annotations

from whet.config.changes import NAMES, names_in
from whet.config.config import Config
from whet.config.effects import Effect, effect_of
from whet.config.names import FOLLOW_EVALUATIONS
from whet.config.rules.base import Rule, at, clash, first_set
from whet.config.schema import fields
from whet.core.errors import Problem
from whet.core.nearest import suggestion


def batch_is_described_once(config: Config) -> Problem | None:
    return clash(config, "batch_size", "gradient_accumulation_steps", "keep micro_batch_size and one of the two")


def batch_is_made_of_whole_passes(config: Config) -> Problem | None:
    batch = config.batch
    if batch.batch_size is None or batch.batch_size % batch.micro_batch_size == 0:
        return None
    return at(
        config,
        "batch_size",
        f"batch_size {batch.batch_size} is no multiple of micro_batch_size {batch.micro_batch_size}",
        f"write {max(1, batch.batch_size // batch.micro_batch_size) * batch.micro_batch_size}",
    )


def warmup_is_written_once(config: Config) -> Problem | None:
    return clash(config, "warmup_steps", "warmup_ratio", "keep one of them")


def saves_are_counted_once(config: Config) -> Problem | None:
    return clash(config, "save_steps", "saves_per_epoch", "keep one of them")


def evaluations_are_counted_once(config: Config) -> Problem | None:
    return clash(config, "eval_steps", "evals_per_epoch", "keep one of them")


def save_steps_go_with_their_strategy(config: Config) -> Problem | None:
    loop = config.loop
    key = first_set(config, ("save_steps", "saves_per_epoch"))
    if key is None or loop.save_strategy in (None, "steps"):
        return None
    return at(config, key, f"{key} is written, and save_strategy is {loop.save_strategy}", "keep one of them")


def eval_steps_go_with_their_strategy(config: Config) -> Problem | None:
    loop = config.loop
    key = first_set(config, ("eval_steps", "evals_per_epoch"))
    if key is None or loop.eval_strategy in (None, "steps"):
        return None
    return at(config, key, f"{key} is written, and eval_strategy is {loop.eval_strategy}", "keep one of them")


def allowed_changes_are_names(config: Config) -> Problem | None:
    known = {*fields(), *NAMES}
    for name in names_in(config.loop.allow_change):
        if name.partition(".")[0] not in known:
            found = f"allow_change: there is no key '{name}'"
            return at(config, "allow_change", found, suggestion(name, known))
        effect = effect_of(name)
        if name not in NAMES and effect.effect is Effect.FIXED:
            found = f"allow_change: {name} cannot change in the middle of a run: {effect.why}"
            return at(config, "allow_change", found, "begin a new run, from the weights that the old one has made")
    return None


def strategies_by_steps_have_steps(config: Config) -> Problem | None:
    loop = config.loop
    if loop.save_strategy == "steps" and loop.save_steps is None and loop.saves_per_epoch is None:
        return at(config, "save_strategy", "save_strategy is steps, and save_steps is not written", "add save_steps")
    if loop.eval_strategy == "steps" and loop.eval_steps is None and loop.evals_per_epoch is None:
        return at(config, "eval_strategy", "eval_strategy is steps, and eval_steps is not written", "add eval_steps")
    return None


def intervals_are_shares_or_whole_steps(config: Config) -> Problem | None:
    for key in ("eval_steps", "save_steps"):
        steps = config.value(key)
        if steps is not None and steps >= 1 and not float(steps).is_integer():
            return at(config, key, f"{key} is {steps}", "write a whole number of steps, or a share below 1")
    return None


def _evaluates(config: Config) -> bool:
    return bool(config.data.val_set_size or config.data.test_datasets) and config.loop.eval_strategy != "no"


def evaluation_has_rows(config: Config) -> Problem | None:
    if config.data.val_set_size or config.data.test_datasets:
        return None
    key = first_set(config, ("eval_steps", "eval_strategy"))
    if key is None or config.loop.eval_strategy == "no":
        return None
    return at(
        config, key, f"{key} is written, and there is nothing to evaluate on", "add val_set_size or test_datasets"
    )


def the_best_is_known_by_evaluating(config: Config) -> Problem | None:
    loop = config.loop
    if _evaluates(config):
        return None
    wants = {
        "early_stopping_patience": loop.early_stopping_patience is not None,
        "load_best_model_at_end": loop.load_best_model_at_end,
        "save_strategy": loop.save_strategy == "best",
        "lr_scheduler": config.optimizer.lr_scheduler in FOLLOW_EVALUATIONS,
    }
    for key, wanted in wants.items():
        if wanted:
            shown = f"lr_scheduler: {config.optimizer.lr_scheduler}" if key == "lr_scheduler" else key
            return at(config, key, f"{shown} needs evaluations, and none take place", "add val_set_size: 0.05")
    return None


def the_best_model_is_saved(config: Config) -> Problem | None:
    loop = config.loop
    if not loop.load_best_model_at_end or loop.save_strategy == "best":
        return None
    if loop.save_strategy == "no":
        return at(
            config, "load_best_model_at_end", "load_best_model_at_end, and save_strategy is no", "let it save: best"
        )
    if loop.save_steps is None or loop.eval_steps is None or loop.save_steps % loop.eval_steps == 0:
        return None
    return at(
        config,
        "save_steps",
        f"load_best_model_at_end: of the evaluations every {loop.eval_steps} steps, those that are not saved "
        f"(every {loop.save_steps} steps) could be the best",
        f"write a multiple of {loop.eval_steps}",
    )


def resuming_needs_the_optimizer(config: Config) -> Problem | None:
    loop = config.loop
    if not loop.save_only_model or not loop.auto_resume_from_checkpoints:
        return None
    return at(
        config,
        "save_only_model",
        "save_only_model leaves out what auto_resume_from_checkpoints needs",
        "remove one of the two",
    )


LOOP_RULES: tuple[Rule, ...] = (
    batch_is_described_once,
    batch_is_made_of_whole_passes,
    warmup_is_written_once,
    saves_are_counted_once,
    evaluations_are_counted_once,
    save_steps_go_with_their_strategy,
    eval_steps_go_with_their_strategy,
    strategies_by_steps_have_steps,
    allowed_changes_are_names,
    intervals_are_shares_or_whole_steps,
    evaluation_has_rows,
    the_best_is_known_by_evaluating,
    the_best_model_is_saved,
    resuming_needs_the_optimizer,
)
