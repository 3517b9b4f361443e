"""What a run writes down of itself: its record while it happens, its facts in each checkpoint, its card at the end.

And where a run goes on, or is done again, it is held against the one before (`whet.earlier`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from whet import earlier
from whet.config import Config
from whet.config.changes import ADAPTER, BASE, DATA, ROWS
from whet.config.facts import RunFacts, facts_of, written_values
from whet.config.optimizers import PACKAGES as OPTIMIZER_PACKAGES
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, TrainingStopped, WhetError
from whet.core.heard import Heard, hearing
from whet.core.log import say, warn
from whet.distributed.hardware import described, peak_memory
from whet.record import RECORD_NAME, RunRecord, read_record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from whet.data.order import Order
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
        found = {} if identity is None else {BASE: asdict(identity)}
        return replace(self.known, identities={**self.known.identities, **found})


@contextmanager
def recorded(resolved: ResolvedRun, output_dir: Path, kind: str = "train") -> Iterator[RunRecord]:
    """The run's record, closed with how the run ended, whatever that was."""
    record = RunRecord(output_dir if resolved.hardware.rank == 0 else None, kind)
    note_config(record, resolved)
    heard = Heard(lambda heard: record.note("heard", heard.told()))
    with _closed(record, heard), hearing(heard, _LOGGERS):
        yield record


def resume(
    record: RunRecord, resolved: ResolvedRun, checkpoint: Path | None, repeated: earlier.Repeated | None = None
) -> None:
    """Note what the run goes on from or repeats, and hold the config against that run's, before anything is read.

    Raises:
        ConfigError: keys differ in a way that makes it another run.
    """
    if checkpoint is not None:
        from whet.training.publishing import last_step_of_run

        is_here = last_step_of_run(Path(resolved.output_dir), checkpoint) >= 0
        record.resumes(checkpoint, of_this_folder=is_here)
        earlier.hold_against(resolved, checkpoint, facts_of(resolved), record)
    elif repeated is not None:
        record.note("repeats", {"path": str(repeated.path), "started": repeated.record.get("started")})
        earlier.tell_of_repeated(resolved, repeated, facts_of(resolved), earlier.surroundings(repeated, record))


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
    record.note("hardware", described(resolved.hardware))
    record.note("choices", dict(resolved.choices))
    record.note("seeds", {"seed": resolved.seed, **_seeds_of_rows(config)})
    record.note("warnings", [str(problem) for problem in config.warnings])
    record.note("git", revision_of(Path(config.file)) if config.file else None)
    if (package := OPTIMIZER_PACKAGES.get(resolved.optimizer)) is not None:
        record.uses(package.pip)


def settle(
    record: RunRecord,
    resolved: ResolvedRun,
    checkpoint: Path | None,
    tokenizer: PreTrainedTokenizerBase,
    prepared: PreparedSet | StreamedSet,
    plan: StepPlan,
    repeated: earlier.Repeated | None = None,
    order: Order | None = None,
) -> Facts:
    """The data, the plan and every identity, noted; and held against those of the run that goes on or is done again.

    Args:
        order: of the training samples; None for a stream, which knows its place by itself.

    Raises:
        ConfigError: they differ in a way that changes the run, and were not allowed to.
    """
    from whet.data.fingerprint import content_identity, tokenizer_identity
    from whet.model.identity import Identifying, identify, identify_adapter

    said = {key: value for key, value in prepared.manifest.items() if key not in ("chunks", "hashes")}
    record.note("data", {"path": str(prepared.path or ""), "manifest": said})
    record.note("plan", plan)
    identities = {"tokenizer": tokenizer_identity(tokenizer), "chat_template": _template_identity(tokenizer)}
    if not resolved.config.data.streaming:
        identities[DATA] = content_identity(prepared.manifest)
    is_first = resolved.hardware.rank == 0  # it alone writes, and one reading of the weights is enough
    if is_first and order is not None:
        identities[ROWS] = order.identity()
    start = resolved.config.adapter.lora_model_dir
    if is_first and start and (adapter := identify_adapter(Path(start).expanduser())):
        identities[ADAPTER] = adapter
    base = Identifying(identify(resolved.config) if is_first else None, resolved.config)
    facts = Facts(facts_of(resolved, identities, plan.total_steps), base)
    record.note("identities", facts.now().identities)
    earlier.hold_against(resolved, checkpoint, facts.now(), record)
    if repeated is not None and checkpoint is None:
        earlier.tell_of_repeated(resolved, repeated, facts.now(), [])
    return facts


