"""Ingredients of a run that may each have a memory of their own: what a checkpoint must bring back."""

from __future__ import annotations

from typing import Any

LORA: dict[str, Any] = {"adapter": "lora", "lora_r": 4, "lora_alpha": 8, "lora_target_linear": True}
QLORA = {**LORA, "adapter": "qlora", "load_in_4bit": True}
EVALS = {"eval_strategy": "steps", "eval_steps": 1}
WEIGHTS = (
    {"path": "chat.jsonl", "type": "chat_template", "weight": 3.0},
    {"path": "code.jsonl", "type": "chat_template", "weight": 1.0},
)
PHASES = (
    {"share": 0.5, "weights": {"chat": 1.0}},
    {"share": 0.5, "weights": {"chat": 1.0, "code": 1.0}},
)
NAMED = (
    {"path": "chat.jsonl", "type": "chat_template"},
    {"path": "code.jsonl", "type": "chat_template"},
)
DPO: dict[str, Any] = {"data": "pairs", "rl": "dpo", "sample_packing": False}
DROPOUT = {"attention_dropout": 0.1}

CASES: dict[str, dict[str, Any]] = {
    # -- the order of samples
    "packed": {"size": DROPOUT},
    "one sample a row": {"sample_packing": False, "micro_batch_size": 2, "size": DROPOUT},
    "accumulation 3": {"gradient_accumulation_steps": 3},
    "mixed by weights": {"data": "mixed", "datasets": WEIGHTS, "sample_packing_balance": True},
    "mixed by temperature": {"data": "mixed", "datasets": NAMED, "mixing_temperature": 2.0},
    "phases": {"data": "mixed", "datasets": NAMED, "phases": PHASES},
    "packs of neighbours": {"sample_packing_sequentially": True},
    "curriculum": {"curriculum_sampling": True},
    "workers": {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
    "streamed": {"data": "stream", "size": DROPOUT},
    "streamed, one sample a row": {"data": "stream", "sample_packing": False, "micro_batch_size": 2},
    # -- what is trained, in which precision
    "bfloat16": {"bfloat16": True, "bf16": False},
    "mixed precision": {"bf16": True},
    "stochastic rounding": {"bfloat16": True, "bf16": False, "stochastic_rounding": True},
    "optimizer in the backward pass": {
        "optimizer_in_backward": True,
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 0.0,
    },
    "tied embeddings": {"size": {"tie_word_embeddings": True}},
    "unfrozen parameters": {"unfrozen_parameters": (r"model\.layers\.1", "lm_head")},
    "LoRA with dropout": {**LORA, "lora_dropout": 0.1, "size": DROPOUT},
    "LoRA+ of rank-stabilised LoRA": {**LORA, "peft_use_rslora": True, "loraplus_lr_ratio": 4.0},
    "DoRA": {**LORA, "peft_use_dora": True, "lora_dropout": 0.1},
    "LoRA in bfloat16": {**LORA, "bf16": True},
    "LoRA with modules in full": {**LORA, "lora_modules_to_save": ("embed_tokens", "lm_head")},
    "LoRA with tied modules in full": {
        **LORA,
        "lora_modules_to_save": ("embed_tokens",),
        "size": {"tie_word_embeddings": True},
    },
    "LoRA with token rows": {**LORA, "peft_trainable_token_indices": (7, 8)},
    "QLoRA": {**QLORA, "lora_dropout": 0.1},
    "QLoRA in bfloat16": {**QLORA, "bf16": True},
    "8-bit LoRA": {**LORA, "load_in_8bit": True},
    "gated experts": {"size": {"architecture": "mixtral"}},
    "fused experts of GPT-OSS": {"size": {"architecture": "gpt_oss"}},
    "experts of Qwen3": {"size": {"architecture": "qwen3_moe"}, "bfloat16": True, "bf16": False},
    "adapter of experts": {
        "adapter": "lora",
        "lora_r": 4,
        "lora_target_modules": ("q_proj",),
        "lora_target_parameters": ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
        "size": {"architecture": "mixtral"},
    },
    "GPT-2": {"size": {"architecture": "gpt2"}},
    "Gemma 3": {"size": {"architecture": "gemma3"}},
    "norms in float32": {"bfloat16": True, "bf16": False, "fp32_norms": True},
    "frozen in 16 bits, modules in full": {**LORA, "bf16": True, "lora_modules_to_save": ("lm_head",)},
    "orthogonal LoRA": {**LORA, "peft_init_lora_weights": "orthogonal"},
    # -- how long, how fast, which loss
    "steps that end in the middle of an epoch": {"num_epochs": 1.0, "max_steps": 5},
    "warm-up by a share of the run": {"warmup_steps": None, "warmup_ratio": 0.5},
    "last partial window of an accumulation": {
        "sample_packing": False,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "size": DROPOUT,
    },
    "smoothed labels and z-loss": {"label_smoothing": 0.1, "z_loss_coefficient": 1e-3},
    "dynamic fine-tuning": {"use_dft": True},
    "curriculum of whole samples": {"curriculum_sampling": True, "sample_packing": False, "micro_batch_size": 2},
    # -- during training
    "ReLoRA": {**LORA, "relora": True, "jagged_restart_steps": 2, "optimizer": "adamw_torch_fused"},
    "ReLoRA, pruned at random": {
        **LORA,
        "relora": True,
        "relora_prune_method": "random",
        "jagged_restart_steps": 3,
        "lora_dropout": 0.1,
    },
    "LISA": {"lisa_n_layers": 1, "lisa_step_interval": 2, "size": {"num_hidden_layers": 4}},
    "NEFTune": {"neftune_noise_alpha": 5.0},
    "gradient checkpointing": {"gradient_checkpointing": True, "size": DROPOUT},
    "Grokfast": {"grokfast_alpha": 0.9},
    "quantisation-aware": {"qat": {"weight_dtype": "int8", "fake_quant_after_n_steps": 2}, "size": {"hidden_size": 64}},
    # -- what is told and decided
    "logged every 3 steps": {"data": "mixed", "datasets": WEIGHTS, "logging_steps": 3},
    "evaluated every step": EVALS,
    "evaluated at epochs' ends": {"eval_strategy": "epoch"},
    "a schedule that follows the evaluations of epochs": {
        "eval_strategy": "epoch",
        "lr_scheduler": "reduce_lr_on_plateau",
        "lr_scheduler_kwargs": {"patience": 0},
        "learning_rate": 0.1,
        "num_epochs": 4.0,
    },
    "evaluated at the start": {**EVALS, "eval_on_start": True, "early_stopping_patience": 3},
    "best at the end": {**EVALS, "load_best_model_at_end": True, "learning_rate": 0.1},
    "best LoRA at the end": {**EVALS, **LORA, "load_best_model_at_end": True, "learning_rate": 0.1},
    "early stopping": {**EVALS, "early_stopping_patience": 2, "learning_rate": 0.1},
    "early stopping between steps that are not evaluated": {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "early_stopping_patience": 1,
        "learning_rate": 0.1,
        "num_epochs": 4.0,
    },
    "early stopping at epochs' ends": {
        "eval_strategy": "epoch",
        "early_stopping_patience": 1,
        "learning_rate": 0.1,
        "num_epochs": 4.0,
    },
    "average of the weights": {"optimizer": "schedule_free_adamw", "lr_scheduler": "constant", **EVALS},
    "average of the weights, saved between evaluations": {
        "optimizer": "schedule_free_adamw",
        "lr_scheduler": "constant",
        "eval_strategy": "epoch",
    },
    "average of an adapter's weights": {**LORA, "optimizer": "schedule_free_adamw", "lr_scheduler": "constant"},
    # -- preferences
    "DPO": {"data": "pairs", "rl": "dpo", "sample_packing": False, "num_epochs": 2.0, "logging_steps": 2},
    "DPO with LoRA": {
        "data": "pairs",
        "rl": "dpo",
        "sample_packing": False,
        **LORA,
        "lora_dropout": 0.1,
        "eval_strategy": "epoch",
    },
    "DPO, pairs of a micro-batch together": {
        **DPO,
        "micro_batch_size": 2,
        "num_epochs": 3.0,
        "dpo_loss_type": ("sft", "aot"),
        "logging_steps": 2,
        "dataloader_num_workers": 1,
    },
    "DPO, reference computed before": {
        "data": "pairs",
        "rl": "dpo",
        "sample_packing": False,
        "precompute_ref_log_probs": True,
    },
}

OPTIMIZER_KEYS: dict[str, dict[str, Any]] = {
    "lomo": {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0},
    **{f"schedule_free_{kind}": {"lr_scheduler": "constant"} for kind in ("adamw", "radam", "sgd")},
}
"""What an optimizer needs beside its name."""

SCHEDULER_KEYS: dict[str, dict[str, Any]] = {
    "cosine_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "cosine_warmup_with_min_lr": {"lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
    "warmup_stable_decay": {"lr_scheduler_kwargs": {"num_decay_steps": 4}},
    "reduce_lr_on_plateau": {**EVALS, "lr_scheduler_kwargs": {"patience": 0}, "learning_rate": 0.1},
    "greedy": {**EVALS, "lr_scheduler_kwargs": {"patience": 0}, "learning_rate": 0.1},
}
"""What a scheduler needs beside its name."""

SHARE = (
    "packed",
    "mixed by weights",
    "stochastic rounding",
    "LoRA with modules in full",
    "QLoRA",
    "gated experts",
    "ReLoRA, pruned at random",
    "best LoRA at the end",
    "average of the weights, saved between evaluations",
    "DPO with LoRA",
)
"""The cases of `make test`."""
