"""What a run writes down of itself: its record while it happens, its facts in each checkpoint, its card at the end.

And what is read of it again: a run that goes on, or is done again, is held against the one before.
"""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet.config import Config
from whet.config.changes import DATA, Change, Verdict, differences, judged, names_in, table
from whet.config.facts import RunFacts, facts_of, read_facts, written_values
from whet.config.resolve import ResolvedRun
from whet.core.errors import ConfigError, Problem, TrainingStopped, WhetError
from whet.core.heard import Heard, hearing
from whet.core.log import say, warn
from whet.record import RunRecord

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from whet.data.store import PreparedSet
    from whet.data.streaming import StreamedSet
    from whet.model.identity import Identifying
    from whet.training.steps import StepPlan

_LOGGERS = ("whet", "transformers", "accelerate", "peft", "torch", "datasets", "huggingface_hub")
"""Whose warnings a record keeps."""


@dataclass(frozen=True)
class Facts:
    """What decides this run, with the identity of its base as far as it is known.

    Attributes:
        known: without the base model.
        base: becomes complete in the background.
    """

    known: RunFacts
    base: Identifying

    def now(self) -> RunFacts:
        """All of them, as they are known now."""
        identity = self.base.so_far
        found = {} if identity is None else {"base_model": asdict(identity)}
        return replace(self.known, identities={**self.known.identities, **found})


@contextmanager
def recorded(resolved: ResolvedRun, output_dir: Path, kind: str = "train") -> Iterator[RunRecord]:
    """The run's record, closed with how the run ended, whatever that was."""
    record = RunRecord(output_dir if resolved.hardware.rank == 0 else None, kind)
    note_config(record, resolved)
    heard = Heard(lambda heard: record.note("heard", heard.told()))
    with _closed(record, heard), hearing(heard, _LOGGERS):
        yield record


def resume(record: RunRecord, resolved: ResolvedRun, checkpoint: Path | None) -> None:
    """Note what the run goes on from, if it does, and hold the config against that run's, before anything is read.

    Raises:
        ConfigError: keys differ in a way that makes it another run.
    """
    if checkpoint is not None:
        record.resumes(checkpoint)
        _hold_against(resolved, checkpoint, facts_of(resolved), record)


def note_config(record: RunRecord, resolved: ResolvedRun) -> None:
    """What was asked for, on what machine, and what follows."""
    from whet.config.explain import explain
    from whet.core.revision import revision_of

    config = resolved.config
    facts = facts_of(resolved)
    record.note("config", {row.key: {"value": row.value, "origin": row.origin} for row in explain(config)})
    record.note("values", facts.values)
    record.note("written", written_values(config))
    record.note("where", facts.where)
    record.note("resolved", facts.resolved)
    record.note("config_file", str(Path(config.file).resolve()) if config.file else None)
    record.note("hardware", machine(resolved))
    record.note("choices", dict(resolved.choices))
    record.note("seeds", {"seed": resolved.seed, **_seeds_of_rows(config)})
    record.note("warnings", [str(problem) for problem in config.warnings])
    record.note("git", revision_of(Path(config.file)) if config.file else None)


