"""One run's steps, by `whet train`'s trainer or by a bare loop over the same batches; prints the seconds of each step.

The bare loop has the same model with the same levers, the same loss function, optimizer and clipping, and its batches
lie in memory before it starts. What the other adds is transformers' loop, ours around it, and fetching the batches.
"""

from __future__ import annotations

import argparse
import json
import time
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--config", required=True)
    arguments.add_argument("--bare", action="store_true")
    options = arguments.parse_args()

    from whet import load_config, stages

    config = load_config(options.config)
    stages.import_libraries(config)

    from whet.training.tokenizer import run_tokenizer

    resolved = stages.resolve_run(config)
    Path(resolved.output_dir).mkdir(parents=True, exist_ok=True)
    tokenizer = run_tokenizer(config)
    prepared = stages.training_data(resolved, tokenizer)
    order, plan = stages.plan_run(resolved, prepared)
    with stages.compiler_put_off():
        trainer = stages.make_trainer(resolved, tokenizer, prepared, order, plan)
        ends, last_loss = bare_loop(trainer, plan.total_steps) if options.bare else trained(trainer, resolved)
    print(json.dumps({"step_seconds": [b - a for a, b in pairwise(ends)], "summed_loss": last_loss}))


def bare_loop(trainer: Any, num_steps: int) -> tuple[list[float], float]:
    """When each step ended, and the summed loss of the last."""
    from whet.model.loss import supervised_logits_loss

    batches = list(islice(trainer.get_train_dataloader(), num_steps))
    model, optimizer = trainer.model, trainer.create_optimizer()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.train()
    ends, total = [], torch.zeros(())
    for batch in batches:
        parts = supervised_logits_loss(model, batch)
        total = parts.total.detach()
        (parts.total / batch["num_supervised"]).backward()
        norm = torch.nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
        if norm > trainer.args.max_grad_norm:
            torch.nn.utils.clip_grads_with_norm_(trained, trainer.args.max_grad_norm, norm)
        optimizer.step()
        optimizer.zero_grad()
        ends.append(time.perf_counter())
    return ends, float(total)


def trained(trainer: Any, resolved: Any) -> tuple[list[float], float]:
    """The same of the run as `whet train` makes it."""
    from transformers import TrainerCallback

    from whet.training.fit import fit

    class Clock(TrainerCallback):
        ends: list[float] = []  # noqa: RUF012  # one instance

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

    clock = Clock()
    trainer.add_callback(clock)
    fit(trainer, resolved)
    return clock.ends, float(trainer.step_losses[-1][0])


if __name__ == "__main__":
    main()