def base_loaded(
    record: RunRecord,
    resolved: ResolvedRun,
    checkpoint: Path | None,
    facts: Facts,
    repeated: earlier.Repeated | None = None,
) -> None:
    """After the model is loaded: a base that the hub has given only now is noted, and held against the run before.

    Raises:
        ConfigError: it is another one than the run had.
    """
    before = facts.now()
    if resolved.hardware.rank != 0 or not facts.base.look_again():
        return
    now = facts.now()
    record.note("identities", now.identities)
    earlier.hold_against(resolved, checkpoint, now, record, before)
    if repeated is not None and checkpoint is None:
        base = {BASE: now.identities[BASE]}
        earlier.tell_of_repeated(resolved, repeated, replace(now, identities=base), [])


def keep(trainer: Trainer, resolved: ResolvedRun, facts: Facts) -> None:
    """Let each checkpoint hold the facts of the run."""
    from whet.training.callbacks.facts import KeepFacts

    trainer.add_callback(KeepFacts(trainer, resolved, facts.now))


def conclude(
    record: RunRecord, resolved: ResolvedRun, facts: Facts, tokenizer: PreTrainedTokenizerBase, output_dir: Path
) -> None:
    """After the result is saved: what its base is, by all bytes, in the record and beside an adapter; and its card."""
    from whet.model.identity import write_identity

    if resolved.hardware.rank != 0:
        return
    identity = facts.base.result()
    record.note("identities", facts.now().identities)
    adapter = resolved.config.adapter
    if identity is not None and adapter.adapter is not None and not adapter.relora:
        write_identity(output_dir, identity)
    record.note("generation", {"stop_tokens": _stop_tokens(tokenizer, output_dir)})
    record.note("evaluation", _evaluation(output_dir, record.facts["result"]["best_checkpoint"]))
    _describe(record, resolved.config, output_dir)


@contextmanager
def artefact(kind: str, resolved: ResolvedRun, made_of: Path) -> Iterator[RunRecord]:
    """The record of something that is made of a trained model: put it in place (`RunRecord.place`) when it is made.

    Args:
        kind: "merge", "quantize", "gather", "gguf" or "gguf-adapter".
        made_of: the folder of the trained model, adapter or checkpoint.
    """
    record = RunRecord(None, kind)
    note_config(record, resolved)
    # The parts that ranks wrote lie in a folder of a checkpoint of the run's folder.
    places = (made_of, *made_of.absolute().parents[:2])
    run = next((found for place in places if (found := read_record(place / RECORD_NAME)) is not None), None)
    record.note("made_of", {"folder": str(made_of), "run": None if run is None else _in_short(run)})
    heard = Heard()
    with _closed(record, heard), hearing(heard, _LOGGERS):
        yield record
        if record.folder is not None:
            _describe(record, resolved.config, record.folder)


def _in_short(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run's record without the origin of each value, and without what is told twice."""
    return {name: section for name, section in run.items() if name not in ("config", "where", "choices")}


def _describe(record: RunRecord, config: Config, folder: Path) -> None:
    """What files there are, how near they are to the model they were made of, and the card that says it in words."""
    from whet.artefacts.card import write_card
    from whet.artefacts.card_facts import CARD_NAME
    from whet.model.identity import base_folder

    record.note("parity", read_record(folder / "parity.json"))
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and path.suffix in _WEIGHTS]
    record.note("artefacts", [{"file": path.name, "bytes": path.stat().st_size} for path in files])
    try:
        base = base_folder(config)
    except ModelError:  # it was moved away meanwhile
        base = None
    try:
        if not write_card(folder, record.as_json(), base):
            say(f"{folder / CARD_NAME} is your own, and stays as it is")
    except OSError as error:
        warn(f"{folder / CARD_NAME} cannot be written ({error.strerror})")


_WEIGHTS = (".safetensors", ".gguf", ".bin")


def _stop_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> list[str]:
    """The tokens that end an answer, as the saved generation config has them."""
    ids = (read_record(folder / "generation_config.json") or {}).get("eos_token_id")
    listed = ids if isinstance(ids, list) else [ids]
    return [str(tokenizer.convert_ids_to_tokens(each)) for each in listed if isinstance(each, int)]


def _evaluation(folder: Path, best_checkpoint: str | None) -> dict[str, Any]:
    """The last line of metrics.jsonl that tells of an evaluation of the saved weights."""
    from whet.training.callbacks.metrics_log import metrics_in

    best = None if best_checkpoint is None else int(best_checkpoint.rpartition("-")[2])
    found: dict[str, Any] = {}
    with suppress(OSError):  # there is no such file, or none that can be read
        for line in metrics_in(folder):
            if line["kind"] == "eval" and best in (None, line["step"]):
                found = line
    return found


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


def _template_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    import hashlib
    import json

    template = getattr(tokenizer, "chat_template", None)
    return hashlib.sha256(json.dumps(template, sort_keys=True, default=str).encode()).hexdigest()


def _seeds_of_rows(config: Config) -> Mapping[str, int]:
    return {f"datasets.{number}": row.seed for number, row in enumerate(config.data.datasets) if row.seed is not None}
