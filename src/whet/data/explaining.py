"""Why a prepared set is found or must be made: what decides its content, beside that of the set closest to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import DataError
from whet.core.secrets import redacted
from whet.data import store
from whet.data.chunk_file import read_account
from whet.data.fingerprint import Inputs
from whet.data.prepare import Preparation

FILES_NAMED, RANGES_NAMED = 5, 3

_KEYS = {
    "exact_deduplication": "dataset_exact_deduplication",
    "near_deduplication": "dataset_near_deduplication",
    "shuffle_before_merging": "shuffle_before_merging_datasets",
}
"""Fields of `SetOptions` whose key in the YAML has another name."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A chunk: its file, the numbers of its first and its last row, the digest of its bytes."""

    file: str
    first: int
    last: int
    digest: str


@dataclass(frozen=True)
class Making:
    """What decides the content of a set.

    Attributes:
        inputs: as the manifest has them.
        rows: title of a dataset among the inputs -> its chunks, in order.
    """

    inputs: Inputs
    rows: Mapping[str, Sequence[Rows]]

    @property
    def titles(self) -> list[str]:
        return list(self.inputs["order"])

    @classmethod
    def of_manifest(cls, manifest: Mapping[str, Any]) -> Making:
        """Raises KeyError for a manifest of a version that wrote down less."""
        rows: dict[str, list[Rows]] = {title: [] for title in manifest["inputs"]["order"]}
        for chunk in manifest["chunks"]:
            title = manifest["inputs"]["order"][chunk["dataset"]]
            rows[title].append(Rows(chunk["file"], chunk["first"], chunk["last"], chunk["digest"]))
        return cls(manifest["inputs"], rows)


def differences(old: Making, new: Making) -> list[str]:
    """What is different in the new one, each in a sentence; empty where both make the same set.

    Each set has options, and datasets with an encoding (code, tokenizer, template, options) and rows. A thing that
    several datasets share is named once.
    """
    found = list(_selection(old.inputs["selection"], new.inputs["selection"]))
    before, after = old.titles, new.titles
    found += [f"{_described(title)} removed" for title in before if title not in after]
    found += [f"{_described(title)} added" for title in after if title not in before]
    common = [title for title in after if title in before]
    if common != [title for title in before if title in after]:
        found.append("the datasets stand in another order")
    for title in common:
        found += _encoding(title, old.inputs[title], new.inputs[title])
    for title in common:
        if old.inputs[title]["rows"] != new.inputs[title]["rows"]:
            found += _rows(_name(title), old.rows[title], new.rows[title])
    return list(dict.fromkeys(found))


def closest(candidates: Mapping[Path, Making], new: Making) -> Path | None:
    """The set that differs least; None if none has a dataset, or rows, in common."""

    def distance(making: Making) -> tuple[int, int]:
        apart = set(making.titles) ^ set(new.titles)
        return len(differences(making, new)) + 2 * len(apart), -len(_digests(making) & _digests(new))

    related = {
        folder: distance(making)
        for folder, making in candidates.items()
        if set(making.titles) & set(new.titles) or _digests(making) & _digests(new)
    }
    return min(related, key=lambda folder: (related[folder], folder.name), default=None)


@dataclass(frozen=True)
class Explanation:
    """What `prepare` would do, and why.

    Attributes:
        folder: of prepared sets.
        found: the set, if it is there.
        closest: else the one that differs least.
        made: when that one was made.
        differences: from the closest one.
        chunks: dataset -> its chunks, and those of them that must be encoded.
    """

    folder: Path
    found: Path | None
    closest: Path | None
    made: str
    differences: Sequence[str]
    chunks: Mapping[str, tuple[int, Sequence[Rows]]]

    def lines(self) -> Iterator[str]:
        """The explanation for a person."""
        made = self.made[:16].replace("T", " ")
        if self.found:
            yield f"prepared: {self.found}, made {made}; it is used as it is"
            return
        if self.closest is None:
            yield f"not prepared: {self.folder} has no set of these datasets"
        elif not self.differences:
            yield f"not prepared: {self.closest}, made {made}, is damaged and is made again"
        else:
            yield f"not prepared; beside {self.closest}, made {made}:"
            yield from (f"  {difference}" for difference in self.differences)
        for name, (count, missing) in self.chunks.items():
            yield f"{name}: {_reuse(count, missing)}"


def explain(config: Config, resolved: ResolvedRun, tokenizer: Any) -> Explanation:
    """What `prepare` would do. Files that changed since they were last read are read; nothing is encoded.

    Raises:
        DataError: a source cannot be found or read.
    """
    work = Preparation.of(config, resolved, tokenizer)
    chunks = work.chunks(scan=True)
    assert chunks is not None
    rows: dict[str, list[Rows]] = {}
    counts: dict[str, tuple[int, Sequence[Rows]]] = {}
    for part, mine in zip(work.parts, chunks, strict=True):
        rows[part.title] = [Rows(chunk.file, chunk.first, chunk.last, chunk.digest) for chunk in mine]
        missing = [piece for piece in rows[part.title] if read_account(part.recipe.pool, piece.digest) is None]
        counts[part.name] = len(mine), missing
    with suppress(DataError):
        found = store.open_prepared(work.place(chunks))
        return Explanation(work.folder, found.path, None, found.manifest["created"], (), counts)
    manifests = dict(_manifests(work.folder))
    new = Making(redacted(json.loads(json.dumps(work.inputs(chunks), default=str))), rows)
    nearest = closest({folder: making for folder, (_, making) in manifests.items()}, new)
    if nearest is None:
        return Explanation(work.folder, None, None, "", (), counts)
    made, old = manifests[nearest]
    return Explanation(work.folder, None, nearest, made, differences(old, new), counts)


