"""From the datasets of a config to a prepared set on disk: each step once, and every row accounted for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Literal

from whet import __version__
from whet.config import Config, DatasetConfig
from whet.config.resolve import ResolvedRun
from whet.config.tasks import Task, task_of
from whet.core.disk import NotWritten, writing
from whet.core.errors import DataError, Problem
from whet.core.log import say, warn
from whet.data import store
from whet.data.assembly import SetOptions, assemble
from whet.data.chunk_file import ChunkAccount, read_account
from whet.data.chunks import Chunk, FileChanged
from whet.data.fingerprint import Inputs, code_identity, fingerprint, rows_identity, tokenizer_identity
from whet.data.ledger import Ledger
from whet.data.locking import locked
from whet.data.publishing import clear_leftovers, publish_set
from whet.data.recorder import Reads
from whet.data.refusals import Demands, refuse_ledgers, refuse_mixed, warn_of_date, warn_of_overlap
from whet.data.sample_table import EncodedChunk, EncodedPart
from whet.data.samples import Kind
from whet.data.scan import ScanCache, descriptors
from whet.data.sources import Source, locate_row
from whet.data.store import PreparedSet
from whet.data.tokenise import SampleEncoder
from whet.data.workers import EncoderRecipe, encode_chunks

POOL, SCANS, LOCKS = "chunks", "scans", "locks"

KINDS_OF_TASK: Mapping[Task, tuple[Kind, ...]] = {
    "supervised": ("tokens",),
    "preference": ("preference",),
    "odds": ("preference",),
    "reward": ("preference",),
    "unpaired": ("unpaired",),
    "steps": ("stepwise",),
    "prompts": ("prompts",),
    "features": ("prompts", "tokens"),
}
"""What is trained -> the kinds of samples it takes."""


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
    work = Preparation.of(config, resolved, tokenizer)
    found = None if refresh else work.find(scan=False)
    if found is None:
        found = work.make(refresh=refresh)
    # A set may have been made under `on_bad_row: drop`; its bad rows are still an error where they are one now.
    refuse_ledgers([Ledger.from_dict(values) for values in found.manifest["ledgers"]], work.demands)
    if work.options.eval_overlap == "report":
        warn_of_overlap(found.manifest, config.where("test_datasets"))
    return found


def find_prepared(config: Config, resolved: ResolvedRun, tokenizer: Any) -> PreparedSet | None:
    """The prepared set of a config if it was made before; raises as `prepare` where a source cannot be found."""
    return Preparation.of(config, resolved, tokenizer).find(scan=True)


@dataclass(frozen=True)
class Part:
    """A dataset to be read, with its place in the YAML.

    Attributes:
        key, number: of the dataset in the config.
        where: place of its path.
        name: in reports.
        source: its rows.
        encoder, recipe: what encodes them.
        inputs: what decides how a row is encoded.
    """

    key: Literal["datasets", "test_datasets"]
    number: int
    dataset: DatasetConfig
    where: str
    name: str
    source: Source
    encoder: SampleEncoder
    recipe: EncoderRecipe
    inputs: Inputs

    @property
    def is_test(self) -> bool:
        return self.key == "test_datasets"

    @property
    def title(self) -> str:
        """Its name among the inputs of a set."""
        return f"{self.key}: {self.name}"


@dataclass(frozen=True)
class Preparation:
    """All that is known before a row is read.

    Attributes:
        parts: training datasets, then test datasets.
        options: of the set.
        folder: of prepared sets.
    """

    config: Config
    parts: Sequence[Part]
    options: SetOptions
    folder: Path
    num_proc: int

    @classmethod
    def of(cls, config: Config, resolved: ResolvedRun, tokenizer: Any) -> Preparation:
        folder = Path(resolved.prepared_path)
        shared = {"code": code_identity(), "tokenizer": tokenizer_identity(tokenizer)}
        parts = [_part(found, config, tokenizer, folder / POOL, shared) for found in _locate_all(config)]
        day = next((part.inputs["date"] for part in parts if part.inputs["date"]), "")
        if day:
            warn_of_date(day, config.where("chat_template"))
        for problem in dict.fromkeys(part.encoder.missing_tokens for part in parts):
            if problem is not None:
                warn(problem)
        return cls(config, parts, set_options(config, resolved), folder, resolved.num_proc)

    @property
    def demands(self) -> list[Demands]:
        """What is asked of each part's account."""
        options, bad_rows_end = self.options, self.config.data.on_bad_row == "raise"
        return [
            Demands(
                part.where,
                options.eval_sequence_len if part.is_test else options.sequence_len,
                bad_rows_end,
                long_rows_end=options.excess_length_strategy == "raise",
            )
            for part in self.parts
        ]

    def inputs(self, chunks: Sequence[Sequence[Chunk]]) -> Inputs:
        """What decides the content of the set, for the chunks of each part."""
        inputs: dict[str, Any] = {"selection": asdict(self.options), "order": [part.title for part in self.parts]}
        for part, mine in zip(self.parts, chunks, strict=True):
            inputs[part.title] = {**part.inputs, "rows": rows_identity(mine)}
        return inputs

    def find(self, *, scan: bool) -> PreparedSet | None:
        """The set, if it is there: told by stamps of the sources; where these are not known, by reading (``scan``)."""
        chunks = self.chunks(scan=scan)
        return None if chunks is None else _opened(self.place(chunks))

    def chunks(self, *, scan: bool) -> list[list[Chunk]] | None:
        """The chunks of each part, without their lines; None if one is not known and not to be read (``scan``)."""
        cache = ScanCache(self.folder / SCANS)
        chunks: list[list[Chunk]] = []
        for part in self.parts:
            stamp = None if scan else part.source.stamp()
            known = descriptors(part.source, cache) if scan else cache.find(stamp) if stamp else None
            if known is None:
                return None
            chunks.append([replace(chunk, lines=None) for chunk in known])
        return chunks

    def make(self, *, refresh: bool) -> PreparedSet:
        """Encode what is not encoded yet, and publish the set.

        Raises:
            DataError: as `prepare`, or the folder cannot be written to.
        """
        mine = {"selection": asdict(self.options), **{part.title: part.inputs for part in self.parts}}
        with ExitStack() as stack:
            try:
                waited = stack.enter_context(self._lock(mine))
            except NotWritten as error:  # the folder of others, perhaps, with the set in it
                found = self.find(scan=True) if self.folder.is_dir() and not refresh else None
                if found is None:
                    raise self._unwritable(error) from error
                return found
            if waited and not refresh and (found := self.find(scan=False)) is not None:
                return found
            try:
                return self._made(refresh)
            except NotWritten as error:
                raise self._unwritable(error) from error

    def _made(self, refresh: bool) -> PreparedSet:
        """The set, by whoever holds its lock. Raises NotWritten."""
        parts = [self._encoded(part, refresh) for part in self.parts]
        refuse_mixed(parts)
        chunks = [[encoded.chunk for encoded in part.chunks] for part in parts]
        folder = self.place(chunks)
        if not refresh and (found := _opened(folder)) is not None:
            return found
        places = {key: self.config.where(key) for key in ("val_set_size", "test_datasets")}
        assembly = assemble(parts, self.options, places, self.demands)
        refuse_ledgers(assembly.ledgers, self.demands)
        with writing():
            publish_set(folder, self._facts(self.inputs(chunks), parts), parts, assembly)
        return store.open_prepared(folder)

    def place(self, chunks: Sequence[Sequence[Chunk]]) -> Path:
        """The folder of the set that is made of these chunks of each part."""
        return self.folder / fingerprint(self.inputs(chunks))[:32]

    def _unwritable(self, error: NotWritten) -> DataError:
        found = f"the prepared set cannot be written to '{self.folder}' ({error.strerror})"
        fix = "set `dataset_prepared_path` to a folder with room that you may write to"
        return DataError(Problem(self.config.where("dataset_prepared_path"), found, fix))

    @contextmanager
    def _lock(self, inputs: Inputs) -> Iterator[bool]:
        """Hold the lock of these inputs; yields whether another process had it first. Raises NotWritten."""
        with ExitStack() as stack:
            with writing():
                waited = stack.enter_context(locked(self.folder / LOCKS / fingerprint(inputs)[:32]))
            yield waited

    def _encoded(self, part: Part, refresh: bool) -> EncodedPart:
        """A part with all its chunks encoded; preparations that share it do this one after the other."""
        with writing():
            clear_leftovers(part.recipe.pool)
        with self._lock({"source": part.source.name, **part.inputs}):
            try:
                chunks = self._encoded_chunks(part, refresh)
            except FileChanged:
                stamp = part.source.stamp()
                if stamp is None or not ScanCache(self.folder / SCANS).forget(stamp):
                    raise
                chunks = self._encoded_chunks(part, refresh)  # read again: what was remembered of the file is not so
        return EncodedPart(part.name, part.where, part.is_test, part.encoder.cuts_long_rows, chunks)

    def _encoded_chunks(self, part: Part, refresh: bool) -> list[EncodedChunk]:
        return [
            EncodedChunk(replace(chunk, lines=None), account, part.recipe.pool / f"{chunk.digest}.arrow")
            for chunk, account in self._accounts(part, refresh)
        ]

    def _accounts(self, part: Part, refresh: bool) -> Iterator[tuple[Chunk, ChunkAccount]]:
        chunks = self._chunks(part, refresh)
        if self.config.data.prepare_with == "ray":
            from whet.data.ray_workers import encode_with_ray

            return encode_with_ray(chunks, part.recipe, refresh=refresh)
        return encode_chunks(chunks, part.encoder, part.recipe, self.num_proc, refresh=refresh)

    def _chunks(self, part: Part, refresh: bool) -> Iterator[Chunk]:
        """The chunks of a part: remembered ones where their rows are at hand or not needed, else read again."""

        def suffices(chunk: Chunk) -> bool:
            made = not refresh and read_account(part.recipe.pool, chunk.digest) is not None
            return made or chunk.span is not None

        cache = ScanCache(self.folder / SCANS)
        stamp = part.source.stamp()
        known = cache.find(stamp) if stamp is not None else None
        if known is not None and all(map(suffices, known)):
            yield from known
            return
        seen: list[Chunk] = []
        for chunk in part.source.chunks():
            seen.append(replace(chunk, lines=None))
            yield chunk
        if stamp is not None and part.source.stamp() == stamp:
            cache.remember(stamp, seen)

    def _facts(self, inputs: Inputs, parts: Sequence[EncodedPart]) -> dict[str, Any]:
        """What the manifest says beside what became of the rows."""
        kinds = {chunk.account.kind for part in parts for chunk in part.chunks if chunk.account.samples}
        return {
            "created": datetime.now(UTC).isoformat(),
            "whet": __version__,
            "fingerprint": fingerprint(inputs),
            "inputs": inputs,
            "kind": kinds.pop() if kinds else self.parts[0].recipe.kinds[0],
            "datasets": [part.name for part in self.parts],
            "test_datasets": [part.name for part in self.parts if part.is_test],
            "engines": {part.name: _engines(part) for part in parts},
        }


