"""``whet inspect``: what it writes, prints and serves."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Whet, chat, write_rows


def data_of(page: Path) -> dict[str, Any]:
    """What the page knows."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    assert found is not None
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_one_file_is_written_in_the_output_folder_and_named(workspace: Path, whet: Whet) -> None:
    outcome = whet("inspect", "my.yaml")
    assert (outcome.code, outcome.out) == (0, "out/inspect-my.html\n")
    assert [path.name for path in (workspace / "out").iterdir()] == ["inspect-my.html"]
    data = data_of(workspace / "out" / "inspect-my.html")
    assert [row["at"] for row in data["rows"]] == [f"rows.jsonl:{number}" for number in range(1, 13)]


def test_without_an_output_dir_it_is_written_here(workspace: Path, whet: Whet) -> None:
    config = workspace / "my.yaml"
    config.write_text(config.read_text().replace("output_dir: out\n", ""))
    assert whet("inspect", "my.yaml").out == "inspect-my.html\n"
    assert (workspace / "inspect-my.html").is_file()


def test_the_texts_and_labels_are_those_of_training(workspace: Path, whet: Whet) -> None:
    """Promise G2, seen from the page: what is shown as trained is the answer and its stop token."""
    assert whet("inspect", "my.yaml", "--output", "page.html").code == 0
    data = data_of(workspace / "page.html")
    for number, row in enumerate(data["rows"]):
        (line,) = row["x"]
        trained = [at % 2 == 1 for at, run in enumerate(line["l"]) for _ in range(run)]
        pieces = [data["tokens"][entry] for entry in line["p"]]
        assert len(trained) == row["len"] == sum(len(ids) if isinstance(ids, list) else 1 for ids, *_ in pieces)
        said, at = "", 0
        for ids, text, *_ in pieces:
            said += text if trained[at] else ""
            at += len(ids) if isinstance(ids, list) else 1
        assert said == f"It is {number + 1}.<|im_end|>"
        roles = [data["roles"][role] for role in line["t"][::3]]
        assert roles == ["user", "assistant"]


def test_the_same_command_writes_the_same_rows_again(workspace: Path, whet: Whet) -> None:
    whet("inspect", "my.yaml", "--rows", "5", "--output", "one.html")
    whet("inspect", "my.yaml", "--rows", "5", "--output", "two.html")
    assert (workspace / "one.html").read_bytes() == (workspace / "two.html").read_bytes()
    assert len(data_of(workspace / "one.html")["rows"]) == 5


def test_what_sequence_len_cut_away_is_shown_and_warned_of(workspace: Path, whet: Whet) -> None:
    write_rows(workspace / "rows.jsonl", [chat("Count.", "one two three " * 40), chat("Hi.", "Hello.")])
    assert whet("inspect", "my.yaml", "--excess-length-strategy", "truncate", "--output", "page.html").code == 0
    data = data_of(workspace / "page.html")
    long, short = data["rows"]
    assert "cut" in long["w"]
    assert long["len"] == 128
    assert long["x"][0]["c"] > 0
    assert "c" not in short["x"][0]
    text = "".join(data["tokens"][entry][1] for entry in long["x"][0]["p"])
    assert text.count("three") == 40


def test_one_row_can_be_asked_for(workspace: Path, whet: Whet) -> None:
    outcome = whet("inspect", "my.yaml", "--row", "rows.jsonl:7", "--terminal")
    assert outcome.code == 0
    assert "[[It is 7.<|im_end|>]]" in outcome.out
    assert "It is 8" not in outcome.out


def test_a_row_that_gives_no_sample_is_an_error_that_says_why(workspace: Path, whet: Whet) -> None:
    (workspace / "rows.jsonl").write_text(json.dumps(chat("a", "b")) + "\n{broken\n")
    outcome = whet("inspect", "my.yaml", "--row", "rows.jsonl:2", "--on-bad-row", "drop")
    assert outcome.code == 2
    assert outcome.errors[0].startswith("rows.jsonl:2: dropped: not valid JSON")
    outcome = whet("inspect", "my.yaml", "--row", "rows.jsonl:99", "--on-bad-row", "drop")
    assert outcome.errors[0].startswith("rows.jsonl:99: no sample comes from this row -> write it as rows.jsonl:1")


def test_dropped_rows_are_in_the_page_with_their_place(workspace: Path, whet: Whet) -> None:
    (workspace / "rows.jsonl").write_text(json.dumps(chat("a", "b")) + "\n{broken\n")
    assert whet("inspect", "my.yaml", "--on-bad-row", "drop", "--output", "page.html").code == 0
    (ledger,) = data_of(workspace / "page.html")["ledgers"]
    assert (ledger["read"], ledger["kept"]) == (2, 1)
    assert [(tally["what"], tally["examples"][0][0]) for tally in ledger["dropped"]] == [
        ("not valid JSON", "rows.jsonl:2")
    ]


