"""Keys of Axolotl that are not keys of ours, each with what to write instead.

Four kinds: another spelling of a key of ours; a key that changes nothing here (a warning says why); a key that is
refused, because what it asks for is not built; a key that was never the user's to write. A refused key that is
written as off (empty, false, or Axolotl's own default) passes, for it asks for nothing.
"""

from __future__ import annotations

from typing import Any

ALIASES: dict[str, str] = {
    "model_config": "overrides_of_model_config",
    "model_kwargs": "overrides_of_model_kwargs",
    "model_revision": "revision_of_model",
    "type_of_model": "model_type",
    "default_system_prompt": "default_system_message",
    "pretraining_dataset": "datasets",  # as a stream, see `whet.config.keys`
}
"""Other spellings that are as good."""

RENAMED: dict[str, str] = {
    "noisy_embedding_alpha": "neftune_noise_alpha",
    "dpo_beta": "rl_beta",
    "evaluation_strategy": "eval_strategy",
    "dataset_processes": "dataset_num_proc",
    "pretrain_multipack_buffer_size": "streaming_multipack_buffer_size",
    "liger_swiglu": "liger_glu_activation",
}
"""Old spellings: accepted, with a warning."""

ELSEWHERE: dict[str, str] = {
    "model": "base_model",
    "model_name": "base_model",
    "model_name_or_path": "base_model",
    "dataset": "datasets",
    "data": "datasets",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "lr": "learning_rate",
    "lr_scheduler_type": "lr_scheduler",
    "optim": "optimizer",
    "per_device_train_batch_size": "micro_batch_size",
    "per_device_eval_batch_size": "eval_batch_size",
    "max_length": "sequence_len",
    "max_seq_length": "sequence_len",
    "cutoff_len": "sequence_len",
    "packing": "sample_packing",
    "template": "chat_template",
    "lora_rank": "lora_r",
    "target_modules": "lora_target_modules",
    "lora_target": "lora_target_modules",
    "preprocessing_num_workers": "dataset_num_proc",
    "use_dora": "peft_use_dora",
    "use_rslora": "peft_use_rslora",
    "pref_beta": "rl_beta",
    "pref_loss": "dpo_loss_type",
    "val_size": "val_set_size",
    "adapter_name_or_path": "lora_model_dir",
    **dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "special_tokens"),
}
"""What other trainers (transformers, TRL, LLaMA-Factory) call a key of ours; never accepted, only understood."""

ELSEWHERE_OTHERWISE: dict[str, str] = {
    "report_to": "write use_wandb, use_mlflow or use_tensorboard: true; metrics.jsonl is always written",
    "stage": "leave it out for supervised fine-tuning; write rl: dpo for preferences, type: completion for raw text",
    "finetuning_type": "write adapter: lora, or leave adapter out to train every weight",
    "use_peft": "write adapter: lora",
    "quantization_bit": "write load_in_4bit: true or load_in_8bit: true",
    "flash_attn": "leave it out, or write attn_implementation: flash_attention_2",
    "dataset_dir": "write the folder into the path of a row of `datasets`",
    "max_samples": "write `split: train[:1000]` in a row of `datasets`",
    **dict.fromkeys(("do_train", "do_eval"), "remove the line: `whet train` and `whet evaluate` are commands"),
    "overwrite_output_dir": "remove the line: earlier checkpoints in output_dir are set aside, never overwritten",
    "overwrite_cache": "remove the line: data is prepared anew when it has changed (`whet preprocess --refresh`)",
    "plot_loss": "remove the line: the losses are in metrics.jsonl (use_tensorboard: true draws them)",
}
"""Keys of other trainers that no single key of ours stands for -> what to write instead."""

ATTENTION_SWITCHES: dict[str, str] = {
    "flash_attention": "flash_attention_2",
    "sdp_attention": "sdpa",
    "flex_attention": "flex_attention",
    "eager_attention": "eager",
    "xformers_attention": "xformers",
    "sage_attention": "sage",
}
"""Old switches -> the value of attn_implementation that each stands for."""


def _table(groups: dict[str, str]) -> dict[str, str]:
    return {key: advice for advice, keys in groups.items() for key in keys.split()}