def set_options(config: Config, resolved: ResolvedRun) -> SetOptions:
    """The options of the set that a config asks for."""
    data = config.data
    draws = data.val_set_size or data.shuffle_before_merging_datasets
    return SetOptions(
        sequence_len=resolved.sequence_len,
        eval_sequence_len=resolved.eval_sequence_len,
        excess_length_strategy=data.excess_length_strategy,
        min_sample_len=data.min_sample_len,
        exact_deduplication=data.dataset_exact_deduplication,
        near_deduplication=data.dataset_near_deduplication,
        eval_overlap=data.eval_overlap,
        val_set_size=data.val_set_size,
        val_set_from=data.val_set_from,
        shuffle_before_merging=data.shuffle_before_merging_datasets,
        seed=resolved.seed if draws else None,
    )


@dataclass(frozen=True)
class _Located:
    key: Literal["datasets", "test_datasets"]
    number: int
    dataset: DatasetConfig
    where: str
    source: Source
    name: str


def _locate_all(config: Config) -> list[_Located]:
    keys: tuple[Literal["datasets", "test_datasets"], ...] = ("datasets", "test_datasets")
    rows = [(key, number, dataset) for key in keys for number, dataset in enumerate(getattr(config.data, key))]
    parts: list[_Located] = []
    problems: list[Problem] = []
    for key, number, dataset in rows:
        where = config.where((key, number, "path"))
        try:
            source = locate_row(config, key, number)
        except DataError as error:
            problems.extend(error.problems)
        else:
            name = _unique_name(source.name, [part.name for part in parts])
            parts.append(_Located(key, number, dataset, where, source, name))
    if problems:
        raise DataError(problems)
    return parts


