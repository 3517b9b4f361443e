"""A whole run tells nobody anything: no planted secret is in any file or output, no address is asked but the config's,
and no pickle names a class that is not on a short list. One process does it all, see `guarded_run`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.e2e.conftest import chat, write_rows
from tests.models import save_tiny_model
from tests.tiny_tokenizers import tiny_tokenizer

DRIVER = Path(__file__).with_name("guarded_run.py")

PLANTED = {
    "environment token": "hf_PLANTEDabcdefghijklmnopqrstuvwx0123",
    "environment key": "PLANTED0123456789abcdef0123456789abcdef0",
    "environment secret": "/PLANTED+aws/secret=0123456789",
    "environment url": "PLANTED!database",
    "password": "PLANTED%21password",
    "signature": "PLANTEDsignature%2B%2F0123",
    "header": "PLANTED-header-0123",
    "storage": "PLANTED storage option",
    "kwargs": "PLANTED-kwargs-0123",
    "template": "PLANTED-template-key",
    "line": "PLANTED-on-the-line",
    "remote": "PLANTED-token-of-git-0123",
}
ROWS = "http://me:{password}@127.0.0.1:PORT/{name}?part=1&X-Amz-Credential={kwargs}&X-Amz-Signature={signature}&sig={storage}"
CONFIG = """\
base_model: model
model_kwargs: {{token: {kwargs}}}
datasets:
  - path: {url}
    type: chat_template
    storage_options: {{client_kwargs: {{headers: {{X-Trust: {header}, X-Api-Key: {storage}}}}}}}