REFUSED: dict[str, str] = _table(
    {
        # models
        "multimodal training is not built: train the text alone": """
            processor_type processor_kwargs image_size image_resize_algorithm role_boundaries freeze_mm_modules""",
        "remove the line: numbers are the same without it, only speed and memory differ": """
            liger_rms_norm_gated
            use_dsv4_kernels use_glm_dsa_kernels dsv4_fp8_lora_kernel dsv4_shared_mlp_lora_kernel""",
        "write load_in_4bit or load_in_8bit": "nonexpert_quantization",
        "write fp8: true alone: nothing is sharded here": "fp8_enable_fsdp_float8_all_gather",
        "write bf16, fp16, bfloat16 or float32": """
            dsv4_fp8_nonexpert_mode dsv4_bf16_all
            dsv4_fp4_grouped_mode gemma4_fp8_nonexpert gemma4_nf4_nonexpert nvfp4_merge_aware
            nvfp4_merge_aware_start_step""",
        "name the experts' weights: lora_target_parameters: [feed_forward.experts.gate_up_proj, "
        "feed_forward.experts.down_proj]": "llama4_linearized_experts",
        "a token goes to the experts its router chose, as in the base model's training: remove the line": "dense_mixer",
        "write load_in_4bit: true, which leaves the experts' weights as they are": "quantize_moe_experts",
        "1-bit models are not built: train with adapter: lora": "use_onebitllms",
        "write max_memory: {0: 20GiB}": "gpu_memory_limit",
        "remove the line: nothing here needs it": """
            trainer_cls accelerator_config peft_ensure_weight_tying
            base_model_ignore_patterns test_value auto_find_batch_size""",
        "write overrides_of_model_config: {rope_parameters: ...}": "rope_scaling",
        "remove the line: no program that serves models computes it, so the trained model would be another there": """
            scaling_softmax scaling_softmax_factor scaling_softmax_bias""",
        "remove the line: rows of sequence_len tokens are attended to in full": "s2_attention",
        "remove the line: transformers compiles flex_attention with arguments of its own": "flex_attn_compile_kwargs",
        # tokenizer
        "use the tokenizer.json of the model": "tokenizer_use_mistral_common",
        "name the ids in peft_trainable_token_indices": "fix_untrained_tokens",
        # adapters
        "write adapter: lora with lora_r": """
            mora peft_layer_replication""",
        "write peft_init_lora_weights: gaussian": "peft",
        "load on one device: device_map: cpu": "lora_on_cpu qlora_sharded_model_loading",
        "write quantization: {weight_dtype: int8} and run `whet quantize` after training": "llmcompressor",
        # data
        "write sample_packing: true, which fills rows and keeps documents apart": "pretraining_sample_concatenation",
        "remove the line: documents of a pack never see each other": "pretrain_multipack_attn",
        "prepare with `whet preprocess` and copy the folder of dataset_prepared_path": """
            push_dataset_to_hub skip_prepare_dataset""",
        "write sample_packing: true, which leaves no padding at all": "group_by_length",
        "write sample_packing: true and set sequence_len": """
            max_packed_sequence_len sample_packing_seq_len_multiplier""",
        "remove the line: the last batch is always used, and counted right": "dataloader_drop_last",
        "PoSE is not built: set sequence_len": """
            use_pose pose_split_on_token_ids pose_max_context_len pose_num_chunks""",
        # loop
        "profile with torch.profiler around `whet train`": "profiler_steps profiler_steps_start",
        "write learning_rate and lr_scheduler: cosine": "lr_div_factor",
        # optimizers
        "Q-GaLore is not built: write optimizer: galore_adamw_8bit": """
            qgalore_rank qgalore_update_proj_gap qgalore_scale qgalore_proj_type
            qgalore_proj_quant qgalore_proj_bits qgalore_proj_group_size qgalore_cos_threshold qgalore_gamma_proj
            qgalore_queue_size""",
        "adamw_anyprecision is not built: write optimizer: optimi_adamw": "torchdistx_path",
        # losses
        "learning from another model's probabilities, or by diffusion, is not built: remove the line": """
            diffusion kd_trainer kd_ce_alpha kd_alpha kd_temperature kd_beta
            kd_normalize_topk kd_online_server_base_url kd_online_topk kd_online_server kd_online_timeout
            kd_temperature_min""",
        # distributed
        "several processes train with DDP: whet train --launcher torchrun": """
            ddp dp_shard_size dp_replicate_size tensor_parallel_size context_parallel_size sequence_parallel_degree
            heads_k_stride ring_attn_func deepcompile use_ray ray_run_name ray_num_workers resources_per_worker
            expert_parallel_size expert_parallel_backend expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes
            expert_parallel_token_capacity expert_parallel_fallback_on_unsupported""",
        "write fsdp_config: {final_state_dict_type: ...}": "fsdp_final_state_dict_type",
        # preference and reinforcement learning
        "write rl: dpo with prompt, chosen and rejected rows": """
            center_rewards_coefficient num_labels orpo_alpha simpo_gamma cpo_alpha
            kto_desirable_weight kto_undesirable_weight trl vllm ebft rl_adapter_ref_model hatchery nemo_gym_enabled
            nemo_gym_dir nemo_gym_auto_clone nemo_gym_config_paths nemo_gym_head_port nemo_gym_server_timeout
            nemo_gym_verify_timeout nemo_gym_run_timeout nemo_gym_datasets nemo_gym_auto_start nemo_gym_model_name
            nemo_gym_multi_turn nemo_gym_max_turns""",
        "write dpo_loss_type and dpo_loss_weights": "dpo_use_weighting dpo_norm_loss rpo_alpha",
        "remove the line: the DPO loss of TRL decides it": """
            dpo_use_liger_kernel dpo_padding_free dpo_use_logits_to_keep dpo_generate_during_eval""",
        # tracking
        "write use_wandb, use_mlflow or use_tensorboard": """
            use_comet comet_api_key comet_workspace comet_project_name comet_experiment_key comet_mode comet_online
            comet_experiment_config use_trackio trackio_project_name trackio_run_name trackio_space_id use_swanlab
            swanlab_project swanlab_experiment_name swanlab_description swanlab_mode swanlab_workspace swanlab_api_key
            swanlab_log_model swanlab_web_host swanlab_api_host swanlab_lark_webhook_url swanlab_lark_secret
            swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer use_otel_metrics
            otel_metrics_host otel_metrics_port""",
        # evaluation
        "write score_dataset, an exact score before and after training": """
            do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split lm_eval_tasks
            lm_eval_batch_size lm_eval_post_train lm_eval_model""",
        "talk to the model with `whet inference`": """
            generate_samples num_generation_samples generation_max_new_tokens generation_temperature generation_top_p
            generation_top_k generation_prompt_ratio generation_do_sample eval_max_new_tokens gradio_title
            gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature""",
        # written in files although Axolotl drops them
        "write cosine_min_lr_ratio, the floor as a share of learning_rate": "eta_min",
        "write adam_epsilon": "adam_eps",
        "leave adapter empty to train every weight": "full_finetune",
        "run `whet preprocess --debug` to see the tokens and their labels": "debug",
    }
)
"""Keys that ask for what is not built -> what to do."""

