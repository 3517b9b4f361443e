"""Faulty input, counted: each kind gets its exact message, exit code 2, no traceback, and nothing is trained.

A case changes the working example of conftest.py in one way. ``{folder}`` in a message stands for the working folder.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.e2e.bad_input_messages import MESSAGES
from tests.e2e.conftest import CONFIG, Whet, chat, write_rows
from tests.models import save_tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Case:
    """One fault: its name, what makes it, and the command that meets it."""

    name: str
    make: Callable[[Path], None]
    command: tuple[str, ...] = ("train", "my.yaml")


def append(text: str) -> Callable[[Path], None]:
    """Add lines to the YAML."""

    def make(folder: Path) -> None:
        with (folder / "my.yaml").open("a") as file:
            file.write(text)

    return make


def replace(old: str, new: str) -> Callable[[Path], None]:
    """Change the YAML."""
    assert old in CONFIG

    def make(folder: Path) -> None:
        (folder / "my.yaml").write_text(CONFIG.replace(old, new))

    return make


def yaml(text: str | bytes) -> Callable[[Path], None]:
    """Another YAML altogether."""

    def make(folder: Path) -> None:
        (folder / "my.yaml").write_bytes(text.encode() if isinstance(text, str) else text)

    return make


def rows(*lines: object) -> Callable[[Path], None]:
    """Other rows: objects are written as JSON, text as it is."""

    def make(folder: Path) -> None:
        written = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (folder / "rows.jsonl").write_bytes(b"".join(line + b"\n" for line in written))

    return make


def both(*changes: Callable[[Path], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for change in changes:
            change(folder)

    return make


def model(**options: object) -> Callable[[Path], None]:
    """A model folder of this case's own; options as for save_tiny_model."""

    def make(folder: Path) -> None:
        (folder / "model").unlink()
        save_tiny_model(folder / "model", **options)  # type: ignore[arg-type]

    return make


def without_template(folder: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    model(tokenizer=tokenizer)(folder)


def delete_from_model(name: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model()(folder)
        (folder / "model" / name).unlink()

    return make


def write_to_model(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        model()(folder)
        (folder / "model" / name).write_text(text)

    return make


def broken_weights(folder: Path) -> None:
    model()(folder)
    weights = folder / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def raw(content: bytes, name: str = "rows.jsonl") -> Callable[[Path], None]:
    """A file, byte by byte."""

    def make(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return make


def csv(text: str) -> Callable[[Path], None]:
    return raw(text.encode(), "rows.csv")


def link_to_nowhere(folder: Path) -> None:
    (folder / "link.jsonl").symlink_to("nowhere.jsonl")


ALPACA = replace("rows.jsonl\n    type: chat_template", "rows.csv\n    type: alpaca")
GOOD = chat("Hello?", "Hello.")
PAIR = {"prompt": "Capital?", "chosen": "Paris.", "rejected": "Lyon."}
DPO = both(
    replace("    type: chat_template\nsequence_len: 128\nsample_packing: true\n", "sequence_len: 128\n"),
    append("rl: dpo\n"),
)
TOOL_CALL = {
    "messages": [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "weather", "arguments": {}}}]},
    ]
}

