"""From the datasets of a config to a prepared set on disk: each step once, and every row accounted for."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
from filelock import FileLock, Timeout

from whet import __version__
from whet.config import Config, DatasetConfig
from whet.config.resolve import ResolvedRun
from whet.core.errors import DataError, Problem, RowError
from whet.core.log import say
from whet.data import store
from whet.data.admission import Dropped, Limits, admit, num_supervised, num_tokens
from whet.data.fingerprint import fingerprint, options
from whet.data.ledger import DUPLICATE, Ledger, bad_row_problems, nothing_kept_problem, too_long_problem
from whet.data.readers import BadRow, Row
from whet.data.sources import Source, locate
from whet.data.store import Origin, PreparedSet, SampleWriter, SourceFile
from whet.data.tokenise import Encoded, EncodedPreference, SampleEncoder
from whet.data.workers import EncoderRecipe, encode_chunks

ROWS_PER_CALL = 1000
"""Rows that are tokenised together: enough to keep the tokenizer busy, few enough to hold."""


def prepare(config: Config, resolved: ResolvedRun, tokenizer: Any, *, refresh: bool = False) -> PreparedSet:
    """The prepared set of a config: made now, or found as it was made before.

    Several processes may call this at once: one works, the others wait and read what it made.

    Args:
        config: its `datasets`, `test_datasets` and what else shapes samples.
        resolved: the run; its sequence lengths, seed and folder of prepared sets.
        tokenizer: a fast tokenizer with its special tokens set.
        refresh: prepare again even if the set is there.

    Raises:
        DataError: a source cannot be found or read, rows cannot be used (all of them are named), nothing is left.
        ConfigError: a format or chat template does not exist.
    """
    parts = _locate_all(config)
    key, final = _name(parts, config, resolved, tokenizer)
    seen = _created(final)
    if seen and not refresh:
        return _opened(final)
    with _sole_preparer(config, final):
        if _created(final) not in (None, seen):
            return _opened(final)
        _make(final, key, parts, config, resolved, tokenizer)
    return store.open_prepared(final)


def find_prepared(config: Config, resolved: ResolvedRun, tokenizer: Any) -> PreparedSet | None:
    """The prepared set of a config if it was made before; raises as `prepare` where a source cannot be found."""
    _, folder = _name(_locate_all(config), config, resolved, tokenizer)
    return store.open_prepared(folder) if store.is_published(folder) else None


@dataclass(frozen=True)
class _Part:
    """A dataset to be read, with its place in the YAML."""

    key: Literal["datasets", "test_datasets"]
    number: int
    dataset: DatasetConfig
    where: str
    source: Source
    name: str

    @property
    def is_test(self) -> bool:
        return self.key == "test_datasets"


def _locate_all(config: Config) -> list[_Part]:
    folder = Path(config.file).parent if config.file else None
    keys: tuple[Literal["datasets", "test_datasets"], ...] = ("datasets", "test_datasets")
    rows = [(key, number, dataset) for key in keys for number, dataset in enumerate(getattr(config.data, key))]
    parts: list[_Part] = []
    problems: list[Problem] = []
    for key, number, dataset in rows:
        where = config.where((key, number, "path"))
        try:
            source = locate(dataset, where, folder)
        except DataError as error:
            problems.extend(error.problems)
        else:
            name = _unique_name(source.name, [part.name for part in parts])
            parts.append(_Part(key, number, dataset, where, source, name))
    if problems:
        raise DataError(problems)
    return parts


def _name(parts: Sequence[_Part], config: Config, resolved: ResolvedRun, tokenizer: Any) -> tuple[str, Path]:
    """The set's fingerprint, and its folder."""
    datasets, sources = [part.dataset for part in parts], [part.source for part in parts]
    key = fingerprint(config, resolved.seed, tokenizer, datasets, sources)
    return key, Path(resolved.prepared_path) / key[:32]


def _unique_name(path: str, taken: Sequence[str]) -> str:
    """A short name for reports and metrics: ``data/chat.jsonl`` -> ``chat``, a second one ``chat-2``."""
    name = path if "/" in path and not Path(path).exists() and not Path(path).suffix else Path(path).name.split(".")[0]
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _created(folder: Path) -> str | None:
    """When the set in a folder was made; None if there is none."""
    return str(store.read_manifest(folder).get("created")) if store.is_published(folder) else None


def _opened(folder: Path) -> PreparedSet:
    say(f"using the prepared set {folder}")
    return store.open_prepared(folder)


