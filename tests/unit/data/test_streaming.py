"""A stream: the samples that preparing would make, mixed as asked, from any place on the same, in bounded memory."""

from __future__ import annotations

import gzip
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from tests.models import tiny_tokenizer
from tests.tiny_streams import setup_of, small_chunks, stream_run, text_of, write_texts

from whet.config import make_config
from whet.config.resolve import resolve
from whet.core.errors import DataError
from whet.core.types import Hardware
from whet.data import chunks
from whet.data.files import LocalFile
from whet.data.prepare import prepare
from whet.data.streaming import Stream, StreamMark, StreamSetup
from whet.data.windows import LookAhead, StreamRow, WindowMark


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("chunks_of_stream", "chunks_of_lines"):
        function = getattr(chunks, name)
        monkeypatch.setattr(function, "__defaults__", function.__defaults__)
    small_chunks()


def texts(stream: Stream, count: int) -> list[str]:
    return [text_of(stream.take()) for _ in range(count)]


def through_json(mark: StreamMark) -> StreamMark:
    """As a checkpoint keeps it."""
    return StreamMark.from_dict(json.loads(json.dumps(mark.as_dict())))


def test_an_epoch_has_every_sample_that_preparing_makes_once(tmp_path: Path) -> None:
    """Of two datasets, one of them with long texts that are split and rows that are too short."""
    rows = [
        {"path": str(write_texts(tmp_path / "a.jsonl", 50, seed=1))},
        {"path": str(write_texts(tmp_path / "b.jsonl", 30, seed=2, longest=300))},
    ]
    keys = {"min_sample_len": 8, "sequence_len": 48}
    setup = setup_of(stream_run(tmp_path, rows, **keys))
    values = {"base_model": "org/tiny", "learning_rate": 1e-2, "dataset_prepared_path": str(tmp_path / "p"), **keys}
    config = make_config({**values, "datasets": [{**row, "type": "completion"} for row in rows]})
    train = prepare(config, resolve(config, Hardware("cpu", "a CPU")), tiny_tokenizer()).train
    expected = Counter(
        (train.place(n), train.tokens(n)[0].tobytes(), train.tokens(n)[1].tobytes()) for n in range(len(train))
    )
    assert len(train) > 85
    stream = setup.stream()
    for _ in range(3):
        samples = [stream.take() for _ in range(len(train))]
        found = Counter((each.place, each.input_ids.tobytes(), each.supervised.tobytes()) for each in samples)
        assert found == expected
        assert sum(each.num_supervised for each in samples) == int(train.supervised.sum())
    assert stream.epoch == 2


@pytest.mark.parametrize("by", ["tokens", "samples"])
def test_shares_hold_to_within_one_sample_at_any_moment_however_often_a_dataset_ends(tmp_path: Path, by: str) -> None:
    rows = [
        {"path": str(write_texts(tmp_path / "a.jsonl", 50, seed=1)), "weight": 5},
        {"path": str(write_texts(tmp_path / "b.jsonl", 20, seed=2)), "weight": 3},
        {"path": str(write_texts(tmp_path / "c.jsonl", 7, seed=3)), "weight": 2},
    ]
    stream = setup_of(stream_run(tmp_path, rows, mixing_by=by)).stream()
    dealt, longest = np.zeros(3), 0
    for _ in range(400):
        sample = stream.take()
        amount = sample.num_tokens if by == "tokens" else 1
        dealt[sample.source] += amount
        longest = max(longest, amount)
        assert np.abs(dealt - np.array([0.5, 0.3, 0.2]) * dealt.sum()).max() <= longest
    assert [feed.epoch for feed in stream.mark().feeds] > [2, 5, 10]
    assert stream.epoch == 0


def test_datasets_come_one_after_the_other_in_sequential_order(tmp_path: Path) -> None:
    rows = [{"path": str(write_texts(tmp_path / f"{name}.jsonl", 20, seed=n))} for n, name in enumerate("ab")]
    stream = setup_of(stream_run(tmp_path, rows, order="sequential")).stream()
    places = [stream.take().place for _ in range(80)]
    file = [f"{tmp_path}/{name}.jsonl:{number}" for name in "ab" for number in range(1, 21)]
    assert places == file * 2


