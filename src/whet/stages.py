"""The stages of a run, each a few lines around the package that does the work. `whet.run` says in which order."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config import Config, check_trainable
from whet.config.resolve import ResolvedRun, resolve
from whet.core.errors import ArtefactError, ConfigError, ModelError, Problem
from whet.core.log import say, warn

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase, Trainer

    from whet.artefacts.hub import HubUploads
    from whet.data.order import Order
    from whet.data.store import PreparedSet
    from whet.data.streaming import StreamedSet
    from whet.record import RunRecord
    from whet.training.scoring import Score
    from whet.training.steps import StepPlan


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


def open_output(resolved: ResolvedRun) -> Path:
    """The output folder, made if it is not there and tried by writing to it.

    Raises:
        ConfigError: it cannot be written to.
    """
    folder = Path(resolved.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".whet-can-write"
        probe.touch()
        probe.unlink(missing_ok=True)  # another rank may have been quicker
    except OSError as error:
        where = resolved.config.where("output_dir")
        found = f"output_dir '{folder}' cannot be written to ({error.strerror})"
        raise ConfigError(Problem(where, found, "name a folder that you may write to", "output_dir")) from error
    _refuse_links(folder, resolved.config)
    return folder


def _refuse_links(folder: Path, config: Config) -> None:
    """Raises ConfigError: a name in the output folder is a link, and what the run writes there would go elsewhere."""
    from whet.core.disk import link_leading_out

    link = link_leading_out(folder)
    if link is not None:
        found = f"output_dir: '{link}' is a link to '{os.readlink(link)}', outside of the folder"
        fix = "remove the link, or name another output_dir (which may be a link itself)"
        raise ConfigError(Problem(config.where("output_dir"), found, fix, "output_dir"))


def open_repository(resolved: ResolvedRun) -> HubUploads | None:
    """What gives files to the repository of `hub_model_id`, which is opened now; on the first rank alone.

    Raises:
        ArtefactError: it cannot be opened.
    """
    if resolved.config.output.hub_model_id is None or resolved.hardware.rank != 0:
        return None
    from whet.artefacts.hub import HubUploads, open_repository

    open_repository(resolved.config)
    return HubUploads(resolved.config, Path(resolved.output_dir))


def push_checkpoints(uploads: HubUploads | None, trainer: Trainer) -> None:
    """Give the hub each checkpoint that `hub_strategy` asks for, when it is published."""
    if uploads is not None:
        trainer.checkpoints.on_published.append(uploads.checkpoint)


def lock_output(resolved: ResolvedRun) -> AbstractContextManager[object]:
    """Keep every other run out of the output folder until the result is left.

    Raises:
        ConfigError: another run is in it.
    """
    from whet.core.lock import FolderLock, Locked

    if resolved.hardware.rank != 0:
        return nullcontext()
    where, output_dir = resolved.config.where("output_dir"), resolved.output_dir
    try:
        lock = FolderLock(Path(output_dir))
    except Locked as locked:
        found = f"another run writes to output_dir '{output_dir}': {locked.holder}"
        fix = "wait for it, end it, or name another folder"
        raise ConfigError(Problem(where, found, fix, "output_dir")) from None
    if not lock.is_real:
        warn(f"{output_dir} is on a file system without locks: see to it yourself that no two runs write there at once")
    if lock.died:
        say(f"the last run in {output_dir} ({lock.died}) ended without a word")
    return lock


def find_checkpoint(resolved: ResolvedRun, resume: str | bool | None) -> Path | None:
    """The checkpoint to go on from: what the command line says, else the config.

    The first rank alone looks for it and reads every byte of it; `fit` tells the others.
    """
    from whet.training.checkpoint import checkpoint_to_resume, newest_complete

    if resolved.hardware.rank != 0:
        return None
    _clear_leftovers(Path(resolved.output_dir))
    loop, where = resolved.config.loop, resolved.config.where("resume_from_checkpoint")
    asked = loop.resume_from_checkpoint if resume is None else resume
    if asked is not None or not loop.auto_resume_from_checkpoints:
        folder, passed_over = checkpoint_to_resume(asked, resolved.output_dir, where)
    else:
        found = newest_complete(Path(resolved.output_dir), with_optimizer=True)
        folder, passed_over = found.path, found.passed_over
    for item in passed_over:
        warn(f"{item.path}: passed over, because {item.reason}")
    if folder is not None:
        say(f"resuming from {folder}")
    return folder


def _clear_leftovers(output_dir: Path) -> None:
    from whet.training.publishing import clear_leftovers

    left = clear_leftovers(output_dir)
    if left.removed:
        warn(f"an earlier run ended while it wrote {', '.join(left.removed)}; what was there of it is removed")
    for folder in left.published:
        say(f"an earlier run ended after it had written {folder}, and before it gave it its name; it has it now")


def make_room(resolved: ResolvedRun, trainer: Trainer, checkpoint: Path | None) -> Path | None:
    """Foresee the room that checkpoints need on the disk, and set aside those in the folder that are not of this run:
    an earlier one's, and those after the one that it goes on from. Not before everything is ready, so that a run that
    is refused leaves the folder as it was. Returns where they are now.

    Raises:
        ConfigError: the disk is full.
    """
    from whet.training.publishing import last_step_of_run, set_aside
    from whet.training.room import foresee, plan_disk

    if resolved.hardware.rank != 0:
        return None
    foresee(plan_disk(trainer.model, trainer.args, resolved, checkpoint), resolved)
    output_dir = Path(resolved.output_dir)
    last = last_step_of_run(output_dir, checkpoint)
    if place := set_aside(output_dir, last):
        what = f"that are newer than checkpoint-{last}" if last >= 0 else "of an earlier run"
        warn(f"{output_dir} held checkpoints {what}; they are in {place} now")
    return place


def prepare_data(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase, *, refresh: bool = False) -> PreparedSet:
    """The prepared set, made now or found."""
    from whet.data.prepare import prepare

    return prepare(resolved.config, resolved, tokenizer, refresh=refresh)


def training_data(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase) -> PreparedSet | StreamedSet:
    """What to train and to evaluate on: prepared, or to be read as the model trains."""
    if not resolved.config.data.streaming:
        return prepare_data(resolved, tokenizer)
    from whet.data.streaming import open_streamed

    return open_streamed(resolved.config, resolved, tokenizer)


def make_model(resolved: ResolvedRun, tokenizer: PreTrainedTokenizerBase) -> tuple[torch.nn.Module, bool]:
    """The model with its adapter, and whether it keeps the documents of a packed row apart (promise G4).

    Raises:
        ModelError: packing is asked for and this model cannot be packed.
    """
    import torch

    from whet.model.architecture import Unsupported
    from whet.model.attention import isolates_documents
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


def plan_run(resolved: ResolvedRun, prepared: PreparedSet | StreamedSet) -> tuple[Order | None, StepPlan]:
    """The order of the training samples, and the run counted from it; a stream has no order, and max_steps."""
    from whet.data.streaming import StreamedSet
    from whet.methods.inputs import training_order
    from whet.training.steps import plan_steps, plan_stream

    if isinstance(prepared, StreamedSet):
        return None, plan_stream(resolved, has_validation=prepared.validation is not None)
    order = training_order(resolved, prepared.train)
    has_validation = prepared.validation is not None
    return order, plan_steps(resolved, order, prepared.train.supervised, has_validation=has_validation)


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


def announce(resolved: ResolvedRun, prepared: PreparedSet | StreamedSet, plan: StepPlan) -> None:
    """What was chosen, on what data and for how many steps: said before the first one."""
    from whet.data.streaming import StreamedSet

    validation = prepared.validation
    for key, choice in resolved.choices.items():
        say(f"{key}: {choice}")
    held_out = f", {len(validation):,} for evaluation" if validation is not None else ""
    if isinstance(prepared, StreamedSet):
        for line in prepared.train.described():
            say(f"data: {line}")
        samples = f"read as it trains, shuffled and packed {prepared.train.window:,} samples at a time"
        say(f"data: {samples if resolved.sample_packing else samples.replace(' and packed', '')}{held_out}")
    else:
        say(f"data: {len(prepared.train):,} samples for training{held_out} ({prepared.path})")
    if len(plan.shares) > 1:
        for share in plan.shares:
            say(f"mix:  {share}")
    unit = "pack" if resolved.sample_packing else "sample"
    steps = f"plan: {_count(plan.total_steps, 'step')} of {_count(plan.rows_per_step, unit)}"
    warmup = (
        f"learning rate {resolved.config.optimizer.learning_rate:g} "
        f"after {_count(plan.warmup_steps, 'step')} of warm-up"
    )
    if plan.tokens is None:
        say(f"{steps}; how many tokens, and how much of the datasets, a stream cannot say beforehand")
        say(f"      {warmup}")
        return
    epochs = "1 epoch" if plan.num_epochs == 1 else f"{plan.num_epochs:.3g} epochs"
    say(f"{steps}, {epochs} of {_count(plan.steps_per_epoch, 'step')}")
    say(f"      {plan.tokens:,} tokens, {plan.supervised_tokens:,} supervised; {warmup}")


def tell_stream(resolved: ResolvedRun, trainer: Trainer, record: RunRecord) -> None:
    """What was read of each dataset of a stream, said and recorded."""
    from whet.training.streamed import StreamedSamples

    samples = getattr(trainer, "train_samples", None)
    if not isinstance(samples, StreamedSamples):
        return
    reports = samples.report()
    record.note("stream", reports)
    if resolved.hardware.rank == 0:
        for report in reports:
            say(f"read: {report}")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def save(resolved: ResolvedRun, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> None:
    """What was trained, by the first rank; proved to be what stands in memory, unless `parity` is off.

    Raises:
        ParityError: what was saved is another model.
    """
    from whet.artefacts.prove_saved import prove_saved, proving
    from whet.artefacts.save import save_files

    if resolved.config.adapter.relora:
        from whet.model.adapters import merged_in_place

        model = merged_in_place(model)  # the base has taken in earlier adapters, so the last one belongs there too
    if resolved.hardware.rank != 0:
        return
    with proving(resolved.config) as fresh:
        with _result_kept(resolved, output_dir):
            names = save_files(model, tokenizer, output_dir, resolved.config.template.eot_tokens or ())
        if fresh is not None:
            prove_saved(fresh, resolved, model, tokenizer, output_dir, names)


@contextmanager
def _result_kept(resolved: ResolvedRun, output_dir: Path) -> Iterator[None]:
    """Where the result cannot be written, say which checkpoint has it, and how it gets its place."""
    from safetensors import SafetensorError

    from whet.core.disk import refused_write
    from whet.training.checkpoint import newest_complete

    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ArtefactError) as error:  # torch's refusals are RuntimeErrors
        reason = refused_write(error.__cause__ if isinstance(error, ArtefactError) and error.__cause__ else error)
        if reason is None:
            raise
        newest = newest_complete(output_dir).path
        found = f"the trained model cannot be written to '{output_dir}': {reason}"
        fix = f"make room there, then: whet train {resolved.config.file} --resume-from-checkpoint"
        if newest is None:
            kept, fix = "no checkpoint holds it", "make room, and train again with save_strategy: epoch"
        else:
            kept = f"{newest} holds it"
        raise ArtefactError(
            Problem(resolved.config.where("output_dir"), f"{found}; {kept}", fix, "output_dir")
        ) from error


def push(uploads: HubUploads | None) -> None:
    """The saved result to the hub, where `hub_model_id` asks for it; a hub that is gone leaves it queued."""
    if uploads is not None:
        uploads.finish()


def for_measuring(resolved: ResolvedRun) -> ResolvedRun:
    """The run without what it tells others: a measurement opens no tracker's run and no repository."""
    output = resolved.config.output.model_copy(update={"hub_model_id": None})
    return replace(resolved, report_to=(), config=resolved.config.model_copy(update={"output": output}))


def merges(resolved: ResolvedRun) -> bool:
    """Whether this process merges the adapter after training: under `merge_adapters`, the first rank."""
    return resolved.config.adapter.merge_adapters and resolved.hardware.rank == 0


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


def say_what_next(config: Config, before: Score | None, after: Score | None, merged_dir: Path | None) -> None:
    """The last words of a run: scores, where the result is, and the commands to try next."""
    if before is not None and after is not None:
        say(f"score on held-out rows: before {before}, after {after}")
    say(f"saved: {config.output.output_dir}")
    words = ["chat"] if not config.adapter.adapter or config.adapter.relora or merged_dir else ["chat", "merge-lora"]
    say(
        "try next: " + "   or   ".join(f"whet {word} {shlex.quote(config.file)}{_same_place(config)}" for word in words)
    )


def _same_place(config: Config) -> str:
    """The option that leads another command to the same output folder, where the file alone does not."""
    said_elsewhere = config.origin("output_dir").kind == "command line"
    return f" --output-dir {shlex.quote(config.output.output_dir)}" if said_elsewhere else ""