def _part(found: _Located, config: Config, tokenizer: Any, pool: Path, shared: Inputs) -> Part:
    """Make the encoder of a dataset; what it reads of the config is written down, and becomes part of the name.

    What else it would read while it encodes is an error. Encoders of other processes are made of the plain config and
    cannot say so; they need not: which options a format reads is decided when it is made (a law of every format is
    tested), and a function of the user's is watched in every process by the settings it is given.
    """
    reads = Reads((found.key, found.number))
    recorded, today = reads.of(config), date.today()
    encoder = SampleEncoder(getattr(recorded.data, found.key)[found.number], recorded, tokenizer, today)
    inputs = {**shared, **encoder.identity(), "options": dict(reads.values)}
    reads.close()
    kinds = KINDS_OF_TASK[task_of(config)]
    recipe = EncoderRecipe(config, found.key, found.number, tokenizer, kinds, pool / fingerprint(inputs)[:16], today)
    place = (found.key, found.number, found.dataset, found.where)
    return Part(*place, found.name, found.source, encoder, recipe, inputs)


def _unique_name(path: str, taken: Sequence[str]) -> str:
    """A short name for reports and metrics: ``data/chat.jsonl`` -> ``chat``, a second one ``chat-2``."""
    name = path if "/" in path and not Path(path).exists() and not Path(path).suffix else Path(path).name.split(".")[0]
    numbered = (f"{name}-{number}" for number in range(2, len(taken) + 3))
    return name if name not in taken else next(other for other in numbered if other not in taken)


def _opened(folder: Path) -> PreparedSet | None:
    """The set of a folder; None if there is none, or its files are not those that were written."""
    if not store.is_published(folder):
        return None
    try:
        prepared = store.open_prepared(folder)
    except DataError as error:
        damage = error.problems[0]
        warn(f"{damage.where}: {damage.found}; it must be made again")
        return None
    say(f"using the prepared set {folder}")
    store.mark_used(folder)
    return prepared


def _engines(part: EncodedPart) -> str:
    """What made ids of a dataset's texts; several sentences if that changed on the way."""
    return "; ".join(dict.fromkeys(chunk.account.engine for chunk in part.chunks if chunk.account.engine))