def test_without_weights_datasets_take_turns_by_tokens_until_each_has_ended(tmp_path: Path) -> None:
    rows = [
        {"path": str(write_texts(tmp_path / f"{name}.jsonl", num, seed=num))} for name, num in (("a", 60), ("b", 20))
    ]
    stream = setup_of(stream_run(tmp_path, rows)).stream()
    tokens, counts = np.zeros(2), np.zeros(2, dtype=int)
    for _ in range(80):
        sample = stream.take()
        tokens[sample.source] += sample.num_tokens
        counts[sample.source] += 1
        assert counts[1] == 20 or abs(tokens[0] - tokens[1]) <= 2 * 64
    assert counts.tolist() == [60, 20]


# -- going on from a place ---------------------------------------------------------------------------------------------


def as_gzip(path: Path) -> Path:
    target = path.with_suffix(".jsonl.gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


def as_parquet(path: Path) -> Path:
    target = path.with_suffix(".parquet")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), target)
    return target


def as_folder(path: Path) -> Path:
    folder = path.with_suffix("")
    folder.mkdir()
    for number in range(3):
        shutil.copy(path, folder / f"{number}.jsonl")
    return folder


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda path: path, {}),
        (as_gzip, {}),
        (as_parquet, {}),
        (as_folder, {}),
        (lambda path: path, {"skip": 5, "split": "train[:40]"}),
    ],
    ids=["jsonl", "gzip", "parquet", "folder", "a part"],
)
@pytest.mark.parametrize("weights", [True, False], ids=["weights", "turns"])
def test_from_any_place_the_same_samples_follow(tmp_path: Path, make: Any, options: Any, weights: bool) -> None:
    second = {"path": str(write_texts(tmp_path / "b.jsonl", 15, seed=2, longest=200))}
    rows = [{"path": str(make(write_texts(tmp_path / "a.jsonl", 50, seed=1))), **options}, second]
    if weights:
        rows = [{**row, "weight": weight} for row, weight in zip(rows, (3, 1), strict=True)]
    setup = setup_of(stream_run(tmp_path, rows))
    whole = texts(setup.stream(), 260)
    for stop in (0, 1, 17, 80, 149, 230):
        stream = setup.stream()
        texts(stream, stop)
        resumed = setup.stream(through_json(stream.mark()))
        assert texts(resumed, 260 - stop) == whole[stop:]
        texts(stream, 260 - stop)
        for ours, theirs in zip(resumed.mark().feeds, stream.mark().feeds, strict=True):
            assert ours.ledger("x").as_dict() == theirs.ledger("x").as_dict()


def test_going_on_in_a_plain_file_reads_nothing_before_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = as_folder(write_texts(tmp_path / "a.jsonl", 50, seed=1))
    setup = setup_of(stream_run(tmp_path, [{"path": str(folder)}]))
    stream = setup.stream()
    texts(stream, 145)
    mark = stream.mark()
    place = mark.feeds[0].place
    assert place is not None
    assert place.begin
    read: list[str] = []
    opened = LocalFile.open

    def watched(self: LocalFile, *, seekable: bool = False) -> Any:
        read.append(self.path.name)
        return opened(self, seekable=seekable)

    monkeypatch.setattr(LocalFile, "open", watched)
    resumed = setup.stream(mark)
    assert texts(resumed, 5) == texts(stream, 5)
    assert read == ["2.jsonl"]


