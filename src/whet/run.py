"""The story of one run, top to bottom. Each stage is called once; values go forward; stages never call each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config import Config
from whet.config.resolve import ResolvedRun, resolve
from whet.core.errors import ConfigError, ModelError, Problem, TrainingStopped, WhetError
from whet.core.log import say, warn
from whet.record import RunRecord

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Trainer

    from whet.data.store import PreparedSet
    from whet.training.scoring import Score
    from whet.training.steps import StepPlan


@dataclass(frozen=True)
class RunResult:
    """What a training run leaves behind.

    Attributes:
        output_dir: folder of the model or adapter.
        metrics: the last value of each figure transformers logs at the end of training.
        score_before, score_after: exact match on `score_dataset`; None without one.
        merged_dir: folder of the merged model; None unless `merge_adapters`.
    """

    output_dir: Path
    metrics: dict[str, float] = field(default_factory=dict)
    score_before: Score | None = None
    score_after: Score | None = None
    merged_dir: Path | None = None


def train(config: Config, *, resume: str | bool | None = None) -> RunResult:
    """Fine-tune a model as the config says.

    Args:
        config: from `load_config`.
        resume: a checkpoint folder, True for the newest complete one, None to follow the config.

    Raises:
        WhetError: anything that the config, the data or the model cannot do; before the first step as a rule.
        TrainingStopped: the run ended itself; the last good checkpoint is kept.
    """
    from whet.artefacts.save import save_model
    from whet.methods import METHODS
    from whet.methods.inputs import MethodInputs, training_order
    from whet.training.fit import fit
    from whet.training.steps import plan_steps
    from whet.training.tokenizer import run_tokenizer

    resolved = _resolve(config)
    is_first_rank = resolved.hardware.rank == 0
    output_dir = _open_output(resolved)
    checkpoint = _checkpoint(resolved, resume)
    with _recorded(resolved, output_dir) as record:
        tokenizer = run_tokenizer(config)
        prepared = _prepare(resolved, tokenizer, refresh=False)
        record.note("data", {"path": str(prepared.path), "manifest": dict(prepared.manifest)})
        order = training_order(resolved, prepared.train)
        has_validation = prepared.validation is not None
        plan = plan_steps(resolved, order, prepared.train.supervised, has_validation=has_validation)
        record.note("plan", plan)
        model, isolates = _model(resolved, tokenizer)
        _announce(resolved, prepared, plan)
        inputs = MethodInputs(
            resolved, plan, model, tokenizer, order, prepared.train, prepared.validation, isolates_documents=isolates
        )
        trainer = METHODS.load(resolved.method, config.where("rl"))(inputs)
        before = _score(resolved, trainer, tokenizer, "before training")
        output = fit(trainer, resolved, checkpoint)
        if is_first_rank:
            save_model(trainer.model, tokenizer, output_dir, config.template.eot_tokens or ())
        after = _score(resolved, trainer, tokenizer, "after training")
        record.note("result", {"metrics": output.metrics, "score_before": before, "score_after": after})
        merged_dir = _merge(resolved, output_dir) if config.adapter.merge_adapters and is_first_rank else None
    result = RunResult(output_dir, dict(output.metrics), before, after, merged_dir)
    _say_what_next(config, result)
    return result


def preprocess(config: Config, *, refresh: bool = False) -> tuple[PreparedSet, PreTrainedTokenizerBase]:
    """Prepare the data, or find it prepared, and print what became of every row.

    Args:
        refresh: prepare again even when the set is there.
    """
    from whet.data.summary import print_summary
    from whet.training.tokenizer import run_tokenizer

    resolved = _resolve(config)
    tokenizer = run_tokenizer(config)
    prepared = _prepare(resolved, tokenizer, refresh=refresh)
    print_summary(prepared, resolved)
    return prepared, tokenizer


def evaluate(config: Config, *, untrained: bool = False) -> dict[str, float]:
    """Losses of the model that the config's run has made, on its evaluation data.

    Args:
        untrained: measure the base model as it was before the run.

    Raises:
        WhetError: there is no evaluation data, or nothing has been trained yet.
    """
    from whet.methods import METHODS
    from whet.methods.inputs import MethodInputs, training_order
    from whet.serving.trained import as_trained, find_trained
    from whet.training.steps import plan_steps
    from whet.training.tokenizer import run_tokenizer

    resolved = _resolve(config)
    tokenizer = run_tokenizer(config)
    prepared = _prepare(resolved, tokenizer, refresh=False)
    if prepared.validation is None:
        found, fix = "there is no evaluation data", "set val_set_size or test_datasets"
        raise ConfigError(Problem(config.where("val_set_size"), found, fix, "val_set_size"))
    order = training_order(resolved, prepared.train)
    plan = plan_steps(resolved, order, prepared.train.supervised, has_validation=True)
    if not untrained:
        resolved = replace(resolved, config=as_trained(config, find_trained(config)))
    model, isolates = _model(resolved, tokenizer)
    inputs = MethodInputs(
        resolved, plan, model, tokenizer, order, prepared.train, prepared.validation, isolates_documents=isolates
    )
    trainer = METHODS.load(resolved.method, config.where("rl"))(inputs)
    return {name: value for name, value in trainer.evaluate().items() if name.startswith("eval_")}


def merge(config: Config, *, adapter_dir: Path | None = None, output_dir: Path | None = None) -> Path:
    """Fold the run's adapter into its base model and write a folder that transformers loads alone.

    Args:
        adapter_dir: the adapter; `output_dir` of the config if not given.
        output_dir: where to write; `merged` inside the config's `output_dir` if not given.
    """
    resolved = _resolve(config)
    return _merge(resolved, adapter_dir or Path(resolved.output_dir), output_dir)


# --- The stages, each a few lines around the package that does the work ----------------------------------------------


def _resolve(config: Config) -> ResolvedRun:
    from whet.config.rules.machine import check_runnable
    from whet.distributed.hardware import probe

    hardware = probe()
    if problems := check_runnable(config, hardware):
        raise ConfigError(problems)
    resolved = resolve(config, hardware)
    return resolved


def _open_output(resolved: ResolvedRun) -> Path:
    folder = Path(resolved.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".whet-can-write"
        probe.touch()
        probe.unlink()
    except OSError as error:
        where = resolved.config.where("output_dir")
        found = f"output_dir '{folder}' cannot be written to ({error.strerror})"
        raise ConfigError(Problem(where, found, "name a folder that you may write to", "output_dir")) from error
    return folder


@contextmanager
def _recorded(resolved: ResolvedRun, output_dir: Path) -> Iterator[RunRecord]:
    """The run's record, closed with how the run ended, whatever that was."""
    from whet.config.explain import explain

    record = RunRecord(output_dir if resolved.hardware.rank == 0 else None)
    record.note("config", {row.key: {"value": row.value, "origin": row.origin} for row in explain(resolved.config)})
    record.note("hardware", resolved.hardware)
    record.note("choices", dict(resolved.choices))
    record.note("warnings", [str(problem) for problem in resolved.config.warnings])
    try:
        yield record
    except KeyboardInterrupt:
        record.finish("interrupted")
        raise
    except TrainingStopped as error:
        record.finish(f"stopped: {error}")
        raise
    except WhetError as error:
        record.finish(f"refused: {error}")
        raise
    except BaseException as error:
        record.finish(f"failed: {type(error).__name__}: {error}")
        raise
    record.finish("finished")