READ_BY_TRAINING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("trl", "vllm"), ("rl: grpo", "rl: gdpo", "rl: ebft")),
    "ebft": ("rl: ebft",),
    **dict.fromkeys(("kto_desirable_weight", "kto_undesirable_weight"), ("rl: kto",)),
    "orpo_alpha": ("rl: orpo",),
    **dict.fromkeys(("simpo_gamma", "cpo_alpha"), ("rl: simpo",)),
    "center_rewards_coefficient": ("reward_model: true",),
    "num_labels": ("reward_model: true", "process_reward_model: true"),
}
"""Refused keys that belong to the training of a method whose data can be prepared: with that method they are no
reason to refuse the preparation, for training is refused as a whole."""

NO_EFFECT: dict[str, str] = _table(
    {
        "the model's config.json says how it is stored": "gptq_groupsize gptq_model_v1 gptq_disable_exllama",
        "rows come from a memory-mapped file, which needs no setting": """
            dataset_keep_in_memory num_dataset_shards_to_save low_cpu_mem_usage preprocess_iterable""",
        "packs are planned over all rows at once, which needs no hint": """
            sample_packing_group_size sample_packing_bin_size sample_packing_eff_est
            sample_packing_mp_start_method""",
        "a batch is one flat row here, packed or not": "multipack_real_batches batch_flattening",
        "the prepared set holds nothing that training does not read": "remove_unused_columns",
        "tokens per second are always shown": "include_tokens_per_second include_tkps",
        "a key that nobody knows is always an error": "strict",
        "the template is always written beside the tokenizer": "tokenizer_save_jinja_files",
        "the token of `hf auth login` or HF_TOKEN is always used": "hf_use_auth_token",
        "the model goes to its device when it is loaded": "experimental_skip_move_to_device",
        "there is no table of predictions; `whet inference` talks to the model": "eval_table_size",
        "only sequence_len limits a prompt": "max_prompt_len",
        "PyTorch's own layer normalisation is fused already": "liger_layer_norm",
        "an adapted embedding looks rows up, which leaves little to fuse": "lora_embedding_kernel",
        "experts are read one at a time, which needs no chunks": "moe_dequant_chunk_size moe_bnb_fast",
        "tiled_mlp always computes the model's own MLP": "tiled_mlp_use_original_mlp",
        "there is one way to merge, and it gives the same weights": "merge_method",
        "packed rows go through the variable-length kernel wherever it runs": "sdpa_varlen",
        "each layer takes the kernel that suits the width of its heads": """
            large_head_attention flash_attn_d512 gemma4_hybrid_attn_impl""",
        "fused kernels are put in by themselves where they apply, and kernels of the hub are not": """
            use_kernels flash_attn_fuse_mlp flash_attn_rms_norm fused_attn_kernel""",
        "PyTorch has the fused attention of BetterTransformer inside, which is gone": "flash_optimum",
    }
)
"""Keys whose purpose is met without them -> why; a warning says so."""

