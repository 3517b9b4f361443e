"""What is different from the run that goes on, and what of it may be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.tiny_training import make_resolved

from whet.config.changes import Change, judged, table
from whet.config.differences import differences
from whet.config.effects import Effect
from whet.config.facts import RunFacts, facts_of, read_facts, write_facts
from whet.config.overrides import from_command_line
from whet.config.source import Node

BASE = {"name": "tiny", "sample": "5", "weights": "a", "num_bytes": 1}
KNOWN = {"data": "d1", "tokenizer": "t1", "chat_template": "c1", "base_model": BASE}
DPO = {"rl": "dpo", "gradient_accumulation_steps": 2}
DROPS = {"adapter": "lora", "lora_dropout": 0.1}
PADDED = {"pad_to_sequence_len": True}
WIDER = {"micro_batch_size": 2, "gradient_accumulation_steps": 1}
DATASETS = ({"path": "a.jsonl", "type": "chat_template", "weight": 2.0},)


def facts(world_size: int = 1, identities: dict[str, Any] | None = None, **keys: Any) -> RunFacts:
    resolved = make_resolved(Path("out"), world_size=world_size, **{"datasets": DATASETS, **keys})
    return facts_of(resolved, KNOWN if identities is None else identities)


def found(then: RunFacts, now: RunFacts) -> dict[str, Effect]:
    return {change.key: change.effect for change in differences(then, now)}


def test_facts_come_back_from_a_checkpoint_as_they_were(tmp_path: Path) -> None:
    written = facts()
    write_facts(tmp_path, written)
    assert read_facts(tmp_path) == written
    (tmp_path / "whet-run-facts.json").write_text("[1]")
    assert read_facts(tmp_path) is None


def test_the_same_config_has_no_differences() -> None:
    assert found(facts(), facts()) == {}


@pytest.mark.parametrize(
    ("then", "now", "key", "effect"),
    [
        ({}, {"learning_rate": 0.5}, "learning_rate", Effect.CHANGES),
        ({}, {"num_epochs": 9.0}, "num_epochs", Effect.CHANGES),
        ({}, {"seed": 7}, "seed", Effect.CHANGES),
        ({}, {"optimizer": "sgd"}, "optimizer", Effect.FIXED),
        ({}, {"adapter": "lora"}, "adapter", Effect.FIXED),
        ({}, {"logging_steps": 9}, "logging_steps", Effect.NONE),
        ({}, {"gradient_checkpointing": True}, "gradient_checkpointing", Effect.ROUNDING),
        ({}, {"eval_steps": 9}, "eval_steps", Effect.NONE),
        ({"lr_scheduler": "reduce_lr_on_plateau"}, {"eval_steps": 9}, "eval_steps", Effect.CHANGES),
        ({"bf16": True}, {"bf16": False}, "precision", Effect.CHANGES),
        ({}, {"save_steps": 9}, "save_steps", Effect.NONE),
        ({"load_best_model_at_end": True}, {"save_steps": 9}, "save_steps", Effect.CHANGES),
        ({}, PADDED, "pad_to_sequence_len", Effect.ROUNDING),
        (DROPS, PADDED, "pad_to_sequence_len", Effect.CHANGES),
        ({"lora_dropout": 0.1}, PADDED, "pad_to_sequence_len", Effect.ROUNDING),
        ({"neftune_noise_alpha": 5.0}, {"attn_implementation": "eager"}, "attn_implementation", Effect.CHANGES),
        (DROPS, {"gradient_checkpointing": True}, "gradient_checkpointing", Effect.ROUNDING),
        ({**DPO, "dpo_loss_type": ("hinge",)}, {**DPO, **WIDER}, "micro_batch_size", Effect.BATCH),
        ({**DPO, "dpo_loss_type": ("aot",)}, {**DPO, **WIDER}, "micro_batch_size", Effect.CHANGES),
    ],
)
def test_each_key_does_what_its_answer_says(
    then: dict[str, Any], now: dict[str, Any], key: str, effect: Effect
) -> None:
    assert found(facts(**then), facts(**{**then, **now}))[key] is effect


def test_a_default_that_is_written_out_is_no_difference() -> None:
    assert found(facts(), facts(weight_decay=0.0, bf16="auto")) == {}


def test_what_comes_to_the_same_precision_is_no_other_run() -> None:
    assert found(facts(bf16="auto"), facts(bf16=False)) == {"bf16": Effect.PRECISION}
    assert not judged(differences(facts(bf16="auto"), facts(bf16=False)), ()).refused


def test_a_step_of_the_same_rows_may_be_cut_otherwise() -> None:
    then = facts(micro_batch_size=2, gradient_accumulation_steps=4)
    for now in (
        facts(micro_batch_size=1, gradient_accumulation_steps=8),
        facts(micro_batch_size=4, gradient_accumulation_steps=1, world_size=2),
        facts(micro_batch_size=2, batch_size=8),
    ):
        assert not judged(differences(then, now), ()).refused
    (fewer,) = judged(differences(then, facts(2, micro_batch_size=1, gradient_accumulation_steps=2)), ()).refused
    assert (fewer.was, fewer.now) == ("8 rows", "4 rows")
    assert "gradient_accumulation_steps: 4 keeps them" in fewer.note
    assert judged([fewer], [fewer.key]).refused == [fewer], "the place in the epoch is counted in steps of 8 rows"
    then = facts(micro_batch_size=2, gradient_accumulation_steps=4, streaming=True)
    (fewer,) = judged(differences(then, facts(2, micro_batch_size=1, streaming=True)), ()).refused
    assert judged([fewer], [fewer.key]).allowed == [fewer], "a stream knows its row"


def test_data_is_judged_by_its_content() -> None:
    moved = ({**DATASETS[0], "path": "elsewhere/a.jsonl"},)
    assert found(facts(), facts(datasets=moved)) == {"datasets.0.path": Effect.NONE}
    other = {**KNOWN, "data": "d2"}
    assert found(facts(), facts(datasets=moved, identities=other)) == {
        "data": Effect.CHANGES,
        "datasets.0.path": Effect.CHANGES,
    }
    (silent,) = differences(facts(), facts(identities=other))
    assert (silent.key, silent.note) == ("data", "the same name, and other content")
    assert judged(differences(facts(), facts(datasets=moved, identities=other)), ["data"]).refused == []


def test_the_same_samples_in_other_rows_are_another_run() -> None:
    """Packs of another capacity, of samples that all fit both; or a version of whet that packs otherwise."""
    before, after = ({**KNOWN, "order_of_rows": hashed} for hashed in ("r1", "r2"))
    assert found(facts(identities=before), facts(identities=before, sequence_len=4096)) == {"sequence_len": Effect.NONE}
    assert found(facts(identities=before), facts(identities=after, sequence_len=4096)) == {
        "sequence_len": Effect.CHANGES
    }
    assert found(facts(identities=before), facts(identities=after, seed=7)) == {"seed": Effect.CHANGES}
    (silent,) = differences(facts(identities=before), facts(identities=after))
    assert silent.note.startswith("this version of whet orders them otherwise")
    assert judged([silent], ["order_of_rows"]).refused == []
    assert found(facts(), facts(identities=after)) == {}, "an older checkpoint does not say"
    (pairs,) = differences(facts(rl="dpo"), facts(rl="dpo", identities=after))
    assert (pairs.key, pairs.was) == ("order_of_rows", "TRL's order")


def test_how_often_rows_are_shown_is_no_matter_of_content() -> None:
    rarer = ({**DATASETS[0], "weight": 1.0},)
    assert found(facts(), facts(datasets=rarer)) == {"datasets.0.weight": Effect.CHANGES}


def test_before_the_data_is_known_its_keys_are_left_alone() -> None:
    moved = ({**DATASETS[0], "path": "elsewhere/a.jsonl"},)
    assert not judged(differences(facts(), facts(datasets=moved, identities={})), ()).refused


def test_of_a_stream_the_keys_must_be_the_same() -> None:
    stream = {"streaming": True, "max_steps": 4, "identities": {}}
    moved = ({**DATASETS[0], "path": "elsewhere/a.jsonl"},)
    assert found(facts(**stream), facts(**stream, datasets=moved)) == {"datasets.0.path": Effect.CHANGES}


def test_a_base_is_known_by_its_weights_where_both_are() -> None:
    def based(**base: Any) -> dict[str, Any]:
        return {**KNOWN, "base_model": {**BASE, **base}}

    moved = facts(base_model="copy", identities=based(name="copy"))
    assert found(facts(), moved) == {"base_model": Effect.NONE}
    assert found(facts(), facts(identities=based(weights="b"))) == {"base_model": Effect.CHANGES}
    assert found(facts(), facts(identities=based(weights=None))) == {}
    assert found(facts(), facts(identities=based(weights=None, sample="6"))) == {"base_model": Effect.CHANGES}


def test_what_is_fixed_cannot_be_allowed() -> None:
    changes = differences(facts(), facts(optimizer="sgd", learning_rate=0.5))
    verdict = judged(changes, ["optimizer", "learning_rate"])
    assert [change.key for change in verdict.refused] == ["optimizer"]
    assert [change.key for change in verdict.allowed] == ["learning_rate"]


def test_keys_of_another_version_are_taken_for_what_they_were() -> None:
    then = facts()
    without = replace(then, values={key: value for key, value in then.values.items() if key != "label_smoothing"})
    assert found(without, facts()) == {}, "a key that came later and has its default"
    named = replace(then, values={**then.values, "key_of_yesterday": 3})
    assert found(named, facts()) == {}


def test_the_table_says_old_new_and_where() -> None:
    long = Change("optim_args", "{}", json.dumps({"a": "x" * 90}), "my.yaml:3:1", Effect.CHANGES, "a note")
    lines = table([Change("seed", "1", "2", "--seed", Effect.CHANGES), long]).splitlines()
    assert lines[0].split() == ["key", "was", "is", "where"]
    assert lines[1].split() == ["seed", "1", "2", "--seed"]
    assert lines[2].endswith("...  my.yaml:3:1  a note")


def test_the_option_may_be_repeated() -> None:
    words = ["--allow-change", "learning_rate", "--seed", "3", "--allow-change=[seed, data]"]
    settings, problems = from_command_line(words)
    assert problems == []
    (setting,) = [setting for setting in settings if setting.path == ("allow_change",)]
    items = setting.node.items
    assert items is not None
    assert [item.value for item in items if isinstance(item, Node)] == ["learning_rate", "seed", "data"]


@pytest.mark.parametrize("key", ["lora_target_modules", "lora_modules_to_save", "lora_exclude_modules"])
def test_modules_are_named_in_any_order(key: str) -> None:
    one, other, more = ("q_proj", "v_proj"), ("v_proj", "q_proj"), ("q_proj", "v_proj", "k_proj")
    assert found(facts(**{key: one}), facts(**{key: other})) == {}
    assert found(facts(**{key: one}), facts(**{key: more})) == {key: Effect.FIXED}


def test_an_adapter_to_begin_with_is_compared_by_its_files() -> None:
    here, elsewhere = {"lora_model_dir": "first"}, {"lora_model_dir": "../moved/first"}
    known, other = {**KNOWN, "lora_model_dir": "5"}, {**KNOWN, "lora_model_dir": "6"}
    assert found(facts(identities=known, **here), facts(identities=known, **elsewhere)) == {
        "lora_model_dir": Effect.NONE
    }
    for place in (here, elsewhere):
        changed = found(facts(identities=known, **here), facts(identities=other, **place))
        assert changed == {"lora_model_dir": Effect.CHANGES}
    assert found(facts(identities=known, **here), facts()) == {"lora_model_dir": Effect.FIXED}
    assert found(facts(), facts(identities=known, **here)) == {"lora_model_dir": Effect.FIXED}