def test_near_duplicates_are_named_in_the_rows_and_in_what_was_left_out(workspace: Path, whet: Whet) -> None:
    long = "The quick brown fox jumps over the lazy dog and runs away"
    write_rows(workspace / "rows.jsonl", [chat("Hi", "Hello."), chat(long, "Yes."), chat(long + "!", "Yes.")])
    assert whet("inspect", "my.yaml", "--output", "page.html").code == 0
    (row,) = (row for row in data_of(workspace / "page.html")["rows"] if "near_duplicate" in row.get("w", ()))
    assert (row["at"], row["like"]) == ("rows.jsonl:3", "rows.jsonl:2")
    assert whet("inspect", "my.yaml", "--dataset-near-deduplication", "0.8", "--output", "page.html").code == 0
    (finding,) = data_of(workspace / "page.html")["findings"]
    assert finding["note"].startswith("1 row")
    assert finding["pairs"] == [["rows.jsonl:3", "rows.jsonl:2"]]


def test_test_rows_that_are_trained_on_are_named(workspace: Path, whet: Whet) -> None:
    write_rows(workspace / "test.jsonl", [chat("What is 3 + 1?", "It is 4."), chat("New?", "Yes.")])
    config = workspace / "my.yaml"
    config.write_text(config.read_text() + "test_datasets:\n  - path: test.jsonl\n    type: chat_template\n")
    assert whet("inspect", "my.yaml", "--output", "page.html").code == 0
    (finding,) = data_of(workspace / "page.html")["findings"]
    assert finding["pairs"] == [["test.jsonl:1", "rows.jsonl:4"]]


def test_the_packs_are_those_of_the_first_epoch(workspace: Path, whet: Whet) -> None:
    from whet import load_config, stages
    from whet.methods.inputs import training_order
    from whet.training.tokenizer import run_tokenizer

    assert whet("inspect", "my.yaml", "--output", "page.html").code == 0
    packs = data_of(workspace / "page.html")["packs"]
    config = load_config("my.yaml")
    resolved = stages.resolve_run(config)
    order = training_order(resolved, stages.prepare_data(resolved, run_tokenizer(config)).train)
    epoch = order.epoch(0)
    assert packs["count"] == len(epoch)
    assert packs["first"] == [epoch[number].tolist() for number in range(len(epoch))]
    assert packs["lengths"] == [order.lengths[members].tolist() for members in packs["first"]]


def test_a_page_that_cannot_be_written_is_an_error_with_its_name(workspace: Path, whet: Whet) -> None:
    (workspace / "file").write_text("")
    outcome = whet("inspect", "my.yaml", "--output", "file/page.html")
    assert outcome.code == 2
    assert "file/page.html' cannot be written" in outcome.errors[0]


@pytest.mark.parametrize("option", ["--output=page.html", "--serve", "--port=8000"])
def test_options_of_a_page_contradict_the_terminal(option: str, workspace: Path, whet: Whet) -> None:
    outcome = whet("inspect", "my.yaml", "--terminal", option)
    name = option.partition("=")[0]
    assert outcome.errors == [
        f"whet inspect: --terminal prints the rows, and {name} is about a page -> leave one of them out"
    ]
    assert outcome.code == 2


@pytest.fixture
def served(workspace: Path) -> Any:
    process = subprocess.Popen(
        [sys.executable, "-m", "whet", "inspect", "my.yaml", "--serve"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_serving_gives_the_page_to_this_machine_until_ctrl_c(workspace: Path, served: Any) -> None:
    file, address = served.stdout.readline().strip(), served.stdout.readline().strip()
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
    with urllib.request.urlopen(address) as answer:
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.read() == (workspace / file).read_bytes()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(address + "etc/passwd")
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(urllib.request.Request(address, headers={"Host": "elsewhere.example"}))
    tunnelled = urllib.request.Request(address, headers={"Host": "localhost:8000"})
    with urllib.request.urlopen(tunnelled) as answer:
        assert answer.status == 200
    served.send_signal(signal.SIGINT)
    out, err = served.communicate(timeout=60)
    assert served.returncode == 0
    assert "Traceback" not in err
    assert out == ""


def test_a_port_that_is_taken_is_an_error(workspace: Path, whet: Whet, served: Any) -> None:
    served.stdout.readline()
    port = served.stdout.readline().strip().rstrip("/").rsplit(":", 1)[1]
    outcome = whet("inspect", "my.yaml", "--serve", "--port", port)
    assert outcome.code == 2
    assert outcome.errors[0].startswith(f"--port: port {port} of 127.0.0.1 cannot be used")