@contextmanager
def _sole_preparer(config: Config, final: Path) -> Iterator[None]:
    """Hold the set's lock; a failure to write becomes an error that names the folder."""
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(final.with_suffix(".lock"))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            say("another process prepares this data; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
    except OSError as error:
        found = f"the prepared set cannot be written to '{final.parent}' ({error.strerror or error})"
        fix = "set `dataset_prepared_path` to a folder with room that you may write to"
        raise DataError(Problem(config.where("dataset_prepared_path"), found, fix)) from error


def _make(final: Path, key: str, parts: Sequence[_Part], config: Config, resolved: ResolvedRun, tokenizer: Any) -> None:
    """Write the set beside its final place and publish it; what a killed preparation left is cleared first."""
    for leftover in final.parent.glob(f".{final.name}.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        kind: store.Kind = "preference" if config.method.rl else "tokens"
        with SampleWriter(folder / store.SAMPLES, kind) as writer:
            intake = _Intake(writer, config, resolved)
            for number, part in enumerate(parts):
                intake.take(number, part, EncoderRecipe(config, part.key, part.number, tokenizer))
        _refuse_faults(intake.ledgers, parts, config, resolved)
        train, validation = _divide(intake, parts, config, resolved)
        store.write_indices(folder, "train", train)
        if validation is not None:
            store.write_indices(folder, "validation", validation)
        store.write_manifest(
            folder,
            {
                "created": datetime.now(UTC).isoformat(),
                "whet": __version__,
                "fingerprint": key,
                "kind": kind,
                "options": options(config, resolved.seed),
                "datasets": [part.name for part in parts],
                "test_datasets": [part.name for part in parts if part.is_test],
                "files": [asdict(file) for file in intake.files],
                "ledgers": [ledger.as_dict() for ledger in intake.ledgers],
            },
        )
        store.publish(folder, final)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Intake:
    """Takes rows in, writes the samples that may stay and keeps the account.

    Attributes:
        ledgers: one for each dataset taken.
        files: every file that gave a row.
        sources: dataset number of each sample written.
        lengths: tokens of each.
        draws: a number for each sample, from the seed and the row's content alone; made only if rows are drawn.
    """

    def __init__(self, writer: SampleWriter, config: Config, resolved: ResolvedRun) -> None:
        self._writer, self._config, self._resolved = writer, config, resolved
        self._wants_preferences = writer.kind == "preference"
        self._file_numbers: dict[SourceFile, int] = {}
        self._seen: set[bytes] | None = set() if config.data.dataset_exact_deduplication else None
        self._seed = resolved.seed.to_bytes(16, "little", signed=True) if config.data.val_set_size else None
        self.ledgers: list[Ledger] = []
        self.sources = array("h")
        self.lengths = array("q")
        self.draws = array("Q")

    @property
    def files(self) -> list[SourceFile]:
        return list(self._file_numbers)

    def take(self, number: int, part: _Part, recipe: EncoderRecipe) -> None:
        """Read, encode and write one dataset."""
        encoder = recipe.make()
        ledger = Ledger(part.name)
        self.ledgers.append(ledger)
        limits = self._limits(part, encoder)
        chunks = _chunks(part.source.rows(), ROWS_PER_CALL)
        for rows, outcomes in encode_chunks(chunks, encoder, recipe, self._resolved.num_proc):
            encoded = iter(outcomes)
            for row in rows:
                ledger.read += 1
                outcome = row.value if isinstance(row.value, BadRow) else next(encoded)
                if isinstance(outcome, BadRow | RowError):
                    ledger.drop(outcome.reason, row.place, outcome.detail, bad=True)
                elif isinstance(outcome, EncodedPreference) != self._wants_preferences:
                    raise _wrong_kind(part, self._wants_preferences)
                else:
                    self._settle(number, ledger, row, outcome, limits)

    def _limits(self, part: _Part, encoder: SampleEncoder) -> Limits:
        data = self._config.data
        most = self._resolved.eval_sequence_len if part.is_test else self._resolved.sequence_len
        strategy = "split" if encoder.cuts_long_rows else data.excess_length_strategy
        return Limits(most, data.min_sample_len, strategy)

    def _settle(
        self, number: int, ledger: Ledger, row: Row, sample: Encoded | EncodedPreference, limits: Limits
    ) -> None:
        verdict = admit(sample, limits)
        if isinstance(verdict, Dropped):
            ledger.drop(verdict.reason, row.place, verdict.detail, verdict.tokens, verdict.bad)
            return
        new = [piece for piece in verdict.samples if self._is_new(piece)]
        if not new:
            ledger.drop(DUPLICATE, row.place)
            return
        origin = Origin(number, self._file_number(row), row.number)
        draw = self._draw(row)
        for piece in new:
            self._writer.add(_sequences(piece), num_supervised(piece), origin)
            self.sources.append(number)
            self.lengths.append(num_tokens(piece))
            self.draws.append(draw)
        ledger.kept += 1
        ledger.samples += len(new)
        if verdict.done:
            ledger.cut_row(verdict.done, row.place, verdict.tokens)

    def _file_number(self, row: Row) -> int:
        return self._file_numbers.setdefault(SourceFile(row.file, row.by_line), len(self._file_numbers))

    def _is_new(self, sample: Encoded | EncodedPreference) -> bool:
        if self._seen is None:
            return True
        digest = hashlib.blake2b(digest_size=16)
        for sequence in _sequences(sample):
            digest.update(len(sequence).to_bytes(8, "little") + sequence.tobytes())
        before = len(self._seen)
        self._seen.add(digest.digest())
        return len(self._seen) > before

    def _draw(self, row: Row) -> int:
        if self._seed is None:
            return 0
        content = orjson.dumps(row.value, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS, default=str)
        return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=self._seed).digest(), "little")


