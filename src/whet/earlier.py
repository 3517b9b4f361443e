"""The run before: gone on from, or done again. What is not as it was there is refused or told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from whet.config.changes import (
    ADAPTER,
    BASE,
    DATA,
    TEMPLATE,
    TOKENIZER,
    Change,
    Verdict,
    judged,
    names_in,
    spelt,
    table,
)
from whet.config.compared import BY_CONTENT
from whet.config.differences import differences
from whet.config.effects import Effect
from whet.config.facts import RunFacts, facts_in, read_facts
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.core.foreign import as_whet_writes
from whet.core.log import say, warn
from whet.record import RECORD_NAME, SCHEMA, RunRecord, read_record


@dataclass(frozen=True)
class Repeated:
    """A recorded run that is done again.

    Attributes:
        path: of its ``run.json``.
        record: what that holds.
        strict: refuse on any difference, not only tell it.
    """

    path: Path
    record: Mapping[str, Any]
    strict: bool = False


def hold_against(
    resolved: ResolvedRun, checkpoint: Path | None, now: RunFacts, record: RunRecord, before: RunFacts | None = None
) -> None:
    """Refuse, or tell, what differs from the run that the checkpoint is of.

    Args:
        before: what was known when this was asked the last time; what was told then is not told again.

    Raises:
        ConfigError: with a table of what makes it another run.
    """
    if checkpoint is None or resolved.hardware.rank != 0:
        return
    then = read_facts(checkpoint)
    if then is None:
        if now.total_steps is not None and before is None:
            warn(f"{checkpoint} does not say what its run was, so nobody can tell whether this is the same one")
        return
    allowed = names_in(resolved.config.loop.allow_change)
    with as_whet_writes(str(checkpoint), _NO_SUCH_RUN, "go on from another checkpoint"):
        found, told = differences(then, now), [] if before is None else differences(then, before)
    verdict = judged(found, allowed)
    if verdict.refused:
        raise ConfigError(_other_run(checkpoint, verdict))
    if now.total_steps is not None:
        record.note("changes", [*verdict.allowed, *verdict.harmless, *verdict.unseen])
        _tell(checkpoint, judged([change for change in found if change not in told], allowed))


_NO_SUCH_RUN = "what it says of its run is of another kind than whet writes"


def tell_of_repeated(resolved: ResolvedRun, repeated: Repeated, now: RunFacts, more: list[Change]) -> None:
    """Say what is not as it was in the run that is repeated; before the data is prepared, and again after.

    Raises:
        ConfigError: under ``--strict``, with a table of it.
    """
    then = facts_in(repeated.record)
    if resolved.hardware.rank != 0 or then is None:
        return
    with as_whet_writes(str(repeated.path), _NO_SUCH_RUN, "train with the YAML itself"):
        found = [change for change in differences(then, now) if change.key not in _ELSEWHERE]
    if now.identities:  # the keys were held against each other before
        found = [change for change in found if change.key in now.identities and change.is_other_run]
    else:
        found = [change for change in found if change.effect not in BY_CONTENT]
    found = [*more, *found]
    if not found:
        if now.identities:
            _tell_what_is_the_same(resolved, repeated, [name for name in now.identities if name in then.identities])
        return
    if repeated.strict and any(change.effect is not Effect.NONE for change in found):
        said = f"not everything is as it was in that run:\n{table(found)}\n"
        raise ConfigError(Problem(str(repeated.path), said, "make it the same, or leave out --strict"))
    warn(f"not everything is as it was in {repeated.path}:\n{table(found)}")


def _tell_what_is_the_same(resolved: ResolvedRun, repeated: Repeated, names: Sequence[str]) -> None:
    same = [words for name, words in _WORDS.items() if name in names]
    if not same:
        warn(f"{repeated.path} does not say what data and base it had, so nobody can tell whether they are the same")
        return
    listed = " and ".join([", ".join(same[:-1]), same[-1]] if same[1:] else same)
    stream = "; the rows of a stream are not compared" if resolved.config.data.streaming else ""
    say(f"the same {listed} as in {repeated.path}{stream}")


_WORDS = {DATA: "data", TOKENIZER: "tokenizer", TEMPLATE: "chat template", BASE: "base model", ADAPTER: "first adapter"}
_ELSEWHERE = frozenset({"output_dir", "hub_model_id", "hub_strategy", "hub_revision", "wandb_run_id"})
"""Keys that a repeated run does not share."""


def surroundings(repeated: Repeated, record: RunRecord) -> list[Change]:
    """What is different around the config: packages, machine, commit; and whether it was one config at all."""
    with as_whet_writes(str(repeated.path), _NO_SUCH_RUN, "train with the YAML itself"):
        return list(_surroundings(repeated, record.as_json()))


def _surroundings(repeated: Repeated, now: Mapping[str, Any]) -> Iterator[Change]:
    for section, keys, place in (
        ("versions", None, "installed"),
        ("hardware", _OF_A_MACHINE, "this machine"),
        ("git", ("commit", "dirty"), "the config's folder"),
    ):
        was, value = repeated.record.get(section) or {}, now.get(section) or {}
        # whet needs Jinja: a record that does not name it knows of fewer packages, not of fewer that were installed.
        known = was if section == "versions" and "jinja2" not in was else {*was, *value}
        for key in keys or sorted(known):
            if was.get(key) != value.get(key) and not (section == "git" and not (was and value)):
                note = (
                    "the last digits may differ" if section != "git" else "the config's values are those of the record"
                )
                name = f"git {key}" if section == "git" else key
                yield Change(name, spelt(was.get(key)), spelt(value.get(key)), place, Effect.ROUNDING, note)
    sessions = repeated.record.get("sessions") or []
    changed = [change["key"] for each in sessions for change in each.get("changes") or [] if _was_another(change)]
    if changed:
        note = "that run was resumed with changes; its last config is done from the beginning"
        yield Change(", ".join(dict.fromkeys(changed)), "changed", "the last", "", Effect.CHANGES, note)


_OF_A_MACHINE = ("device", "device_name", "world_size", "threads", "machine", "compute_capability", "cuda", "cudnn")


def _was_another(change: Mapping[str, Any]) -> bool:
    return str(change.get("effect")) in (str(Effect.CHANGES), Effect.CHANGES.value)


def read_run(path: Path) -> tuple[Path, dict[str, Any]]:
    """The record of a training run: a ``run.json``, or the folder that holds one.

    Raises:
        ArtefactError: there is none, or none that a run can be made of.
    """
    file = path / RECORD_NAME if path.is_dir() else path
    record = read_record(file)
    if record is None:
        found = "there is no such file" if not file.exists() else "this is no record of a run"
        raise ArtefactError(Problem(str(file), found, "name the run.json in a run's output folder"))
    with as_whet_writes(str(file), "this is no record of a run", "name the run.json in a run's output folder"):
        _refuse_record(file, record)
    return file, record


def _refuse_record(file: Path, record: Mapping[str, Any]) -> None:
    if record.get("kind", "train") != "train":
        found = f"this is the record of: {record['kind']}"
        raise ArtefactError(Problem(str(file), found, "name the run.json of the training run"))
    if not isinstance(record.get("written"), dict) or not isinstance(record.get("values"), dict):
        found = f"it was written by whet {(record.get('versions') or {}).get('whet', '')}, which kept too little"
        raise ArtefactError(Problem(str(file), found, "train with the YAML itself"))
    if record.get("schema", 0) > SCHEMA:
        found = f"it has schema {record['schema']}, and this version of whet knows {SCHEMA}"
        raise ArtefactError(Problem(str(file), found, "use the version of whet that wrote it"))


def num_processes(file: Path, record: Mapping[str, Any]) -> int:
    """How many processes the recorded run had.

    Raises:
        ArtefactError: that is no number of processes.
    """
    with as_whet_writes(str(file), "this is no record of a run", "name the run.json in a run's output folder"):
        number = (record.get("hardware") or {}).get("world_size") or 1
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"hardware.world_size is {spelt(number)}")
        return number


def refuse_too_many(file: Path, processes: int) -> None:
    """Raises an ArtefactError where this machine has not the accelerators, or the cores, for so many processes."""
    from whet.distributed.hardware import probe

    here = probe()
    most, what = (here.num_devices, "accelerators") if here.device == "cuda" else (max(here.num_cpus, 2), "cores")
    if processes > most:
        found = f"that run had {processes} processes, and this machine has {what} for {most}"
        fix = f"say how many there shall be, or on how many machines: whet rerun {file} -- --nproc-per-node=NUMBER"
        raise ArtefactError(Problem(str(file), found, fix))


def place_of_rerun(file: Path) -> str:
    """A folder beside that of a record, which is not there yet."""
    folder = file.resolve().parent
    first = folder.parent / f"{folder.name}-rerun"
    others = (folder.parent / f"{first.name}-{number}" for number in count(2))
    free = next(path for path in chain([first], others) if not path.exists() or _holds_a_refusal(path))
    return os.path.relpath(free) if free.is_relative_to(Path.cwd()) else str(free)


def _holds_a_refusal(folder: Path) -> bool:
    """Whether nothing but the record of a run that was refused is there."""
    if [path.name for path in folder.iterdir()] != [RECORD_NAME]:
        return False
    return str((read_record(folder / RECORD_NAME) or {}).get("outcome", "")).startswith("refused")


def _other_run(checkpoint: Path, verdict: Verdict) -> Problem:
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


def _listed(changes: Sequence[Change]) -> str:
    notes = (f"; {change.note}" if change.note else "" for change in changes)
    return ", ".join(f"{each.key} ({each.was} -> {each.now}{note})" for each, note in zip(changes, notes, strict=True))
