"""A run imports what it uses and no more; a later one of the same process that uses more finds it as always."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import whet

# Installed for the tests, and none of them used by a full fine-tuning or a LoRA run on a CPU.
UNUSED = (
    *("bitsandbytes", "boto3", "botocore", "datasets", "deepspeed", "liger_kernel", "matplotlib", "mlflow", "pandas"),
    *("scipy", "sklearn", "tensorboard", "torchao", "torch._dynamo", "torch._inductor", "triton", "trl", "wandb"),
)

RUNS = """
import json, sys
from whet import load_config, train
from whet.core import deferred

unused, found = json.loads(sys.argv[1]), {}

def run(name, *more):
    train(load_config("my.yaml", ["--output-dir", name, "--max-steps", "1", *more]))
    found[name] = sorted(set(unused) & set(sys.modules))

lora = ["--adapter", "lora", "--lora-r", "4", "--lora-target-linear"]
run("full")
found["peft in full"] = "peft" in sys.modules
run("lora", *lora)

# Every module of the table is put off by somebody: either a module holds what stands for it, or it holds marks.
from whet.model.startup import DEFERRALS
held = {id(value) for module in list(sys.modules.values()) for value in list(getattr(module, "__dict__", {}).values())}
found["idle"] = [
    name
    for name, stub in deferred._FINDER.waiting.items()
    if not stub._marked and not ({id(stub), *map(id, vars(stub).values())} & held)
]
found["not waiting"] = [d.module for d in DEFERRALS if d.module not in deferred._FINDER.waiting]

run("qlora", "--load-in-4bit", *lora)
import bitsandbytes, peft, peft.helpers, torch, transformers.trainer, transformers.trainer_utils
found["settled"] = [
    peft.helpers.bnb is bitsandbytes,
    transformers.trainer.PeftModel is peft.PeftModel,
    transformers.trainer_utils.PeftMixedModel is peft.PeftMixedModel,
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(())).item() == 2,
    torch._dynamo is sys.modules["torch._dynamo"] and type(torch._dynamo).__name__ == "module",
]
found["left"] = [
    f"{module.__name__}.{name}"
    for module in list(sys.modules.values())
    for name, value in list(getattr(module, "__dict__", {}).items())
    if isinstance(value, deferred.StandIn) and value.__module__ in ("peft", "bitsandbytes", "torch._dynamo")
]
print(json.dumps(found))
"""


@pytest.fixture
def found(workspace: Path) -> dict[str, object]:
    command = [sys.executable, "-c", RUNS, json.dumps(UNUSED)]
    environment = {**os.environ, "PYTHONPATH": str(Path(whet.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_runs_import_what_they_use(found: dict[str, object]) -> None:
    assert found["full"] == []
    assert found["peft in full"] is False
    assert found["lora"] == []
    assert found["not waiting"] == []
    # One that is idle is imported by nobody any more, or not at the top: take it out of the table.
    assert found["idle"] == []
    assert "bitsandbytes" in str(found["qlora"])
    assert found["settled"] == [True] * 5
    assert found["left"] == []