def _checkpoint(resolved: ResolvedRun, resume: str | bool | None) -> Path | None:
    """The checkpoint to go on from: what the command line says, else the config."""
    from whet.training.checkpoint import checkpoint_to_resume, newest_complete

    loop, where = resolved.config.loop, resolved.config.where("resume_from_checkpoint")
    asked = loop.resume_from_checkpoint if resume is None else resume
    if asked is None and loop.auto_resume_from_checkpoints:
        asked = newest_complete(Path(resolved.output_dir)).path is not None
    folder, passed_over = checkpoint_to_resume(asked, resolved.output_dir, where)
    for item in passed_over:
        warn(f"{item.path}: passed over, because {item.reason}")
    if folder is not None:
        say(f"resuming from {folder}")
    return folder


def _prepare(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase, *, refresh: bool) -> PreparedSet:
    from whet.data.prepare import prepare

    return prepare(resolved.config, resolved, tokenizer, refresh=refresh)


def _model(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase) -> tuple[torch.nn.Module, bool]:
    """The model with its adapter, and whether it keeps the documents of a packed row apart (promise G4).

    Raises:
        ModelError: packing is asked for and this model cannot be packed.
    """
    import torch

    from whet.model.adapters import adapt
    from whet.model.architecture import Unsupported
    from whet.model.attention import isolates_documents
    from whet.model.load import load_model

    config = resolved.config
    loaded = load_model(config, resolved, tokenizer)
    say(f"attention: {loaded.attention.name or 'default'}: {loaded.attention.why}")
    autocast = getattr(torch, resolved.autocast_dtype) if resolved.autocast_dtype else None
    isolates = isolates_documents(loaded.model, autocast_dtype=autocast)
    if isinstance(isolates, Unsupported) and resolved.sample_packing:
        found = f"sample_packing: this model mixes packed documents: {isolates.reason}"
        fix = "write sample_packing: false, or leave attn_implementation to whet"
        raise ModelError(Problem(config.where("sample_packing"), found, fix, "sample_packing"))
    return adapt(loaded.model, config, resolved), not isinstance(isolates, Unsupported)


