"""The story of one run, top to bottom. Each stage is called once; values go forward; stages never call each other."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from whet import exports, history, stages
from whet.config import Config
from whet.core.environment import environment_put_back
from whet.core.errors import ConfigError, Problem
from whet.exports import merge, push, quantize

__all__ = [
    "RunResult", "clean_prepared", "evaluate", "explain_prepared", "inspect", "merge", "preprocess", "push", "quantize",
    "train",
]  # fmt: skip

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from whet.data.cleaning import Unused
    from whet.data.explaining import Explanation
    from whet.data.store import PreparedSet
    from whet.earlier import Repeated
    from whet.reports.inspection import Inspection
    from whet.training.scoring import Score


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


def train(config: Config, *, resume: str | bool | None = None, repeats: Repeated | None = None) -> RunResult:
    """Fine-tune a model as the config says.

    Args:
        config: from `load_config`.
        resume: a checkpoint folder, True for the newest complete one, None to follow the config.
        repeats: the run that this one does again, to be told what is not as it was.

    Raises:
        WhetError: anything that the config, the data or the model cannot do; before the first step as a rule.
        TrainingStopped: the run ended itself; the last good checkpoint is kept.
    """
    stages.refuse_untrainable(config)
    stages.import_libraries(config)

    from whet.training.fit import fit
    from whet.training.tokenizer import run_tokenizer

    resolved = stages.resolve_run(config)
    output_dir = stages.open_output(resolved)
    with (
        environment_put_back(),
        stages.lock_output(resolved),
        history.recorded(resolved, output_dir) as record,
        stages.compiler_put_off(),
    ):
        checkpoint = stages.find_checkpoint(resolved, resume)
        history.resume(record, resolved, checkpoint, repeats)
        uploads = stages.open_repository(resolved)
        stages.refuse_untrainable_storage(config)
        tokenizer = run_tokenizer(config)
        prepared = stages.training_data(resolved, tokenizer)
        record.lap("data")
        order, plan = stages.plan_run(resolved, prepared)
        facts = history.settle(record, resolved, checkpoint, tokenizer, prepared, plan, repeats, order)
        stages.announce(resolved, prepared, plan)
        trainer = stages.make_trainer(resolved, tokenizer, prepared, order, plan)
        stages.foresee_disk(resolved, trainer, checkpoint)
        history.base_loaded(record, resolved, checkpoint, facts, repeats)
        history.keep(trainer, resolved, facts)
        stages.push_checkpoints(uploads, trainer)
        record.lap("model")
        before = stages.score(resolved, trainer, tokenizer)

        def begin() -> None:
            record.begin(stages.take_folder(resolved, checkpoint))

        try:
            output = fit(trainer, resolved, checkpoint, begin)
        finally:
            record.lap("training")
            stages.tell_stream(resolved, trainer, record)
        stages.save(resolved, trainer.model, tokenizer, output_dir)
        after = stages.score(resolved, trainer, tokenizer)
        record.note("result", {**asdict(output), "score_before": before, "score_after": after})
        history.conclude(record, resolved, facts, tokenizer, output_dir)
        record.lap("saving")
        merged_dir = exports.merge_run(resolved, output_dir) if stages.merges(resolved) else None
    stages.push(uploads)
    stages.say_what_next(config, before, after, merged_dir)
    return RunResult(output_dir, dict(output.metrics), before, after, merged_dir)


def preprocess(config: Config, *, refresh: bool = False) -> tuple[PreparedSet, PreTrainedTokenizerBase]:
    """Prepare the data, or find it prepared, and print what became of every row.

    Args:
        refresh: prepare again even when the set is there.
    """
    stages.refuse_streamed(config)

    from whet.data.summary import print_summary
    from whet.training.tokenizer import run_tokenizer

    resolved = stages.resolve_run(config)
    tokenizer = run_tokenizer(config)
    prepared = stages.prepare_data(resolved, tokenizer, refresh=refresh)
    print_summary(prepared, resolved)
    return prepared, tokenizer


def explain_prepared(config: Config) -> Explanation:
    """Whether the config's prepared set is there, and if not: what is different from the one closest to it.

    Nothing is prepared.
    """
    stages.refuse_streamed(config)

    from whet.data.explaining import explain
    from whet.training.tokenizer import run_tokenizer

    return explain(config, stages.resolve_run(config), run_tokenizer(config))


def clean_prepared(config: Config, days: float, *, remove: bool = True) -> list[Unused]:
    """What of the config's folder of prepared sets was not used for so many days; removed, unless that is not wanted.

    Raises:
        DataError: it may not be removed.
    """
    from whet.data.cleaning import clean

    return clean(config, Path(stages.resolve_run(config).prepared_path), days, remove=remove)


def inspect(config: Config, *, rows: int = 1000, row: str | None = None) -> Inspection:
    """Prepare the data, or find it prepared, and gather what a person wants to see of it.

    Args:
        rows: how many samples to show.
        row: show the samples of this row alone, named as ``chat.jsonl:12``.
    """
    stages.refuse_streamed(config)

    from whet.reports.inspection import inspect
    from whet.training.tokenizer import run_tokenizer

    resolved = stages.resolve_run(config)
    tokenizer = run_tokenizer(config)
    return inspect(resolved, tokenizer, stages.prepare_data(resolved, tokenizer), rows=rows, row=row)


def evaluate(config: Config, *, untrained: bool = False) -> dict[str, float]:
    """Losses of the model that the config's run has made, on its evaluation data.

    Args:
        untrained: measure the base model as it was before the run.

    Raises:
        WhetError: there is no evaluation data, or nothing has been trained yet.
    """
    stages.refuse_untrainable(config)
    stages.import_libraries(config)

    from whet.serving.trained import as_trained, find_trained
    from whet.training.tokenizer import run_tokenizer

    resolved = stages.for_measuring(stages.resolve_run(config))
    tokenizer = run_tokenizer(config)
    prepared = stages.training_data(resolved, tokenizer)
    if prepared.validation is None:
        found, fix = "there is no evaluation data", "set val_set_size or test_datasets"
        raise ConfigError(Problem(config.where("val_set_size"), found, fix, "val_set_size"))
    if not untrained:
        resolved = replace(resolved, config=as_trained(resolved.config, find_trained(config)))
    order, plan = stages.plan_run(resolved, prepared)
    with stages.compiler_put_off():
        trainer = stages.make_trainer(resolved, tokenizer, prepared, order, plan)
        return {name: value for name, value in trainer.evaluate().items() if name.startswith("eval_")}