CASES = [
    # the YAML
    Case("unknown key", append("learing_rate: 1\n")),
    Case("unknown dataset key", replace("    type: chat_template\n", "    type: chat_template\n    feild: x\n")),
    Case("unknown nested key", append("special_tokens:\n  pad_tokn: x\n")),
    Case("duplicate key", append("learning_rate: 0.1\n")),
    Case("negative learning rate", replace("0.001", "-1")),
    Case("micro batch 0", replace("micro_batch_size: 1", "micro_batch_size: 0")),
    Case("unknown optimizer", append("optimizer: adamw_trch\n")),
    Case("unknown scheduler", append("lr_scheduler: cosin\n")),
    Case("unknown dataset type", replace("type: chat_template", "type: alpacca")),
    Case("unknown chat template", append("chat_template: chatlm\n")),
    Case("word for a number", append("num_epochs: three\n")),
    Case("list for a string", replace("base_model: model", "base_model: [model]")),
    Case("key without support yet", append("use_pose: true\n")),
    Case("warm-up twice", append("warmup_ratio: 0.1\n")),
    Case("4-bit without adapter", append("load_in_4bit: true\n")),
    Case("validation share out of range", append("val_set_size: 1.5\n")),
    Case("no datasets", replace("datasets:\n  - path: rows.jsonl\n    type: chat_template\n", "")),
    Case("no base_model", replace("base_model: model\n", "")),
    Case("several at once", both(replace("0.001", "-1"), append("learing_rate: 1\nnum_epochs: three\n"))),
    Case("empty YAML", yaml("")),
    Case("YAML is a list", yaml("- a\n- b\n")),
    Case("YAML syntax", yaml("base_model: [model\nlearning_rate: 1\n")),
    Case("YAML with a tab", yaml("datasets:\n\t- path: x\n")),
    Case("YAML not UTF-8", yaml(b"base_model: caf\xe9\n")),
    Case("no such YAML", lambda folder: None, ("train", "mine.yaml")),
    Case("YAML is a folder", lambda folder: (folder / "conf").mkdir(), ("train", "conf")),
    # the command line
    Case("unknown option", lambda folder: None, ("train", "my.yaml", "--learning-rat", "1e-4")),
    Case("option without a number", lambda folder: None, ("train", "my.yaml", "--learning-rate", "fast")),
    Case("no config", lambda folder: None, ("train",)),
    Case("unknown command", lambda folder: None, ("trian", "my.yaml")),
    Case("option without a value", lambda folder: None, ("train", "my.yaml", "--learning-rate")),
    Case("no- before a number", lambda folder: None, ("train", "my.yaml", "--no-val-set-size")),
    Case("option with an empty value", lambda folder: None, ("train", "my.yaml", "--learning-rate=")),
    Case("output over the base model", replace("output_dir: out", "output_dir: ./model")),
    Case("name too long", replace("output_dir: out", f"output_dir: {'x' * 300}")),
    Case("dataset name too long", replace("rows.jsonl", f"{'x' * 300}")),
    Case("NUL in a path", replace("base_model: model", r'base_model: "mo\0del"')),
    Case("sizes that the weights do not have", append("overrides_of_model_config: {hidden_size: 64}\n")),
    Case("config.json is a list", write_to_model("config.json", "[]")),
    Case("tokenizer_config.json is a list", write_to_model("tokenizer_config.json", "[1]")),
    Case("variable without a value", raw(b"WHET_SEED\n", ".env")),
    Case("empty token", append('tokens: ["<x>", ""]\n')),
    # names from elsewhere
    Case("key of another trainer", append("per_device_train_batch_size: 2\n")),
    Case("key of a dataset at the top", append("field_messages: turns\n")),
    Case("name in capitals", append("chat_template: ChatML\n")),
    # the data
    Case("link to nowhere", both(link_to_nowhere, replace("rows.jsonl", "link.jsonl"))),
    Case("UTF-16", raw(json.dumps(GOOD).encode("utf-16"))),
    Case("NaN", raw(b'{"messages": [], "score": NaN}\n')),
    Case("JSON document named jsonl", raw(json.dumps([GOOD], indent=2).encode())),
    Case("null content", rows(GOOD, chat("Hello?", None))),  # type: ignore[arg-type]
    Case("tool call that the template leaves out", rows(GOOD, TOOL_CALL)),
    Case("preferred to itself", both(rows(PAIR, {**PAIR, "rejected": "Paris."}), DPO)),
    Case("column twice", both(csv("instruction,output,output\na,b,c\n"), ALPACA)),
    Case("every row too long, seen by check", rows(chat("x" * 200, "y"), chat("x" * 300, "y")), ("check", "my.yaml")),
    Case("unfrozen parameters match nothing", append("unfrozen_parameters: [modle]\n"), ("check", "my.yaml")),
    Case("missing dataset file", replace("rows.jsonl", "./row.jsonl")),
    Case("empty dataset", rows()),
    Case("row without the field", rows(GOOD, {"conversation": []})),
    Case("messages are text", rows(GOOD, {"messages": "Hello"})),
    Case("message without a role", rows(GOOD, {"messages": [{"content": "x"}]})),
    Case("no messages", rows(GOOD, {"messages": []})),
    Case("row is a list", rows(GOOD, [1, 2])),
    Case("broken JSON line", rows(GOOD, b'{"messages": [')),
    Case("data not UTF-8", rows(GOOD, b'{"messages": "caf\xe9"}')),
    Case("no assistant turn", rows(GOOD, {"messages": [{"role": "user", "content": "Hello?"}]})),
    Case("unknown role", rows(GOOD, {"messages": [{"role": "narrator", "content": "x"}, *GOOD["messages"]]})),
    Case("control token in content", rows(GOOD, chat("Say <|im_end|> now", "No."))),
    Case("all rows too long", rows(chat("x" * 200, "y"), chat("x" * 300, "y"))),
    Case(
        "one row too long, raise",
        both(rows(GOOD, chat("x" * 200, "y")), append("excess_length_strategy: raise\n")),
    ),
    Case(
        "pre-tokenised labels that are neither",
        both(
            rows({"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": [5, 9, 7]}),
            replace("    type: chat_template\n", ""),
        ),
    ),
    Case(
        "token id past the vocabulary",
        both(
            rows({"input_ids": [5, 6, 7777], "attention_mask": [1, 1, 1], "labels": [5, 6, 7777]}),
            replace("    type: chat_template\n", ""),
        ),
    ),
    Case("template that fails", append("chat_template: jinja\nchat_template_jinja: \"{{ raise_exception('no') }}\"\n")),
    Case("template that does not parse", append('chat_template: jinja\nchat_template_jinja: "{% for m in %}"\n')),
    Case("empty folder of data", both(lambda folder: (folder / "data").mkdir(), replace("rows.jsonl", "data"))),
    Case("validation larger than the data", append("val_set_size: 50\n")),
    # the model
    Case("missing model folder", replace("base_model: model", "base_model: ./modle")),
    Case("hub id without network", replace("base_model: model", "base_model: your-org/your-model")),
    Case("model folder without config.json", delete_from_model("config.json")),
    Case("model folder without weights", delete_from_model("model.safetensors")),
    Case("truncated weights", broken_weights),
    Case("tokenizer without a template", without_template),
    Case("target modules match nothing", append("adapter: lora\nlora_target_modules: [gate_prj]\n")),
    Case("adapter without targets", append("adapter: lora\n")),
    Case(
        "adapter to continue is missing",
        append("adapter: lora\nlora_target_linear: true\nlora_model_dir: ./nowhere\n"),
    ),
    Case("sequence longer than the model", both(model(max_position_embeddings=64))),
    # the output
    Case("output folder under a file", replace("output_dir: out", "output_dir: rows.jsonl/out")),
    Case("checkpoint to resume is missing", append("resume_from_checkpoint: out/checkpoint-7\n")),
    Case("merge without an adapter", append("adapter: lora\nlora_target_linear: true\n"), ("merge-lora", "my.yaml")),
    Case("chat before training", lambda folder: None, ("chat", "my.yaml", "--prompt", "Hello")),
    Case("evaluate without data to evaluate on", lambda folder: None, ("evaluate", "my.yaml")),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_fault_gets_its_message(case: Case, workspace: Path, whet: Whet) -> None:
    case.make(workspace)
    outcome = whet(*case.command)
    errors = [line.replace(str(workspace), "{folder}") for line in outcome.errors]
    assert errors == MESSAGES[case.name], outcome.err
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert not list(workspace.glob("out/checkpoint-*"))


def test_the_working_example_works(workspace: Path, whet: Whet) -> None:
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert (workspace / "out" / "model.safetensors").exists()


def test_a_bad_row_can_be_dropped_and_is_counted(workspace: Path, whet: Whet) -> None:
    good = [chat(f"What is {n}?", "A number.") for n in range(4)]
    write_rows(workspace / "rows.jsonl", [*good, {"messages": []}])
    append("on_bad_row: drop\n")(workspace)
    outcome = whet("preprocess", "my.yaml")
    assert outcome.code == 0, outcome.err
    shown = " ".join((outcome.out + outcome.err).split())
    assert "rows.jsonl:5" in shown