def _wrong_kind(part: _Part, wants_preferences: bool) -> DataError:
    if wants_preferences:
        found = f"'{part.name}' has no preferences: its rows (type '{part.dataset.type}') hold one answer"
        return DataError(Problem(part.where, found, "for `rl`, use a type with a chosen and a rejected answer"))
    found = (
        f"'{part.name}' has preferences (type '{part.dataset.type}'), and no `rl` method is set that learns from them"
    )
    return DataError(Problem(part.where, found, "set `rl: dpo`, or another type"))


def _refuse_faults(ledgers: Sequence[Ledger], parts: Sequence[_Part], config: Config, resolved: ResolvedRun) -> None:
    """Raise one error for everything that is wrong with the rows."""
    problems: list[Problem] = []
    for ledger, part in zip(ledgers, parts, strict=True):
        limit = resolved.eval_sequence_len if part.is_test else resolved.sequence_len
        found = list(bad_row_problems(ledger)) if config.data.on_bad_row == "raise" else []
        too_long = too_long_problem(ledger, limit) if config.data.excess_length_strategy == "raise" else None
        if too_long:
            found.append(too_long)
        nothing = nothing_kept_problem(ledger, part.where, limit)
        problems += found or ([nothing] if nothing else [])
    if problems:
        raise DataError(problems)


def _divide(
    intake: _Intake, parts: Sequence[_Part], config: Config, resolved: ResolvedRun
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
    """Sample numbers to train and to validate on."""
    sources = np.array(intake.sources, dtype=np.int64)
    is_test = np.array([part.is_test for part in parts], dtype=np.bool_)[sources]
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
    validation = test if len(test) else None
    if any(part.is_test for part in parts) and validation is None:
        found = "every row of the test datasets is also a row of the training datasets"
        raise DataError(Problem(config.where("test_datasets"), found, "use rows that are not trained on"))
    if config.data.val_set_size:
        draws, lengths = np.array(intake.draws, dtype=np.uint64), np.array(intake.lengths)
        allowed = lengths <= resolved.eval_sequence_len
        train, validation = draw_validation(draws, allowed, config.data.val_set_size, config.where("val_set_size"))
    if config.data.shuffle_before_merging_datasets:
        train = _shuffled_within(train, sources, resolved.seed)
    return train, validation


def draw_validation(
    draws: npt.NDArray[np.uint64], allowed: npt.NDArray[np.bool_], val_set_size: float, where: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split samples in training and validation.

    The samples with the smallest draws are taken; as a draw comes from the seed and a row's content, the same rows are
    taken in whatever order, and from whatever files, they were read.

    Args:
        draws: uint64[N].
        allowed: bool[N], samples that may be taken (no longer than eval_sequence_len).
        val_set_size: a share of all samples, below 1, or a number of them.

    Returns:
        Sample numbers of both, each in order, each at least one.

    Raises:
        DataError: nothing would be left to train on, or too few samples may be taken.
    """
    count = max(1, round(len(draws) * val_set_size)) if val_set_size < 1 else int(val_set_size)
    if count >= len(draws):
        found = f"val_set_size {val_set_size:g} takes all {len(draws):,} samples, nothing is left to train on"
        raise DataError(Problem(where, found, "set it lower, or to 0 for no validation"))
    candidates = np.flatnonzero(allowed)
    if count > len(candidates):
        found = f"val_set_size {val_set_size:g} takes {count:,} samples, only {len(candidates):,} fit eval_sequence_len"
        raise DataError(Problem(where, found, "set it lower, or raise eval_sequence_len"))
    taken = candidates[np.argsort(draws[candidates], kind="stable")[:count]]
    mask = np.zeros(len(draws), dtype=np.bool_)
    mask[taken] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


def _shuffled_within(
    indices: npt.NDArray[np.int64], sources: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.int64]:
    """Each dataset's samples in a random order of their own, the datasets in their order."""
    key = np.array([seed % 2**64, 2**64 - 1], dtype=np.uint64)
    random = np.random.Philox(key=key).random_raw(len(indices))
    shuffled: npt.NDArray[np.int64] = indices[np.lexsort((random, sources[indices]))]
    return shuffled


def _sequences(sample: Encoded | EncodedPreference) -> tuple[npt.NDArray[Any], ...]:
    if isinstance(sample, Encoded):
        return sample.input_ids, sample.supervised
    return sample.prompt_ids, sample.chosen_ids, sample.rejected_ids


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    iterator = iter(rows)
    while chunk := list(islice(iterator, size)):
        yield chunk
