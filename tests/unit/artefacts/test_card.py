"""The model card says what the record says, in a form that the hub reads, and leaves a user's own card alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, ModelCardData
from markdown_it import MarkdownIt

from whet.artefacts.card import MARK, card, may_be_replaced, write_card
from whet.artefacts.card_facts import CARD_NAME

RECORD: dict[str, Any] = {
    "kind": "train",
    "versions": {"whet": "0.1.0", "torch": "2.13.0"},
    "values": {
        "base_model": "org/tiny",
        "datasets": [{"path": "org/rows", "type": "alpaca"}, {"path": "a.jsonl", "type": "alpaca"}],
        "adapter": "lora",
        "learning_rate": 0.001,
        "lora_r": 4,
        "default_system_message": "``` is a fence",
    },
    "written": {"base_model": "org/tiny", "learning_rate": 0.001, "default_system_message": "``` is one", "bf16": True},
    "resolved": {"method": "sft", "dtype": "float32", "chat_template": "chatml", "seed": 42},
    "identities": {"base_model": {"weights": "abc123"}, "data": "def456"},
    "data": {
        "manifest": {
            "ledgers": [
                {
                    "name": "rows",
                    "read": 1200,
                    "samples": 1100,
                    "dropped": {"no assistant turn": {"count": 100}},
                    "cut": {},
                }
            ]
        }
    },
    "plan": {"total_steps": 10, "rows_per_step": 2, "tokens": 12345},
    "result": {"metrics": {"train_loss": 1.25}, "score_before": {"num_correct": 1, "num_rows": 8}, "score_after": None},
    "evaluation": {"step": 10, "eval_loss": 1.5},
    "generation": {"stop_tokens": ["<|im_end|>"]},
    "parity": {"outcome": "within the limit", "kl": {"mean": 1e-7, "max": 2e-7, "positions": 480}},
}


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "my-adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_the_card_holds_the_facts(adapter: Path) -> None:
    text = card(adapter, RECORD)
    for fact in (
        "A LoRA adapter for [org/tiny]",
        "by supervised fine-tuning, with whet 0.1.0",
        "`abc123`",
        "| rows | 1,200 | 1,100 | 100 (no assistant turn) | none |",
        "| tokens | 12,345 |",
        "| `lora_r` | `4` |",
        "| eval_loss | 1.5 |",
        "| exact answers before training | 1 of 8 |",
        "An answer ends at `<|im_end|>`",
        "1e-07 nats per token on average",
        'AutoPeftModelForCausalLM.from_pretrained("my-adapter")',
    ):
        assert fact in text


def test_what_was_planned_is_not_told_as_done(adapter: Path) -> None:
    """A run that early stopping ended, whose best weights are loaded, over three sessions of which one was killed."""
    result = {"steps": 6, "stopped_early": True, "best_checkpoint": "out/checkpoint-4", "metrics": {"train_loss": 0.5}}
    changed = {
        "result": result,
        "evaluation": {"step": 4, "eval_loss": 1.5},
        "resolved": {"method": "dpo"},
        "sessions": [{"times": {"training": 2.5}}, {"times": {}}, {"times": {"training": 1.0}}],
        "git": {"commit": "c0ffee", "dirty": False, "file_is_committed": True},
        "config_file": "/there/my.yaml",
        "where": {"learning_rate": "my.yaml:7:1", "lora_r": "--lora-r", "seed": "environment variable WHET_SEED"},
    }
    text = card(adapter, {**RECORD, **changed})
    for fact in (
        "| optimiser steps | 6 of 10: it was stopped early |",
        "| weights of | checkpoint-4 |",
        "| tokens of the whole plan | 12,345 |",
        "| training took | 3.5 s and an unknown time in sessions that were killed |",
        "| mean training loss (of DPO, for each pair) | 0.5 |",
        "| evaluated after step | 4 |",
        "Config at commit `c0ffee`. On the command line or in the environment: `lora_r`, `seed`.",
        "`whet chat my.yaml`",
    ):
        assert fact in text


def test_a_stream_is_told_by_what_was_read_of_it(adapter: Path) -> None:
    stream = [{"name": "rows", "rows_read": 10008}, {"name": "a", "rows_read": 7}]
    text = card(adapter, {**RECORD, "data": {"manifest": {}}, "stream": stream})
    assert "`org/rows`, `a.jsonl`\n\nRead as it trained: 10,008 rows of rows, 7 rows of a." in text


def test_a_run_done_again_names_the_record_and_not_the_yaml_of_today(adapter: Path) -> None:
    repeats = {"path": "out/run.json", "started": "2026-01-31T12:00:00+00:00"}
    text = card(adapter, {**RECORD, "repeats": repeats, "git": {"commit": "c0ffee"}, "config_file": "/there/my.yaml"})
    assert "The run of `out/run.json`, begun at 2026-01-31T12:00:00+00:00, done again." in text
    assert "c0ffee" not in text
    assert "whet chat" not in text


def test_the_front_matter_is_what_the_hub_reads(adapter: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / CARD_NAME).write_text("---\nlicense: apache-2.0\nlanguage: [en]\ntags: [other]\n---\n# Tiny\n")
    data = ModelCard(card(adapter, RECORD, base)).data.to_dict()
    assert data["base_model"] == "org/tiny"
    assert data["base_model_relation"] == "adapter"
    assert data["datasets"] == ["org/rows"], "a local file is no dataset of the hub"
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["en"]
    assert data["library_name"] == "peft"
    assert data["tags"] == ["whet", "sft", "lora"]


def test_what_is_not_known_is_not_said(tmp_path: Path) -> None:
    record = {"kind": "train", "values": {"base_model": str(tmp_path)}, "versions": {}}
    text = card(tmp_path, record)
    data = ModelCard(text).data.to_dict()
    assert "license" not in data
    assert "base_model" not in data, "a folder is no model of the hub"
    assert "None" not in text
    assert "## Results" not in text


def test_the_config_can_be_read_back_from_the_card(adapter: Path) -> None:
    from ruamel.yaml import YAML

    text = card(adapter, RECORD)
    (block,) = [part for part in text.split("````")[1:] if part.startswith("yaml\n")]
    assert YAML(typ="safe", pure=True).load(block.removeprefix("yaml\n")) == RECORD["written"]


def test_an_artefact_tells_of_the_run_that_it_was_made_of(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "merged"
    folder.mkdir(parents=True)
    record = {"kind": "merge", "versions": {"whet": "0.1.0"}, "made_of": {"folder": "out", "run": RECORD}, "values": {}}
    text = card(folder, record)
    assert text.index("# out (merged)") > 0
    assert "merged into its base model: made of `out`, base [org/tiny]" in text
    assert "| tokens | 12,345 |" in text
    assert ModelCard(text).data.to_dict()["base_model_relation"] == "finetune"


def test_a_card_of_ones_own_stays(adapter: Path) -> None:
    assert write_card(adapter, RECORD)
    path = adapter / CARD_NAME
    assert MARK in path.read_text()
    assert write_card(adapter, {**RECORD, "versions": {"whet": "0.2.0"}}), "whet's own is written again"
    assert "whet 0.2.0" in path.read_text()
    path.write_text("# My model\n")
    assert not write_card(adapter, RECORD)
    assert path.read_text() == "# My model\n"


def test_a_form_that_a_library_left_is_no_card_of_ones_own(tmp_path: Path) -> None:
    template = ModelCard.from_template(ModelCardData())  # PEFT writes this one
    path = tmp_path / CARD_NAME
    path.write_text(template.content)
    assert may_be_replaced(path)


def test_secrets_are_not_in_the_card(adapter: Path) -> None:
    record = {**RECORD, "written": {"mlflow_tracking_uri": "https://me:hunter2@host/"}}
    assert "hunter2" not in card(adapter, record)


ATTACK = (
    "x](javascript:alert(1)) [a](b) ![c](d) <script>e</script> <https://f> &lt; | g ` `` ```\n\n# H\n---\n"
    "license: i\n<!-- \\"
)


def attacked(value: Any) -> Any:
    """The record with each of its texts, and each name that it chose, turned into an attack."""
    if isinstance(value, dict):
        return {key: attacked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [attacked(item) for item in value]
    return ATTACK if isinstance(value, str) else value


def shape(text: str) -> list[tuple[str, str]]:
    """What a reader of Markdown makes of a card: headings, tables, code, links; of HTML the text itself."""
    body = text.removeprefix("---\n").partition("\n---\n")[2]
    blocks = MarkdownIt("commonmark").enable("table").parse(body)
    found = [(token.type, token.content if token.type == "html_block" else "") for token in blocks]
    inline = [inner for token in blocks for inner in token.children or ()]
    return found + [("inline", inner.type) for inner in inner_marks(inline)]


def inner_marks(tokens: list[Any]) -> list[Any]:
    return [token for token in tokens if token.type in ("link_open", "image", "html_inline")]


@pytest.mark.parametrize("kind", ["train", "merge"])
def test_words_of_others_make_nothing_in_a_card(kind: str, adapter: Path, tmp_path: Path) -> None:
    """A stranger chooses paths, names, stop tokens, the whole record of what is merged: they are shown, that is all."""
    run = {
        **RECORD,
        "git": {"commit": "c0ffee"},
        "where": {"lora_r": "--lora-r"},
        "stream": [{"name": "rows", "rows_read": 7}],
        "hardware": {"device_name": "CPU"},
        "data": {
            "manifest": {"ledgers": [{**RECORD["data"]["manifest"]["ledgers"][0], "cut": {"long": {"count": 1}}}]}
        },
    }
    # What is an id of the hub becomes a link and a line of the front matter; these are none.
    run["values"] = {**run["values"], "base_model": "./tiny", "datasets": [{"path": "a.jsonl"}]}
    hostile = attacked({**run, "kind": 1}) | {"kind": "train"}
    hostile["written"] = {f"{ATTACK}{key}": value for key, value in hostile["written"].items()}
    hostile["evaluation"] = {f"eval_{ATTACK}": 1.5, "step": 10}
    hostile["where"] = {ATTACK: "--x"}
    hostile["data"]["manifest"]["ledgers"][0]["dropped"] = {ATTACK: {"count": 100}}
    told = {
        "train": lambda record: record,
        "merge": lambda record: {"kind": "merge", "made_of": {"folder": ATTACK, "run": record}},
    }
    right, attack = (card(adapter, told[kind](record)) for record in (run, hostile))
    assert shape(attack) == shape(right)
    head = ModelCard(right).data.to_dict(), ModelCard(attack).data.to_dict()
    assert head[1].keys() == head[0].keys()
    assert "javascript:alert(1)" in attack