def test_rows_that_changed_before_the_place_are_told(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", 50, seed=1)
    setup = setup_of(stream_run(tmp_path, [{"path": str(path)}]))
    stream = setup.stream()
    texts(stream, 30)
    mark = stream.mark()
    path.write_text(path.read_text().replace("2", "3"))
    with pytest.raises(DataError, match=r"a\.jsonl: chunk \d+ of 'a' holds other rows than when the checkpoint was"):
        setup.stream(mark)


# -- windows -----------------------------------------------------------------------------------------------------------


def look_ahead(setup: StreamSetup, begin: WindowMark | None = None, first: int | None = None) -> LookAhead:
    stream = setup.stream(begin.stream if begin else None)
    return LookAhead(stream, setup.rows, setup.window, begin or WindowMark(0, 0, 0, stream.mark()), first)


@pytest.fixture
def setup(tmp_path: Path) -> StreamSetup:
    rows = [
        {"path": str(write_texts(tmp_path / "a.jsonl", 50, seed=1)), "weight": 3},
        {"path": str(write_texts(tmp_path / "b.jsonl", 35, seed=2)), "weight": 1},
    ]
    return setup_of(stream_run(tmp_path, rows))


def content(rows: list[StreamRow]) -> list[list[tuple[int, str]]]:
    return [
        [(number, text_of(sample)) for number, sample in zip(row.numbers.tolist(), row.samples, strict=True)]
        for row in rows
    ]


def test_a_window_holds_its_samples_once_in_rows_that_fit(setup: StreamSetup) -> None:
    ahead = look_ahead(setup)
    samples = [text_of(sample) for sample in iter_samples(setup.stream(), 90)]
    first = 0
    for window in range(3):
        rows = []
        while not rows or ahead.mark().number == window:
            rows += ahead.take(1)
        assert ahead.mark() == WindowMark(window + 1, first + len(rows), 30 * (window + 1), ahead.mark().stream)
        first += len(rows)
        assert all(sum(sample.num_tokens for sample in row.samples) <= 64 for row in rows)
        assert sum(len(row.samples) for row in rows) > len(rows), "rows are packs"
        found = sorted(pair for row in content(rows) for pair in row)
        assert found == list(enumerate(samples))[30 * window : 30 * (window + 1)]
        assert [number for row in rows for number in row.numbers.tolist()] != list(range(30 * window, 30 * window + 30))
    ahead.close()


def iter_samples(stream: Stream, count: int) -> Iterator[Any]:
    return (stream.take() for _ in range(count))


@pytest.mark.parametrize("packed", [True, False])
def test_rows_go_on_from_any_row_in_the_same_order(tmp_path: Path, packed: bool) -> None:
    rows = [{"path": str(write_texts(tmp_path / "a.jsonl", 50, seed=1))}]
    setup = setup_of(stream_run(tmp_path, rows, sample_packing=packed))
    whole = look_ahead(setup)
    expected = content(whole.take(120))
    whole.close()
    borders = 0
    for stop in range(0, 80, 3):
        ahead = look_ahead(setup)
        ahead.take(stop)
        mark = WindowMark.from_dict(json.loads(json.dumps(ahead.mark().as_dict())))
        ahead.close()
        borders += mark.first_row == stop
        resumed = look_ahead(setup, mark, stop)
        assert content(resumed.take(120 - stop)) == expected[stop:]
        resumed.close()
    assert borders >= 2, "some stops shall be at a window's border"


def test_windows_are_shuffled_by_seed_and_number(tmp_path: Path) -> None:
    path = str(write_texts(tmp_path / "a.jsonl", 30, seed=1))

    def orders(**keys: Any) -> list[list[int]]:
        setup = setup_of(stream_run(tmp_path, [{"path": path}], sample_packing=False, **keys))
        ahead = look_ahead(setup)
        numbers = [int(row.numbers[0]) for row in ahead.take(60)]
        ahead.close()
        return [numbers[:30], [number - 30 for number in numbers[30:]]]

    first, second = orders()
    assert first != second
    assert orders() == [first, second]
    assert orders(seed=7) != [first, second]
    assert orders(shuffle_merged_datasets=False) == [list(range(30))] * 2


class Watched(LookAhead):
    """Tells when its thread has nothing left to do."""

    def __init__(self, *arguments: Any) -> None:
        self.is_idle = threading.Event()
        super().__init__(*arguments)

    def _wait(self, ready: Callable[[], bool]) -> bool:
        def watched() -> bool:
            found = ready()
            if not found:
                self.is_idle.set()
            return found

        return super()._wait(watched)


@pytest.mark.parametrize("num_datasets", [1, 3])
def test_no_more_than_a_window_and_a_chunk_of_each_dataset_is_held(tmp_path: Path, num_datasets: int) -> None:
    """Though the thread is given all the time that it wants after each row."""
    paths = [write_texts(tmp_path / f"{number}.jsonl", 60, seed=number) for number in range(num_datasets)]
    setup = setup_of(stream_run(tmp_path, [{"path": str(path), "weight": 1} for path in paths]))
    largest = [max(chunk.num_lines for chunk in part.source.chunks()) for part in setup.parts]
    assert max(largest) < 30
    stream = setup.stream()
    ahead = Watched(stream, setup.rows, setup.window, WindowMark(0, 0, 0, stream.mark()))
    for _ in range(100):
        assert ahead.is_idle.wait(timeout=60)
        ahead.is_idle.clear()
        ahead.take(1)
    ahead.close()
    assert 30 < ahead.most_held <= 30 + sum(largest)


def test_rows_of_two_windows_are_had_at_once_though_the_thread_waits_for_room(setup: StreamSetup) -> None:
    stream = setup.stream()
    ahead = Watched(stream, setup.rows, setup.window, WindowMark(0, 0, 0, stream.mark()))
    for _ in range(20):
        assert ahead.is_idle.wait(timeout=60)
        ahead.is_idle.clear()
        assert len(ahead.take(7)) == 7
    assert ahead.mark().number > 3
    ahead.close()


# -- rows that cannot be used ------------------------------------------------------------------------------------------


def spoil(path: Path, line: int) -> None:
    lines = path.read_text().splitlines()
    lines[line - 1] = '{"text": 7}'
    path.write_text("\n".join(lines) + "\n")


def test_a_bad_row_ends_the_run_with_its_place_when_its_window_is_needed_and_not_before(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", 90, seed=1)
    spoil(path, 70)
    setup = setup_of(stream_run(tmp_path, [{"path": str(path)}], sample_packing=False))
    ahead = look_ahead(setup)
    ahead.take(30)
    assert ahead.mark().number == 1
    ahead.take(30)
    for _ in range(2):
        with pytest.raises(DataError, match=r"a\.jsonl:70: wrong type .* set `on_bad_row: drop`"):
            ahead.take(1)
    ahead.close()


def test_bad_and_long_rows_are_dropped_and_counted_where_the_config_says_so(tmp_path: Path) -> None:
    path = write_texts(tmp_path / "a.jsonl", 60, seed=1)
    spoil(path, 12)
    with path.open("a") as file:
        file.write(json.dumps({"segments": []}) + "\n")
    setup = setup_of(stream_run(tmp_path, [{"path": str(path)}], on_bad_row="drop"))
    stream = setup.stream()
    texts(stream, 59 + 59)
    ledger = stream.mark().feeds[0].ledger("a")
    assert (ledger.read, ledger.kept, ledger.samples) == (2 * 61, 2 * 59, 2 * 59)
    assert {reason: tally.count for reason, tally in ledger.dropped.items()} == {"wrong type": 2, "missing field": 2}


def test_a_dataset_that_gives_nothing_is_told_and_not_read_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": ""}\n')
    good = write_texts(tmp_path / "b.jsonl", 10)
    rows = [{"path": str(path), "weight": 1}, {"path": str(good), "weight": 1}]
    setup = setup_of(stream_run(tmp_path, rows, on_bad_row="drop"))
    with pytest.raises(DataError, match="'a': the only row dropped: 1 empty text"):
        setup.stream().take()


def test_closing_ends_the_thread_and_closes_the_files_whatever_it_does(
    setup: StreamSetup, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[BinaryIO] = []
    opened = LocalFile.open

    def watched(self: LocalFile, *, seekable: bool = False) -> BinaryIO:
        files.append(opened(self, seekable=seekable))
        return files[-1]

    monkeypatch.setattr(LocalFile, "open", watched)
    for taken in (0, 1, 40):
        ahead = look_ahead(setup)
        ahead.take(taken)
        ahead.close()
    assert files
    assert all(file.closed for file in files)
    assert not [thread for thread in threading.enumerate() if thread.name == "whet-stream"]


def test_marks_tell_apart_every_window(setup: StreamSetup) -> None:
    ahead = look_ahead(setup)
    marks = [ahead.mark()]
    for _ in range(100):
        ahead.take(1)
        if ahead.mark() != marks[-1]:
            marks.append(ahead.mark())
    ahead.close()
    assert len(marks) > 4
    assert all(later.first_row > earlier.first_row for earlier, later in pairwise(marks))
