"""What is asked for: decided for this machine, or refused, before anything is read."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace

from whet.config import Config, check_trainable
from whet.config.resolve import ResolvedRun, resolve
from whet.core.errors import ConfigError, Problem


def resolve_run(config: Config, *, computes: bool = True) -> ResolvedRun:
    """Every open value decided for this machine.

    Args:
        computes: false for a command that only moves numbers, which needs nothing of what the run needs.

    Raises:
        ConfigError: this machine cannot run it.
    """
    from whet.config.rules.machine import check_runnable
    from whet.distributed.hardware import probe

    hardware = probe()
    if computes and (problems := check_runnable(config, hardware)):
        raise ConfigError(problems)
    return resolve(config, hardware)


def refuse_untrainable(config: Config) -> None:
    """Before torch is imported, and before anything is made or read.

    Raises:
        ConfigError: the data of this method can be prepared, and its training is not built.
    """
    if problems := check_trainable(config):
        raise ConfigError(problems)


def refuse_streamed(config: Config) -> None:
    """For commands that show prepared rows.

    Raises:
        ConfigError: the rows are streamed, so nothing is prepared.
    """
    if config.data.streaming:
        found = "streaming is true, so nothing is prepared that could be shown"
        fix = "write streaming: false, and split: train[:1000] in the rows of datasets to look at a part"
        raise ConfigError(Problem(config.where("streaming"), found, fix, "streaming"))


def refuse_untrainable_storage(config: Config) -> None:
    """Before data is prepared and weights are read: a base model that is stored quantised is not trained in full.

    Raises:
        ModelError: it is, or a package that reads it is missing.
    """
    from whet.model.load import load_model_config
    from whet.model.stored import refuse_untrainable_storage

    refuse_untrainable_storage(config, load_model_config(config))


def import_libraries(config: Config) -> None:
    """torch, transformers and what else this run is sure to need, and nothing that it may not; seconds less to wait."""
    from whet.core.network import keep_quiet
    from whet.model.startup import import_libraries

    keep_quiet()
    import_libraries(adapter=config.adapter.adapter is not None)


def compiler_put_off() -> AbstractContextManager[None]:
    """Within it, torch.compile is loaded by a run that compiles, and by no other."""
    from whet.model.startup import compiler_put_off

    return compiler_put_off()


def for_measuring(resolved: ResolvedRun) -> ResolvedRun:
    """The run without what it tells others: a measurement opens no tracker's run and no repository."""
    output = resolved.config.output.model_copy(update={"hub_model_id": None})
    return replace(resolved, report_to=(), config=resolved.config.model_copy(update={"output": output}))