def _manifests(folder: Path) -> Iterator[tuple[Path, tuple[str, Making]]]:
    """The sets of a folder: when each was made, and from what."""
    for path in sorted(folder.glob(f"[!.]*/{store.MANIFEST}")):
        try:
            manifest = store.read_manifest(path.parent)
            yield path.parent, (manifest["created"], Making.of_manifest(manifest))
        except (DataError, KeyError):  # another version's
            continue


def _selection(old: Inputs, new: Inputs) -> Iterator[str]:
    follows = all(options["eval_sequence_len"] == options["sequence_len"] for options in (old, new))
    unsaid = {"eval_sequence_len"} if follows else set()
    if None in (old["seed"], new["seed"]):
        unsaid.add("seed")  # nothing was drawn then; what draws is another key
    for name in new:
        if name in old and name not in unsaid and old[name] != new[name]:
            yield f"{_KEYS.get(name, name)}: {_value(old[name])} -> {_value(new[name])}"


def _encoding(title: str, old: Inputs, new: Inputs) -> Iterator[str]:
    """What is different about how rows become samples."""
    if old["code"] != new["code"]:
        yield "whet's data code changed"
    if old["tokenizer"] != new["tokenizer"]:
        yield "the tokenizer changed"
    options = [
        name for name in new["options"] if old["options"].get(name, new["options"][name]) != new["options"][name]
    ]
    for option in options:
        section, _, key = option.partition(".")
        whose = f"{_name(title)}, " if section == "dataset" else ""
        yield f"{whose}{key}: {_value(old['options'][option])} -> {_value(new['options'][option])}"
    if old["template"] != new["template"] and not any("chat_template" in option for option in options):
        yield "the chat template changed"
    if old.get("date", "") != new.get("date", ""):
        before, after = (_value(inputs.get("date") or None) for inputs in (old, new))
        yield f"the date that the chat template writes: {before} -> {after}"
    if old["format"] != new["format"]:
        yield f"{_name(title)}: the code that reads its rows changed"
    if not options and set(old["options"]) != set(new["options"]):
        yield f"{_name(title)}: other options are read"


def _rows(name: str, old: Sequence[Rows], new: Sequence[Rows]) -> list[str]:
    """What is different about the rows of a dataset, file by file."""
    before, after = _by_file(old), _by_file(new)
    had, has = {piece.digest for piece in old}, {piece.digest for piece in new}
    found = []
    for file, pieces in after.items():
        fresh = [piece.digest not in had for piece in pieces]
        if file not in before:
            found.append(f"{file} added" if any(fresh) else f"{file}: rows that stood in another file before")
        elif any(fresh):
            found.append(f"{file}: {sum(fresh):,} of {_count(len(pieces), 'chunk')} changed ({_ranges(pieces, fresh)})")
        elif gone := sum(piece.digest not in has for piece in before[file]):
            found.append(f"{file}: {gone:,} of {_count(len(before[file]), 'chunk')} taken out")
        elif before[file] != pieces:
            found.append(f"{file}: its rows stand in other places")
    for file, pieces in before.items():
        if file not in after and any(piece.digest not in has for piece in pieces):
            found.append(f"{file} removed")
    if not found:
        return [f"{name}: other rows of it cannot be read, or its files stand in another order"]
    more = len(found) - FILES_NAMED
    return found if more <= 0 else [*found[:FILES_NAMED], f"{name}: {_count(more, 'file')} more changed"]


def _reuse(count: int, missing: Sequence[Rows]) -> str:
    if not missing:
        return f"all {count:,} chunk files are reused" if count > 1 else "its chunk file is reused"
    if len(missing) == count:
        return f"its {_count(count, 'chunk')} must be encoded"
    files = _by_file(missing)
    named = [f"{file}, {_ranges(pieces, [True] * len(pieces))}" for file, pieces in files.items()][:FILES_NAMED]
    more = f" and {_count(len(files) - len(named), 'file')} more" if len(files) > len(named) else ""
    return f"{count - len(missing):,} of {count:,} chunk files are reused; to be encoded: {'; '.join(named)}{more}"


def _by_file(pieces: Iterable[Rows]) -> dict[str, list[Rows]]:
    files: dict[str, list[Rows]] = {}
    for piece in pieces:
        files.setdefault(piece.file, []).append(piece)
    return files


def _ranges(pieces: Sequence[Rows], chosen: Sequence[bool]) -> str:
    """The rows of chosen chunks: ``rows 1 to 40, 90 to 100 and 2 ranges more``."""
    ranges: list[tuple[int, int]] = []
    previous = False
    for piece, wanted in zip(pieces, chosen, strict=True):
        if wanted and previous and piece.first == ranges[-1][1] + 1:
            ranges[-1] = ranges[-1][0], piece.last
        elif wanted:
            ranges.append((piece.first, piece.last))
        previous = wanted
    named = ", ".join(f"{first:,} to {last:,}" for first, last in ranges[:RANGES_NAMED])
    more = len(ranges) - RANGES_NAMED
    return f"rows {named}" + (f" and {_count(more, 'range')} more" if more > 0 else "")


def _digests(making: Making) -> set[str]:
    return {piece.digest for pieces in making.rows.values() for piece in pieces}


def _name(title: str) -> str:
    return title.partition(": ")[2]


def _described(title: str) -> str:
    key, _, name = title.partition(": ")
    return f"{'test dataset' if key == 'test_datasets' else 'dataset'} {name}"


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
