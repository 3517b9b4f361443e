"""`whet train` on a stream: nothing is prepared, what was read is told, and the run goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Whet, chat, write_rows

BASE_MODEL = Path(__file__).parents[2] / "examples" / "base_model" / "model"

STREAM = """\
base_model: model
datasets:
  - path: rows.jsonl
    type: chat_template
    weight: 3
  - path: texts.jsonl
    type: completion
    weight: 1
streaming: true
streaming_multipack_buffer_size: 20
sequence_len: 128
sample_packing: true
micro_batch_size: 1
max_steps: 6
save_steps: 2
learning_rate: 0.001
warmup_steps: 0
output_dir: out
"""


@pytest.fixture
def streams(workspace: Path) -> Path:
    write_rows(workspace / "texts.jsonl", [{"text": f"text number {n} " * (1 + n % 9)} for n in range(25)])
    (workspace / "my.yaml").write_text(STREAM)
    return workspace


def lines(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def test_a_stream_trains_and_tells_what_it_read(streams: Path, whet: Whet) -> None:
    (streams / "model").unlink()
    (streams / "model").symlink_to(BASE_MODEL)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    for said in (
        "data: rows, 75.0% of the tokens",
        "data: read as it trains, shuffled and packed 20 samples at a time",
        "plan: 6 steps of 1 pack; how many tokens, and how much of the datasets, a stream cannot say beforehand",
        "read: texts: 25 rows read",
    ):
        assert said in outcome.err
    assert not (streams / "last_run_prepared").exists()
    assert len(lines(streams, "train")) == 6
    (summary,) = lines(streams, "summary")
    record = json.loads((streams / "out" / "run.json").read_text())
    assert [dataset["name"] for dataset in record["stream"]] == ["rows", "texts"]
    for dataset in record["stream"]:
        name = dataset["name"]
        assert summary[f"rows_read/{name}"] == dataset["rows_read"] > 0
        assert summary[f"share/{name}"] == pytest.approx(dataset["realised"])
        assert summary[f"epochs/{name}"] == dataset["epochs"]
    assert sum(dataset["tokens"] for dataset in record["stream"]) == lines(streams, "train")[-1]["tokens_seen"]
    assert record["stream"][0]["asked"] == 0.75
    assert record["plan"]["tokens"] is None
    assert record["plan"]["total_steps"] == 6


def test_a_stream_goes_on_from_its_checkpoint(streams: Path, whet: Whet) -> None:
    assert whet("train", "my.yaml").code == 0
    whole = [line["loss"] for line in lines(streams, "train")]
    outcome = whet("train", "my.yaml", "--resume-from-checkpoint", "out/checkpoint-4")
    assert outcome.code == 0, outcome.err
    assert [line["loss"] for line in lines(streams, "train")] == whole


def test_test_datasets_are_prepared_and_evaluated_as_always(streams: Path, whet: Whet) -> None:
    write_rows(streams / "test.jsonl", [chat(f"What is {n} + 2?", f"It is {n + 2}.") for n in range(5)])
    more = "test_datasets: [{path: test.jsonl, type: chat_template}]\neval_steps: 3\n"
    (streams / "my.yaml").write_text(STREAM + more)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert "20 samples at a time, 5 for evaluation" in outcome.err
    assert [line["step"] for line in lines(streams, "eval")] == [3, 6]
    after = lines(streams, "eval")[-1]["eval_loss"]
    outcome = whet("evaluate", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert f"{after:.3f}" in outcome.out + outcome.err


def test_pretraining_dataset_as_axolotl_writes_it(streams: Path, whet: Whet) -> None:
    texts = [{"body": f"A rather long text, {n}. " * 30} for n in range(12)]
    write_rows(streams / "texts.jsonl", texts)
    kept = [line for line in STREAM.splitlines() if not line.startswith((" ", "datasets", "streaming"))]
    rows = "pretraining_dataset:\n  - {path: texts.jsonl, text_column: body, type: pretrain, split: train, skip: 2}\n"
    (streams / "my.yaml").write_text("\n".join(kept) + "\n" + rows + "streaming_multipack_buffer_size: 20\n")
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    (dataset,) = json.loads((streams / "out" / "run.json").read_text())["stream"]
    assert dataset["rows_read"] % 10 == 0, "2 of 12 rows are skipped, each time"
    assert dataset["realised"] == 1.0


def test_a_bad_row_ends_the_run_or_is_counted(streams: Path, whet: Whet) -> None:
    with (streams / "texts.jsonl").open("a") as file:
        file.write('{"text": 1}\n')
    outcome = whet("train", "my.yaml")
    assert outcome.code == 2
    assert outcome.errors == [
        "texts.jsonl:26: wrong type ('text' is a number, not a string) -> "
        "mend the rows, or set `on_bad_row: drop` to leave them out and count them"
    ]
    outcome = whet("train", "my.yaml", "--on-bad-row", "drop")
    assert outcome.code == 0, outcome.err
    assert "26 rows read, 1 dropped (1 wrong type)" in outcome.err


def test_what_prepares_refuses_a_stream(streams: Path, whet: Whet) -> None:
    outcome = whet("preprocess", "my.yaml")
    assert outcome.code == 2
    (error,) = outcome.errors
    assert error.startswith(
        "my.yaml:9:1: streaming is true, so nothing is prepared that could be shown -> write stream"
    )


def test_checking_a_stream_tells_its_steps(streams: Path, whet: Whet) -> None:
    outcome = whet("check", "my.yaml")
    assert outcome.code == 0, outcome.err + outcome.out
    assert "6 steps of 1 packs, read as the model trains" in " ".join((outcome.out + outcome.err).split())