INTERNAL: frozenset[str] = frozenset(
    {
        "axolotl_config_path",
        "device",
        "is_falcon_derived_model",
        "is_llama_derived_model",
        "is_mistral_derived_model",
        "is_preprocess",
        "is_qwen_derived_model",
        "local_rank",
        "merge_lora",
        "total_num_tokens",
        "total_supervised_tokens",
        "world_size",
    }
)
"""Keys that a program fills in; a config does not."""

OFF: dict[str, Any] = {
    "pretrain_multipack_attn": True,
    "profiler_steps_start": 0,
    "qgalore_rank": 256,
    "qgalore_update_proj_gap": 200,
    "qgalore_scale": 0.25,
    "qgalore_proj_type": "std",
    "qgalore_proj_quant": True,
    "qgalore_proj_bits": 4,
    "qgalore_proj_group_size": 256,
    "qgalore_cos_threshold": 0.4,
    "qgalore_gamma_proj": 2,
    "qgalore_queue_size": 5,
    "ray_num_workers": 1,
    "resources_per_worker": {"GPU": 1},
    "otel_metrics_host": "localhost",
    "otel_metrics_port": 8000,
    "num_generation_samples": 3,
    "generation_max_new_tokens": 50,
    "generation_temperature": 0.7,
    "generation_prompt_ratio": 0.5,
    "generation_do_sample": True,
    "tiled_mlp_use_original_mlp": True,
    "expert_parallel_size": 1,
    "tensor_parallel_size": 1,
    "context_parallel_size": 1,
    "sequence_parallel_degree": 1,
    "dp_shard_size": 1,
    "dp_replicate_size": 1,
    "sample_packing_group_size": 100000,
    "sample_packing_bin_size": 200,
    "include_tkps": True,
    "merge_method": "memory_efficient",
    "tokenizer_save_jinja_files": True,
    "experimental_skip_move_to_device": True,
}
"""Values, beside empty and false, at which a key asks for nothing: Axolotl's own defaults."""

ROW_REFUSED: dict[str, str] = _table(
    {
        "knowledge distillation is not built: remove the line": "logprobs_field temperature",
        "datasets no longer runs code of the hub: name its Parquet files in data_files": "trust_remote_code",
        "write `type:` and put the line below it, indented": """
            field_instruction field_input field_output format no_input_format system_format system_prompt
            field_prompt field_completion field_label prompt_format chosen_format rejected_format
            completion_format""",
    }
)
"""Keys of a dataset's row that ask for what is not built."""

ROW_NO_EFFECT: dict[str, str] = _table(
    {
        "it was never read": "input_format field_human field_model",
        "rows are prepared in chunks of a few megabytes, whatever the size of the dataset": "preprocess_shards",
    }
)


def asks_for_nothing(key: str, value: Any) -> bool:
    """Whether a key that is not ours is written as off.

    >>> asks_for_nothing("fp8", False), asks_for_nothing("qgalore_rank", 256), asks_for_nothing("qgalore_rank", 8)
    (True, True, False)
    """
    return value is None or value is False or value in ("", [], {}) or (key in OFF and value == OFF[key])


def every_name() -> set[str]:
    """Every top-level name that is known and is not a key of ours."""
    return {*ALIASES, *RENAMED, *ATTENTION_SWITCHES, *REFUSED, *NO_EFFECT, *INTERNAL}