def _announce(resolved: ResolvedRun, prepared: PreparedSet, plan: StepPlan) -> None:
    train, validation = prepared.train, prepared.validation
    for key, choice in resolved.choices.items():
        say(f"{key}: {choice}")
    held_out = f", {len(validation):,} for evaluation" if validation is not None else ""
    say(f"data: {len(train):,} samples for training{held_out} ({prepared.path})")
    say(
        f"plan: {plan.total_steps:,} steps ({plan.steps_per_epoch:,} an epoch, {plan.num_epochs:.3g} epochs) of "
        f"{plan.rows_per_step} {'packs' if resolved.sample_packing else 'samples'}; {plan.tokens:,} tokens, "
        f"{plan.supervised_tokens:,} of them supervised; {plan.warmup_steps} steps of warm-up to a learning rate of "
        f"{resolved.config.optimizer.learning_rate:g}"
    )


def _merge(resolved: ResolvedRun, adapter_dir: Path, output_dir: Path | None = None) -> Path:
    from whet.artefacts.merge import merge_lora

    merged = merge_lora(resolved.config, resolved, adapter_dir, output_dir or Path(resolved.output_dir) / "merged")
    return Path(merged.folder)


def _score(resolved: ResolvedRun, trainer: Trainer, tokenizer: PreTrainedTokenizerBase, when: str) -> Score | None:
    """Exact match on `score_dataset`, on the first rank alone."""
    section = resolved.config.score
    if section.score_dataset is None or resolved.hardware.rank != 0:
        return None
    from whet.data.sources import read_json_lines
    from whet.training.scoring import exact_match

    rows = read_json_lines(section.score_dataset, limit=section.score_max_rows)
    score = exact_match(
        trainer.model,
        tokenizer,
        rows,
        max_new_tokens=section.score_max_new_tokens,
        where=resolved.config.where("score_dataset"),
    )
    say(f"score {when}: {score}")
    return score


def _say_what_next(config: Config, result: RunResult) -> None:
    if result.score_before is not None and result.score_after is not None:
        say(f"score: {result.score_before.share:.1%} before, {result.score_after.share:.1%} after")
    say(f"saved: {result.output_dir}")
    words = ["chat"] if not config.adapter.adapter or result.merged_dir else ["chat", "merge-lora"]
    say("try next: " + "   or   ".join(f"whet {word} {config.file}{_same_place(config)}" for word in words))


def _same_place(config: Config) -> str:
    """The option that leads another command to the same output folder, where the file alone does not."""
    said_elsewhere = config.origin("output_dir").kind == "command line"
    return f" --output-dir {config.output.output_dir}" if said_elsewhere else ""
