"""What becomes of a run that is resumed with another value of a key: each key has one answer.

A resumed run is the same run. So what would make it another one is refused unless the user names it (`allow_change`),
and what the checkpoint's own content decides cannot change at all. A key without an answer here is refused like one
that changes the run; a test fails until it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache


class Effect(Enum):
    """What another value does to the rest of a run."""

    NONE = "nothing: it decides what is shown, kept or where, not what is computed"
    ROUNDING = "nothing but the last digits: the same sums in another order"
    BATCH = "nothing while the rows of a step stay the same"
    DATA = "whatever it does to the samples: the prepared data is compared instead"
    TOKENIZER = "whatever it does to the tokenizer, which is compared instead"
    TEMPLATE = "whatever it does to the chat template, which is compared instead"
    BASE = "whatever it does to the base model, whose weights are compared instead"
    ADAPTER = "whatever it does to the adapter the run begins with, whose files are compared instead"
    PRECISION = "whatever it does to the numbers the run computes in, which are compared instead"
    CHANGES = "the run is another one from here on"
    FIXED = "the checkpoint cannot be gone on from"


@dataclass(frozen=True, slots=True)
class KeyEffect:
    """The answer for a key; ``why`` says for a fixed one what in the checkpoint stands against it."""

    effect: Effect
    why: str = ""


def effect_of(key: str) -> KeyEffect:
    """The answer for a key, as it stands in the table; an unknown one is taken to change the run.

    Args:
        key: top-level, or dotted inside the rows of `datasets`.
    """
    head, _, rest = key.partition(".")
    if head in ("datasets", "test_datasets") and rest.rpartition(".")[2] in ("weight", "epochs"):
        return KeyEffect(Effect.CHANGES)  # how often rows are shown, not what they are
    return _table().get(head, KeyEffect(Effect.CHANGES))


def classified() -> Iterator[str]:
    """Every key that has an answer, as often as it has one."""
    for _, _, keys in _ANSWERS:
        yield from keys.split()


@cache
def _table() -> dict[str, KeyEffect]:
    return {key: KeyEffect(effect, why) for effect, why, keys in _ANSWERS for key in keys.split()}


_ANSWERS: tuple[tuple[Effect, str, str], ...] = (
    (
        Effect.NONE,
        "",
        """
        output_dir hub_model_id hub_strategy hub_revision save_safetensors merge_adapters quantization parity
        use_wandb wandb_project wandb_name wandb_entity wandb_run_id wandb_mode wandb_watch wandb_log_model
        use_mlflow mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts use_tensorboard
        logging_steps eval_steps evals_per_epoch eval_strategy eval_on_start eval_batch_size eval_sequence_len
        eval_sample_packing
        save_steps saves_per_epoch save_strategy save_total_limit save_first_step save_only_model save_wait_minutes
        dynamic_checkpoint rehearse_saving
        resume_from_checkpoint auto_resume_from_checkpoints allow_change allow_other_base
        score_dataset score_max_new_tokens score_max_rows
        dataset_prepared_path dataset_num_proc prepare_with dataloader_num_workers dataloader_prefetch_factor
        dataloader_pin_memory on_bad_row
        trust_remote_code spectrum_model_name ddp_timeout torch_empty_cache_steps gc_collect_steps gc_steps
        loss_watchdog_threshold loss_watchdog_patience plugins
        """,
    ),
    (
        Effect.ROUNDING,
        "",
        """
        device_map max_memory attn_implementation liger_rms_norm liger_rope liger_glu_activation
        lora_qkv_kernel lora_mlp_kernel lora_o_kernel
        experts_implementation expert_backend use_scattermoe use_sonicmoe moe_grouped_backend
        chunked_cross_entropy chunked_cross_entropy_num_chunks cut_cross_entropy liger_fused_linear_cross_entropy
        liger_cross_entropy flash_attn_cross_entropy flash_attn_cross_entropy_loss
        gradient_checkpointing gradient_checkpointing_every gradient_checkpointing_kwargs selective_checkpointing
        activation_offloading layer_offloading tiled_mlp tiled_mlp_num_shards
        torch_compile torch_compile_backend torch_compile_mode torch_compile_options
        ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters
        pad_to_sequence_len pad_to_multiple_of relora_cpu_offload precompute_ref_log_probs
        """,
    ),
    (Effect.BATCH, "", "micro_batch_size gradient_accumulation_steps batch_size"),
    (
        Effect.DATA,
        "",
        """
        datasets test_datasets val_set_size val_set_from shuffle_before_merging_datasets dataset_exact_deduplication
        dataset_near_deduplication dataset_shard_num dataset_shard_idx eval_overlap sequence_len
        excess_length_strategy min_sample_len train_on_inputs
        chat_template_kwargs eot_tokens default_system_message
        """,
    ),
    (
        Effect.TOKENIZER,
        "",
        """
        tokenizer_config tokenizer_type tokenizer_use_fast tokenizer_legacy special_tokens tokens
        added_tokens_overrides
        """,
    ),
    (Effect.TEMPLATE, "", "chat_template chat_template_jinja"),
    (Effect.BASE, "", "base_model revision_of_model"),
    (Effect.ADAPTER, "the checkpoint holds other weights", "lora_model_dir"),
    (Effect.PRECISION, "", "bf16 fp16 bfloat16 float16 float32 torch_dtype tf32"),
    (
        Effect.CHANGES,
        "",
        """
        num_epochs max_steps seed max_grad_norm neftune_noise_alpha
        learning_rate weight_decay optim_args adam_beta1 adam_beta2 adam_beta3 adam_epsilon adam_epsilon2
        dion_lr dion_momentum grokfast_alpha grokfast_lamb
        lr_scheduler_kwargs warmup_steps warmup_ratio cosine_min_lr_ratio cosine_constant_lr_ratio lr_quadratic_warmup
        jagged_restart_warmup_steps jagged_restart_anneal_steps
        load_best_model_at_end metric_for_best_model greater_is_better early_stopping_patience
        shuffle_merged_datasets curriculum_sampling order mixing_by mixing_temperature phases
        sample_packing sample_packing_sequentially sample_packing_balance
        label_smoothing z_loss_coefficient use_dft use_eaft eaft_alpha eaft_k liger_use_token_scaling
        lora_alpha lora_dropout lora_alpha_pattern lora_fan_in_fan_out peft_use_rslora
        loraplus_lr_ratio loraplus_lr_embedding embedding_lr embedding_lr_scale
        relora_prune_ratio relora_prune_method
        load_in_8bit load_in_4bit bnb_4bit_quant_type bnb_4bit_compute_dtype bnb_4bit_use_double_quant
        bnb_4bit_quant_storage llm_int8_threshold embeddings_skip_upcast gptq model_quantization_config
        model_quantization_config_kwargs bnb_config_kwargs qat fp8 fp32_norms fp32_norm_classes stochastic_rounding
        base_model_config overrides_of_model_config overrides_of_model_kwargs lisa_step_interval
        rl_beta dpo_label_smoothing dpo_loss_type dpo_loss_weights
        """,
    ),
    (
        Effect.FIXED,
        "the state in the checkpoint is that of another optimizer",
        """
        optimizer optim_target_modules dion_rank_fraction dion_rank_multiple_of optimizer_in_backward lr_groups
        """,
    ),
    (Effect.FIXED, "the state in the checkpoint is that of another schedule", "lr_scheduler jagged_restart_steps"),
    (
        Effect.FIXED,
        "the checkpoint holds other weights",
        """
        adapter lora_r lora_target_modules lora_target_linear lora_target_parameters lora_modules_to_save
        lora_exclude_modules lora_rank_pattern peft_use_dora peft_init_lora_weights peft_layers_to_transform
        peft_layers_pattern peft_trainable_token_indices peft_autocast_adapter_dtype relora
        unfrozen_parameters spectrum_top_fraction lisa_n_layers lisa_layers_attribute
        resize_token_embeddings_to_32x mean_resizing_embeddings shrink_embeddings model_type cls_model_config
        reinit_weights
        """,
    ),
    (
        Effect.FIXED,
        "the checkpoint is of another method of training",
        "rl reward_model process_reward_model",
    ),
    (
        Effect.FIXED,
        "the checkpoint keeps its place in the data in another way",
        "streaming streaming_multipack_buffer_size",
    ),
    (
        Effect.FIXED,
        "the state in the checkpoint is cut into other shards",
        "fsdp fsdp_version fsdp_config deepspeed",
    ),
)
