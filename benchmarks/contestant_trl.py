"""TRL's SFTTrainer on the workbench, at the best settings it has on a CPU: packing, assistant tokens only.

Prints one JSON object: supervised tokens/s after the warm-up steps, peak memory, seconds from process start to step 1.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

STARTED = time.time()


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--model", required=True)
    arguments.add_argument("--rows", required=True)
    arguments.add_argument("--output", required=True)
    arguments.add_argument("--sequence-len", type=int, default=2048)
    arguments.add_argument("--micro-batch-size", type=int, default=1)
    arguments.add_argument("--steps", type=int, default=-1, help="-1: once over the rows")
    arguments.add_argument("--warmup", type=int, default=2)
    arguments.add_argument("--no-packing", action="store_true")
    arguments.add_argument("--lora-r", type=int, default=0)
    arguments.add_argument("--bf16", action="store_true", help="mixed precision; under an adapter the base in bfloat16")
    arguments.add_argument("--startup", action="store_true", help="report the time to the end of step 1 only")
    options = arguments.parse_args()

    from datasets import load_dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, args, state, control, **kwargs):  # type: ignore[no-untyped-def]
            self.ends.append(time.time())

    lora = None
    if options.lora_r:
        from peft import LoraConfig

        lora = LoraConfig(
            r=options.lora_r, lora_alpha=2 * options.lora_r, target_modules="all-linear", task_type="CAUSAL_LM"
        )
    clock = Clock()
    trainer = SFTTrainer(
        model=options.model,
        args=SFTConfig(
            output_dir=options.output,
            packing=not options.no_packing,
            max_length=options.sequence_len,
            per_device_train_batch_size=options.micro_batch_size,
            assistant_only_loss=True,
            max_steps=options.steps,
            num_train_epochs=1,
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=options.bf16,
            gradient_checkpointing=False,
            optim="adamw_torch_fused",
            # As ours: weights that are trained stay in float32, a frozen base is loaded in bfloat16.
            model_init_kwargs={"dtype": "bfloat16" if options.bf16 and options.lora_r else "float32"},
            dataloader_pin_memory=False,
        ),
        train_dataset=load_dataset("json", data_files=options.rows, split="train"),
        callbacks=[clock],
        peft_config=lora,
    )
    supervised: list[int] = []
    collate = trainer.data_collator

    def counting(examples):  # type: ignore[no-untyped-def]
        batch = collate(examples)
        labels = batch["labels"]
        supervised.append(int((labels[:, 1:] != -100).sum()))
        return batch

    trainer.data_collator = counting
    trainer.train()
    if options.startup:
        print(json.dumps({"first_step_seconds": clock.ends[0] - STARTED}))
        return
    seconds = clock.ends[-1] - clock.ends[options.warmup - 1]
    tokens = sum(supervised[options.warmup : len(clock.ends)])
    print(
        json.dumps(
            {
                "supervised_tokens_per_second": tokens / seconds,
                "supervised_tokens": tokens,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                "first_step_seconds": clock.ends[0] - STARTED,
                "loss": trainer.state.log_history[-2].get("loss"),
            }
        )
    )


if __name__ == "__main__":
    main()
