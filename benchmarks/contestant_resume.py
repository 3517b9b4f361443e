"""One trainer of benchmarks/resume.py in its own process: make a checkpoint of a run that is far along, or resume it.

The far checkpoint is that of step 2 with another number: the trainer's state, schedule and log say that so many steps
are done. Prints one JSON line: seconds from the call that trains to the first step's begin, when its batch is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

LOGGED_EVERY = 10


class Stop(Exception):
    """The first batch is there."""


class AtStep(TrainerCallback):
    """Ends the run after two steps with a checkpoint, or at the begin of the first step of a resumed one."""

    def __init__(self, resuming: bool) -> None:
        self._resuming = resuming
        self.began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._resuming:
            self.began = time.perf_counter()
            raise Stop

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 2:
            control.should_save = control.should_training_stop = True


class Rows(torch.utils.data.Dataset[Any]):
    """Rows of sixteen tokens, made when they are asked for."""

    def __init__(self, num: int) -> None:
        self._num = num

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.arange(index, index + 16) % 500
        return {"input_ids": ids, "labels": ids}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--trainer", choices=("whet", "transformers"), required=True)
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--folder", type=Path, required=True)
    arguments.add_argument("--rows", type=int, required=True)
    arguments.add_argument("--step", type=int, required=True)
    arguments.add_argument("--save", action="store_true")
    options = arguments.parse_args()
    at_step, checkpoint = AtStep(not options.save), options.folder / f"checkpoint-{options.step}"
    make = with_whet if options.trainer == "whet" else with_transformers
    train = make(options, at_step)
    if options.save:
        train(None)
        move_far(options.folder, options.step, options.trainer)
        if options.trainer == "whet":
            from whet.training.publishing import seal

            seal(checkpoint, options.step)
        print("{}")
        return
    started = time.perf_counter()
    try:
        train(checkpoint)
    except Stop:
        print(json.dumps({"first_batch_seconds": at_step.began - started}))


def with_whet(options: argparse.Namespace, at_step: AtStep) -> Any:
    from whet import stages
    from whet.config import load_config
    from whet.training.fit import fit
    from whet.training.tokenizer import run_tokenizer

    resolved = stages.resolve_run(load_config(options.config))
    tokenizer = run_tokenizer(resolved.config)
    prepared = stages.training_data(resolved, tokenizer)
    order, plan = stages.plan_run(resolved, prepared)
    trainer = stages.make_trainer(resolved, tokenizer, prepared, order, plan)
    trainer.add_callback(at_step)
    return lambda checkpoint: fit(trainer, resolved, checkpoint)


def with_transformers(options: argparse.Namespace, at_step: AtStep) -> Any:
    set_seed(0)
    args = TrainingArguments(
        str(options.folder),
        per_device_train_batch_size=1,
        num_train_epochs=2,
        logging_steps=LOGGED_EVERY,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    model = AutoModelForCausalLM.from_pretrained(options.model)
    trainer = Trainer(model, args, train_dataset=Rows(options.rows), callbacks=[at_step])
    return lambda checkpoint: trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def move_far(folder: Path, step: int, trainer: str) -> None:
    """Let the checkpoint of step 2 be that of a later one, with as long a log as such a run has.

    transformers keeps all of it in each checkpoint; whet the newest lines, and all in metrics.jsonl.
    """
    checkpoint = (folder / "checkpoint-2").rename(folder / f"checkpoint-{step}")
    path = checkpoint / "trainer_state.json"
    state = json.loads(path.read_text())
    state["global_step"] = step
    line = {"loss": 2.0, "grad_norm": 1.0, "learning_rate": 1e-4, "epoch": 0.5}
    history = [{**line, "step": number} for number in range(LOGGED_EVERY, step + 1, LOGGED_EVERY)]
    state["log_history"] = history
    if trainer == "whet":
        from whet.training.saving import LINES_KEPT

        state["log_history"] = history[-LINES_KEPT:]
    path.write_text(json.dumps(state))
    schedule = torch.load(checkpoint / "scheduler.pt", weights_only=True)
    schedule["last_epoch"], schedule["_step_count"] = step, step + 1
    torch.save(schedule, checkpoint / "scheduler.pt")
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"kind": "train", **entry}) + "\n" for entry in history))


if __name__ == "__main__":
    main()