def machine(resolved: ResolvedRun) -> dict[str, Any]:
    """The hardware and what decides how its threads add up."""
    import torch

    from whet.distributed.hardware import host_memory_bytes

    found = {
        **asdict(resolved.hardware),
        "machine": platform.machine(),
        "host_memory_bytes": host_memory_bytes(),
        "threads": torch.get_num_threads(),
    }
    if resolved.device == "cuda":
        devices = range(torch.cuda.device_count())
        found["gpus"] = [torch.cuda.get_device_name(index) for index in devices]
        found |= {"cuda": torch.version.cuda, "driver": _driver(), "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return found


def settle(
    record: RunRecord,
    resolved: ResolvedRun,
    checkpoint: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    prepared: PreparedSet | StreamedSet,
    plan: StepPlan,
) -> Facts:
    """The data, the plan and every identity, noted; and held against those of the run that is to go on.

    Raises:
        ConfigError: they differ in a way that changes the run, and were not allowed to.
    """
    from whet.data.fingerprint import content_identity, tokenizer_identity
    from whet.model.identity import Identifying, identify

    said = {key: value for key, value in prepared.manifest.items() if key not in ("chunks", "hashes")}
    record.note("data", {"path": str(prepared.path or ""), "manifest": said})
    record.note("plan", plan)
    identities = {"tokenizer": tokenizer_identity(tokenizer), "chat_template": _template_identity(tokenizer)}
    if not resolved.config.data.streaming:
        identities[DATA] = content_identity(prepared.manifest)
    base = Identifying(identify(resolved.config), resolved.config)
    facts = Facts(facts_of(resolved, identities, plan.total_steps), base)
    record.note("identities", facts.now().identities)
    _hold_against(resolved, checkpoint, facts.now(), record)
    return facts


def keep(trainer: Trainer, resolved: ResolvedRun, facts: Facts) -> None:
    """Let each checkpoint hold the facts of the run."""
    from whet.training.callbacks.facts import KeepFacts

    trainer.add_callback(KeepFacts(trainer, resolved, facts.now))


def conclude(record: RunRecord, resolved: ResolvedRun, facts: Facts, output_dir: Path) -> None:
    """After the result is saved: what its base is, by all bytes, in the record and beside an adapter."""
    from whet.model.identity import write_identity

    if resolved.hardware.rank != 0:
        return
    identity = facts.base.result()
    record.note("identities", facts.now().identities)
    adapter = resolved.config.adapter
    if identity is not None and adapter.adapter is not None and not adapter.relora:
        write_identity(output_dir, identity)


@contextmanager
def _closed(record: RunRecord, heard: Heard) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        record.note("peak_memory", peak_memory())
        record.finish(_outcome(error))
        raise
    record.note("heard", heard.told())
    record.note("peak_memory", peak_memory())
    record.finish("finished")


def _outcome(error: BaseException) -> str:
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, TrainingStopped):
        return f"stopped: {error}"
    if isinstance(error, WhetError):
        return f"refused: {error}"
    return f"failed: {type(error).__name__}: {error}"


def peak_memory() -> dict[str, int]:
    """Most bytes that this process has had: of the host, and of each accelerator that it used."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}_bytes"] = torch.cuda.max_memory_allocated(index)
    return found


def _hold_against(resolved: ResolvedRun, checkpoint: Path | None, now: RunFacts, record: RunRecord) -> None:
    """Refuse, or tell, what differs from the run that the checkpoint is of.

    Raises:
        ConfigError: with a table of what makes it another run.
    """
    if checkpoint is None or resolved.hardware.rank != 0:
        return
    then = read_facts(checkpoint)
    if then is None:
        if now.total_steps is not None:
            warn(f"{checkpoint} does not say what its run was, so nobody can tell whether this is the same one")
        return
    verdict = judged(differences(then, now), names_in(resolved.config.loop.allow_change))
    if verdict.refused:
        raise ConfigError(_other_run(checkpoint, verdict))
    if now.total_steps is not None:
        record.note("changes", [*verdict.allowed, *verdict.harmless, *verdict.unseen])
        _tell(checkpoint, verdict)


def _other_run(checkpoint: Path, verdict: Verdict) -> Problem:
    from whet.config.effects import Effect

    found = f"it is of a run that this config would make another one:\n{table(verdict.refused)}\n"
    fixed = [change for change in verdict.refused if change.effect is Effect.FIXED]
    free = [change for change in verdict.refused if change.effect is not Effect.FIXED]
    cures = ["write the old values"]
    if fixed:
        cures.append("begin a new run in another output_dir (what is fixed cannot be allowed)")
    else:
        cures.append("allow it: " + " ".join(f"--allow-change {name}" for name in _names(free)))
    return Problem(str(checkpoint), found, ", or ".join(cures), "allow_change")


def _names(changes: list[Change]) -> list[str]:
    """What to write to allow them all: the data as a whole, where it is other data."""
    names = [change.key.partition(".")[0] for change in changes]
    if DATA in names:
        names = [name for name, change in zip(names, changes, strict=True) if DATA not in change.names or name == DATA]
    return list(dict.fromkeys(names))


def _tell(checkpoint: Path, verdict: Verdict) -> None:
    if verdict.allowed:
        say(f"from {checkpoint.name} on, the run is another one, as was allowed:\n{table(verdict.allowed)}")
    if verdict.harmless:
        say(f"changed since {checkpoint.name}, the same but for the last digits: {_listed(verdict.harmless)}")
    if verdict.unseen:
        say(f"changed since {checkpoint.name}, without effect on what is computed: {_listed(verdict.unseen)}")


def _listed(changes: Any) -> str:
    return ", ".join(f"{change.key} ({change.was} -> {change.now})" for change in changes)


def _template_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    import hashlib
    import json

    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True, default=str).encode()).hexdigest()


def _seeds_of_rows(config: Config) -> Mapping[str, int]:
    return {f"datasets.{number}": row.seed for number, row in enumerate(config.data.datasets) if row.seed is not None}


def _driver() -> str | None:
    """Version of NVIDIA's kernel driver."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return " ".join(text.partition("\n")[0].split()[:9])