chat_template_kwargs: {{api_key: {template}}}
mlflow_tracking_uri: http://me:{line}@host/x
use_mlflow: false
wandb_name: run of {kwargs}
use_wandb: false
use_tensorboard: true
sequence_len: 128
sample_packing: true
micro_batch_size: 1
max_steps: 3
save_steps: 2
logging_steps: 1
learning_rate: 0.001
parity: false
adapter: lora
lora_r: 4
lora_alpha: 8
lora_target_linear: true
output_dir: out
"""
AGAIN = {
    "--model-kwargs.token": "{kwargs}",
    "--datasets.0.path": ROWS.replace("{name}", "rows.jsonl"),
    "--datasets.0.storage-options": "{{client_kwargs: {{headers: {{X-Trust: {header}, X-Api-Key: {storage}}}}}}}",
    "--chat-template-kwargs.api-key": "{template}",
    "--mlflow-tracking-uri": "http://me:{line}@host/x",
    "--wandb-name": "run of {kwargs}",
    "--output-dir": "again",
}
"""What a rerun must be given again."""

ALLOWED_CLASSES = {"collections.OrderedDict": "the driver's own, to prove that it hears of pickles"}
"""Class that a pickle may name -> who reads that pickle, and where it comes from. Of a run there is none: what torch
loads goes through its restricted unpickler, which is not Python's, and what processes of whet send one another
(multiprocessing, collectives) never was in a file."""


@dataclass(frozen=True)
class Guarded:
    """What `guarded_run` left behind."""

    folder: Path
    output: bytes
    report: dict[str, Any]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Guarded:
    folder = tmp_path_factory.mktemp("guarded") / "workspace"
    folder.mkdir()
    save_tiny_model(folder / "model", tokenizer=tiny_tokenizer(), vocab_size=448)  # one that GGUF takes
    write_rows(folder / "rows.jsonl", [chat(f"What is {n} + 1?", f"It is {n + 1}.") for n in range(12)])
    url = ROWS.format(name="rows.jsonl", **PLANTED)
    text = CONFIG.format(url=url, **PLANTED)
    (folder / "my.yaml").write_text(text)
    (folder / "refused.yaml").write_text(text.replace("rows.jsonl", "gone.jsonl"))
    (folder / "mistaken.yaml").write_text(text + f"hub_tokn: {PLANTED['kwargs']}\napi_key: {PLANTED['template']}\n")
    (folder / "planted.json").write_text(json.dumps(PLANTED))
    again = [word for option, value in AGAIN.items() for word in (option, value.format(**PLANTED))]
    (folder / "again.json").write_text(json.dumps(again))
    for words in (["init", "-q"], ["remote", "add", "origin", f"https://{PLANTED['remote']}@host/x.git"]):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("WHET_")},
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2] / "src"), *sys.path]),
        "HF_HOME": str(folder / "hf"),
        "HF_HUB_OFFLINE": "0",  # nothing but whet itself keeps this run from the hub
        "HF_TOKEN": PLANTED["environment token"],
        "WANDB_API_KEY": PLANTED["environment key"],
        "AWS_SECRET_ACCESS_KEY": PLANTED["environment secret"],
        "DATABASE_URL": f"postgres://me:{PLANTED['environment url']}@host/x",
        "http_proxy": "",
        "https_proxy": "",
    }
    environment.pop("HF_HUB_DISABLE_TELEMETRY", None)
    report = folder.parent / "report.json"
    command = [sys.executable, str(DRIVER), str(folder), str(report)]
    apart = ["unshare", "--map-root-user", "--net"]
    with_network_cut = subprocess.run([*apart, "true"], capture_output=True, check=False).returncode == 0
    done = subprocess.run(
        [*apart, *command] if with_network_cut else command, env=environment, capture_output=True, check=False
    )
    output = done.stdout + done.stderr
    assert report.is_file(), output.decode()[-3000:]
    return Guarded(folder, output, json.loads(report.read_text()))


def test_each_command_does_what_it_should(guarded: Guarded) -> None:
    codes = guarded.report["codes"]
    # A record keeps no secret, so one that needs them is done again where they are given again.
    failing = {"refused": 2, "mistaken": 2, "fault": 1, "push refused": 2, "rerun refused": 2}
    assert codes == {name: failing.get(name, 0) for name in codes}, guarded.output.decode()[-6000:]
    assert set(failing) <= set(codes)
    for word in (
        b"gone.jsonl",
        b"hub_tokn",
        b"RuntimeError: a fault of ours at http://***@127.0.0.1",
        b"a note about ***",
        b"mlflow did not take figures from step 1 for mlflow (no route to http://***@host/x for ***)",
        b"cannot be opened on the hub (",
        b"pushed what was lost",
    ):
        assert word in guarded.output
    remote = json.loads((guarded.folder / "out" / "run.json").read_text())["git"]["remote"]
    assert remote == "https://host/x.git"


def test_no_secret_is_in_any_file_or_output(guarded: Guarded) -> None:
    ours = {"my.yaml", "refused.yaml", "mistaken.yaml", "planted.json", "again.json", ".git/config"}
    files = [path for path in guarded.folder.rglob("*") if path.is_file()]
    texts = {str(path.relative_to(guarded.folder)): path.read_bytes() for path in files}
    texts = {name: content for name, content in texts.items() if name not in ours}
    made = {"out/run.json", "again/run.json", "hub/run.json", "hub/README.md", "hub/adapter_model.safetensors"}
    assert made <= set(texts)
    names = {Path(name).name for name in texts}
    assert {"manifest.json", "inspect-my.html", "metrics.jsonl", "trainer_state.json", "examples.jsonl"} <= names
    assert any(name.endswith(".gguf") for name in names)
    told = [
        f"{name} tells {what}"
        for name, content in {**texts, "the output": guarded.output}.items()
        for what, value in PLANTED.items()
        for form in (value, quote(value, safe=""), *encoded(value))
        if form.encode() in content
    ]
    assert told == []
    assert [name for name in texts if "PLANTED" in name] == []
    assert b"PLANTED" not in guarded.output
    assert [name for name, content in texts.items() if b"PLANTED" in content] == []


def encoded(value: str) -> list[str]:
    return [base64.b64encode(text.encode()).decode().rstrip("=") for text in (value, f"me:{value}")]


def test_no_address_is_asked_but_those_of_the_config(guarded: Guarded) -> None:
    allowed = f"('127.0.0.1', {guarded.report['port']})"
    asked = {event for event in guarded.report["network"] if allowed not in event and not event.endswith(" 127.0.0.1")}
    assert asked == {"proof: socket.getaddrinfo telemetry.invalid"}
    readers = {event.split(":")[0] for event in guarded.report["network"]} - {"proof"}
    assert readers <= {
        "check",
        "preprocess",
        "preprocess debug",
        "train",
        "resume",
        "explain",
        "inspect",
        "refused",
        "inspect terminal",
        "evaluate",
        "push refused",
        "push",
        "rerun",
    }, "a command that reads no rows, and sends nothing, asked somebody"


def test_the_hub_is_asked_by_push_alone_and_nobody_else_gets_its_token(guarded: Guarded) -> None:
    asked = {event.partition(": ")[::2] for event in guarded.report["asked"]}
    assert {phase for phase, what in asked if "/api/" in what} == {"push refused", "push"}
    assert {what.endswith("with the hub's token") for _, what in asked if "/api/" in what} == {True}
    others = {what for _, what in asked if "/api/" not in what}
    assert others == {"/rows.jsonl with no token", "/gone.jsonl with no token"}


def test_no_process_is_started_that_talks(guarded: Guarded) -> None:
    assert [
        event for event in guarded.report["process"] if event.split(": ", 1)[1].split()[0] not in ("git", "uname")
    ] == []


def test_no_pickle_names_a_class_that_is_not_allowed(guarded: Guarded) -> None:
    assert sorted(set(guarded.report["pickle"])) == sorted(ALLOWED_CLASSES)
