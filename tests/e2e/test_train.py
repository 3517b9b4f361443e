"""The real command on a tiny model: what each way of training gives, and what stands in the folder afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.e2e.conftest import CONFIG, Whet, write_rows
from tests.models import ARCHITECTURES, save_tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer

PYDOC = Path(__file__).parents[1] / "data" / "pydoc-sample.jsonl"
LORA = "adapter: lora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"


def configure(folder: Path, more: str, **changes: object) -> None:
    """The working example with other values (``max_steps=4``) and more lines."""
    lines = CONFIG.splitlines()
    for key, value in changes.items():
        lines = [line for line in lines if not line.startswith(f"{key}:")]
        if value is not None:
            lines.append(f"{key}: {value}")
    (folder / "my.yaml").write_text("\n".join(lines) + "\n" + more)


def metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    lines = (folder / "out" / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(folder)]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param("", id="full"),
        pytest.param(LORA, id="lora"),
        pytest.param(LORA + "load_in_4bit: true\n", id="lora on 4 bits"),
        pytest.param(LORA.replace("lora\n", "qlora\n", 1) + "load_in_4bit: true\n", id="qlora"),
        pytest.param(LORA + "load_in_8bit: true\n", id="lora on 8 bits"),
        pytest.param(LORA + "peft_use_dora: true\npeft_use_rslora: true\n", id="dora and rslora"),
        pytest.param("bf16: true\n", id="mixed precision"),
        pytest.param(
            f"{LORA}lora_modules_to_save: [embed_tokens, lm_head]\nbf16: true\nmerge_adapters: true\n"
            "score_dataset: rows.jsonl\nscore_max_new_tokens: 2\n",
            id="modules in full beside lora in mixed precision",
        ),
        pytest.param("bfloat16: true\n", id="bfloat16 weights"),
        pytest.param("gradient_checkpointing: true\n", id="gradient checkpointing"),
    ],
)
def test_the_loss_falls(more: str, workspace: Path, whet: Whet) -> None:
    configure(workspace, more, max_steps=8, learning_rate=0.01)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    found = losses(workspace)
    assert len(found) == 8
    assert found[-1] < found[0] - 0.3
    record = json.loads((workspace / "out" / "run.json").read_text())
    assert record["outcome"] == "finished"
    assert record["config"]["learning_rate"]["value"] == 0.01


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_trains_on_real_conversations(architecture: str, workspace: Path, whet: Whet) -> None:
    (workspace / "model").unlink()
    save_tiny_model(workspace / "model", architecture)
    rows = [json.loads(line) for line in PYDOC.read_text(encoding="utf-8").splitlines()[:60]]
    write_rows(workspace / "rows.jsonl", rows)
    configure(workspace, "excess_length_strategy: drop\n", sequence_len=512, max_steps=3)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert "each document attends to itself" in outcome.err
    assert len(losses(workspace)) == 3


def test_a_real_tokenizer_trains(workspace: Path, whet: Whet) -> None:
    """Mistral's own tokenizer file, as mistral-common ships it."""
    from tests.mistral_tokenizers import mistral_tokenizer

    tokenizer = mistral_tokenizer("mistral_v3_tekken")
    (workspace / "model").unlink()
    save_tiny_model(
        workspace / "model",
        "mistral",
        tokenizer=tokenizer,
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        hidden_size=16,
        num_attention_heads=2,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    rows = [json.loads(line) for line in PYDOC.read_text(encoding="utf-8").splitlines()[:40]]
    write_rows(workspace / "rows.jsonl", [row for row in rows if row["messages"][0]["role"] == "user"])
    configure(workspace, "chat_template: mistral_v3_tekken\n", sequence_len=512)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err


FORMATS: list[tuple[str, list[object], str]] = [
    ("alpaca", [{"instruction": "Add.", "input": f"{n} + 1", "output": str(n + 1)} for n in range(6)], "alpaca"),
    ("completion", [{"text": f"Line {n}. " * 9} for n in range(6)], "completion"),
    (
        "input_output",
        [{"segments": [{"label": False, "text": "Q: "}, {"label": True, "text": f"A {n}"}]} for n in range(6)],
        "input_output",
    ),
    (
        "sharegpt",
        [{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": f"Ho {n}"}]} for n in range(6)],
        "sharegpt",
    ),
    ("pre-tokenised", [{"input_ids": [5, 6, 7 + n], "labels": [-100, 6, 7 + n]} for n in range(6)], ""),
]


@pytest.mark.parametrize(("rows", "kind"), [case[1:] for case in FORMATS], ids=[case[0] for case in FORMATS])
def test_every_format_trains(rows: list[object], kind: str, workspace: Path, whet: Whet) -> None:
    write_rows(workspace / "rows.jsonl", rows)
    configure(workspace, "", sequence_len=256)
    text = (workspace / "my.yaml").read_text()
    (workspace / "my.yaml").write_text(text.replace("    type: chat_template\n", f"    type: {kind}\n" if kind else ""))
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert len(losses(workspace)) == 2


def test_two_processes_compute_what_one_does(workspace: Path, whet: Whet) -> None:
    """torchrun with two gloo ranks against one process that accumulates two micro-batches."""
    configure(workspace, "gradient_accumulation_steps: 2\nval_set_size: 3\n", max_steps=4)
    assert whet("train", "my.yaml").code == 0
    alone, alone_eval = losses(workspace), metrics(workspace, "eval")[-1]["eval_loss"]
    configure(workspace, "gradient_accumulation_steps: 1\nval_set_size: 3\n", max_steps=4, output_dir="out2")
    done = subprocess.run(
        [sys.executable, "-m", "whet", "train", "my.yaml", "--launcher", "torchrun", "--num-processes", "2"],
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    (workspace / "out").rename(workspace / "alone")
    (workspace / "out2").rename(workspace / "out")
    assert losses(workspace) == pytest.approx(alone, abs=1e-5)
    assert metrics(workspace, "eval")[-1]["eval_loss"] == pytest.approx(alone_eval, abs=1e-5)


def test_an_adapter_merges_into_a_model_that_transformers_loads_alone(workspace: Path, whet: Whet) -> None:
    configure(workspace, LORA, learning_rate=0.05, max_steps=4)
    assert whet("train", "my.yaml").code == 0
    outcome = whet("merge-lora", "my.yaml")
    assert outcome.code == 0, outcome.err
    merged_folder = workspace / "out" / "merged"
    assert outcome.out.strip() == "out/merged"

    from peft import AutoPeftModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(merged_folder)
    merged = AutoModelForCausalLM.from_pretrained(merged_folder).eval()
    live = AutoPeftModelForCausalLM.from_pretrained(workspace / "out").eval()
    messages = [{"role": "user", "content": "What is 3 + 1?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.no_grad():
        assert (merged(ids).logits - live(ids).logits).abs().max() <= 1e-4
    stops = merged.generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in (stops if isinstance(stops, list) else [stops])


def test_chat_answers_a_prompt_and_a_pipe(workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert whet("train", "my.yaml").code == 0
    outcome = whet("chat", "my.yaml", "--prompt", "What is 2?", "--max-new-tokens", "4")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip()
    piped = subprocess.run(
        [sys.executable, "-m", "whet", "inference", "my.yaml", "--max-new-tokens", "4"],
        input="What is 3?\nWhat is 4?\n",
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert piped.returncode == 0, piped.stderr
    assert piped.stdout.strip()


def test_evaluate_measures_what_was_trained(workspace: Path, whet: Whet) -> None:
    configure(workspace, "val_set_size: 3\n", max_steps=6, learning_rate=0.01)
    assert whet("train", "my.yaml").code == 0
    at_the_end = metrics(workspace, "eval")[-1]["eval_loss"]
    outcome = whet("evaluate", "my.yaml")
    assert outcome.code == 0, outcome.err
    figures = dict(line.split("\t") for line in outcome.out.splitlines() if "\t" in line)
    assert float(figures["eval_loss"]) == pytest.approx(at_the_end, abs=1e-4)


def test_preference_training_moves_the_model(workspace: Path, whet: Whet) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "Who knows?"} for n in range(8)]
    write_rows(workspace / "rows.jsonl", rows)
    configure(workspace, "rl: dpo\nrl_beta: 0.1\n" + LORA, sample_packing="false", max_steps=4, learning_rate=0.01)
    text = (workspace / "my.yaml").read_text()
    (workspace / "my.yaml").write_text(text.replace("    type: chat_template\n", ""))
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    found = losses(workspace)
    assert found[0] == pytest.approx(0.6931, abs=1e-3)  # the policy is its own reference: -log sigmoid(0)
    assert found[-1] < found[0] - 0.01


def test_resuming_goes_on_where_the_run_was(workspace: Path, whet: Whet) -> None:
    configure(workspace, "save_steps: 2\n", save_strategy="steps", max_steps=4)
    assert whet("train", "my.yaml").code == 0
    whole = losses(workspace)
    for name in ("checkpoint-4", "model.safetensors"):
        path = workspace / "out" / name
        if path.is_dir():
            for file in path.rglob("*"):
                if file.is_file():
                    file.unlink()
    outcome = whet("train", "my.yaml", "--resume_from_checkpoint", "true")
    assert outcome.code == 0, outcome.err
    assert "checkpoint-4: passed over" in outcome.err
    assert "resuming from out/checkpoint-2" in outcome.err
    assert losses(workspace) == whole


def test_a_run_that_loses_its_numbers_ends_itself(workspace: Path, whet: Whet) -> None:
    configure(workspace, "save_steps: 1\n", save_strategy="steps", learning_rate="1e38", max_steps=12)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 1, outcome.err
    assert "Traceback" not in outcome.err
    assert "3 steps in a row" in outcome.errors[0]
    assert list((workspace / "out").glob("checkpoint-*"))


@pytest.fixture
def quiet_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables that trackers leave behind do not outlive the test."""
    for name in ("WANDB_PROJECT", "WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("quiet_trackers")
@pytest.mark.parametrize(
    ("more", "left_behind"),
    [
        pytest.param("use_tensorboard: true\n", "out/runs/**/events.*", id="tensorboard"),
        pytest.param("wandb_project: mine\nwandb_mode: offline\n", "out/wandb/offline-run-*", id="wandb"),
        pytest.param("use_mlflow: true\n", "out/mlflow.db", id="mlflow"),
    ],
)
def test_trackers_work_without_network(more: str, left_behind: str, workspace: Path) -> None:
    configure(workspace, more)
    done = subprocess.run(
        [sys.executable, "-m", "whet", "train", "my.yaml"], capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, done.stderr
    assert list(workspace.glob(left_behind))


def test_the_result_is_pushed_once_at_the_end_and_evaluating_pushes_and_reports_nothing(
    workspace: Path, whet: Whet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    uploaded: list[str] = []

    class FakeHub:
        def create_repo(self, *args: Any, **options: Any) -> Any:
            asked.append("create_repo")
            return SimpleNamespace(repo_id="me/tiny")

        def upload_folder(self, folder_path: Path, **options: Any) -> None:
            asked.append("upload_folder")
            uploaded.extend(sorted(path.name for path in Path(folder_path).iterdir() if path.is_file()))

    monkeypatch.setattr("whet.artefacts.hub.HfApi", FakeHub)
    monkeypatch.setattr("transformers.trainer.hf_api", FakeHub)
    configure(workspace, "hub_model_id: tiny\nhub_strategy: end\nuse_tensorboard: true\nval_set_size: 0.25\n")
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert (asked[0], asked.count("upload_folder"), asked[-1]) == ("create_repo", 1, "upload_folder")
    assert {"model.safetensors", "tokenizer.json", "generation_config.json", "run.json"} <= set(uploaded)
    assert "pushed: the result: https://huggingface.co/me/tiny" in outcome.err
    asked.clear()
    runs = list((workspace / "out" / "runs").rglob("*"))
    assert whet("evaluate", "my.yaml").code == 0
    assert asked == []
    assert list((workspace / "out" / "runs").rglob("*")) == runs


def test_checkpoints_of_an_earlier_run_stay_until_a_new_one_can_begin(workspace: Path, whet: Whet) -> None:
    configure(workspace, "save_steps: 1\n", save_strategy=None)
    assert whet("train", "my.yaml").code == 0
    good = (workspace / "rows.jsonl").read_text()
    (workspace / "rows.jsonl").write_text(good + "no json\n")
    assert whet("train", "my.yaml").code == 2
    assert (workspace / "out" / "checkpoint-2").is_dir()
    (workspace / "rows.jsonl").write_text(good)
    outcome = whet("train", "my.yaml", "--save-steps", "2")
    assert outcome.code == 0, outcome.err
    assert "held what an earlier run had left; it is in out/_earlier-runs/1 now" in outcome.err
    assert sorted(path.name for path in (workspace / "out").glob("checkpoint-*")) == ["checkpoint-2"]
    earlier = workspace / "out" / "_earlier-runs" / "1"
    assert sorted(path.name for path in earlier.glob("[cr]*")) == [
        *("chat_template.jinja", "checkpoint-1", "checkpoint-2", "config.json", "run.json")
    ]


def test_auto_resume_tells_what_it_passes_over_and_begins_anew(workspace: Path, whet: Whet) -> None:
    (workspace / "out" / "checkpoint-9").mkdir(parents=True)
    configure(workspace, "auto_resume_from_checkpoints: true\nsave_steps: 1\n", save_strategy=None)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert "warning: out/checkpoint-9: passed over, because it has no whet-checkpoint.json" in outcome.err
    again = whet("train", "my.yaml", "--max-steps", "3")
    assert "resuming from out/checkpoint-2" in again.err
