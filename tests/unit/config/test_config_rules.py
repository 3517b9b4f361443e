"""Each rule has a config that breaks it, and nothing else is said about that config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from whet.config import Config, check_runnable, make_config
from whet.config.rules import REMARKS, RULES, check_trainable
from whet.config.rules.machine import RUN_RULES
from whet.core.errors import ConfigError
from whet.core.types import Hardware

BASE: dict[str, Any] = {
    "base_model": "org/m",
    "learning_rate": 1e-4,
    "datasets": [{"path": "org/d", "type": "chat_template"}],
}
LORA = {"adapter": "lora", "lora_target_linear": True}
RELORA: dict[str, Any] = {**LORA, "relora": True, "jagged_restart_steps": 100}
DPO = {"rl": "dpo", "datasets": [{"path": "org/d"}]}
ROW = {"path": "org/d", "type": "chat_template"}
STREAM = {"streaming": True, "max_steps": 10}

BROKEN: list[tuple[str, Mapping[str, Any], str]] = [
    (
        "kernels_of_the_hub_need_trust",
        {"attn_implementation": "kernels-community/vllm-flash-attn3"},
        "'kernels-community/vllm-flash-attn3' is code that is fetched from the hub and run -> write trust_remote_code",
    ),
    (
        "names_that_become_files_are_plain",
        {"hub_model_id": "../../etc/passwd"},
        "hub_model_id: '../../etc/passwd' is no name: it becomes part of a path",
    ),
    (
        "names_that_become_files_are_plain",
        {"hub_model_id": "org/model", "hub_revision": "../main"},
        "hub_revision: '../main' is no name of a branch",
    ),
    (
        "model_arguments_have_no_key_of_their_own",
        {"overrides_of_model_kwargs": {"trust_remote_code": True}},
        "'trust_remote_code' is an argument that whet gives -> write trust_remote_code instead",
    ),
    (
        "model_arguments_have_no_key_of_their_own",
        {"overrides_of_model_kwargs": {"weights_only": False}},
        "'weights_only' lets files of others run code, which whet never asks for -> remove it",
    ),
    (
        "weights_have_one_type",
        {"bfloat16": True, "torch_dtype": "float32"},
        "torch_dtype is float32, and bfloat16 is true -> remove one of the two",
    ),
    (
        "weights_have_one_type",
        {"fp16": True, "torch_dtype": "float16"},
        "fp16 scales the gradients of float32 weights alone -> remove the line",
    ),
    ("products_in_8_bits_train_full_weights", {"fp8": True, **LORA}, "fp8 is true, and with an adapter the products"),
    (
        "products_in_8_bits_train_full_weights",
        {"fp8": True, "qat": {"weight_dtype": "int8"}},
        "qat is written, and so is fp8",
    ),
    ("norm_classes_need_fp32_norms", {"fp32_norm_classes": ["RMSNorm"]}, "fp32_norms is not -> add `fp32_norms: true`"),
    (
        "eight_bit_options_need_8bit",
        {"llm_int8_threshold": 4.0},
        "llm_int8_threshold is written, and load_in_8bit is not -> add",
    ),
    (
        "embeddings_are_upcast_beside_few_bits",
        {"embeddings_skip_upcast": True},
        "embeddings_skip_upcast changes nothing",
    ),
    (
        "a_base_is_quantised_once",
        {"model_quantization_config_kwargs": {"dequantize": True}},
        "and model_quantization_config is not -> add",
    ),
    (
        "a_base_is_quantised_once",
        {"model_quantization_config": "Mxfp4Config", "load_in_4bit": True, **LORA},
        "model_quantization_config is written, and load_in_4bit is true -> keep one",
    ),
    (
        "a_base_is_quantised_once",
        {"model_quantization_config": "FineGrainedFP8Config"},
        "quantised weights cannot be trained -> add `model_quantization_config_kwargs: {dequantize: true}`",
    ),
    (
        "weights_and_activations_go_together",
        {"quantization": {"weight_dtype": "int8", "activation_dtype": "fp8"}},
        "quantization: activation_dtype fp8 does not go with weight_dtype int8 -> write none or activation_dtype: int8",
    ),
    (
        "weights_and_activations_go_together",
        {"qat": {"weight_dtype": "mxfp4"}},
        "qat: weight_dtype mxfp4 needs an activation_dtype -> write activation_dtype: mxfp4",
    ),
    (
        "the_group_fits_the_format",
        {"quantization": {"weight_dtype": "nvfp4", "group_size": 32}},
        "group_size is 32, and nvfp4 has one scale for 16 weights -> write group_size: 16",
    ),
    (
        "groups_are_of_integers",
        {"quantization": {"weight_dtype": "float8", "group_size": 32}},
        "group_size is 32, and fp8 weights have one scale for a row -> leave group_size out",
    ),
    (
        "embeddings_are_integers",
        {"quantization": {"weight_dtype": "fp8", "quantize_embedding": True}},
        "there is no fp8 embedding -> write weight_dtype: int8 or int4",
    ),
    (
        "what_is_trained_for_is_what_is_written",
        {"qat": {"weight_dtype": "int4"}, "quantization": {"weight_dtype": "int8"}},
        "quantization: weight_dtype is int8, and the model is trained for int4 (qat) -> leave",
    ),
    (
        "rounding_is_trained_into_full_weights",
        {**LORA, "qat": {"weight_dtype": "int8"}},
        "qat rounds the weights that are written, which with an adapter exist only after the merge -> remove adapter",
    ),
    (
        "rounding_is_trained_into_full_weights",
        {**DPO, "qat": {"weight_dtype": "int8"}},
        "qat is built for supervised fine-tuning, and rl is dpo -> remove qat",
    ),
    ("there_is_something_to_train_on", {"datasets": []}, "datasets is missing -> add `datasets:`"),
    (
        "evaluation_rows_come_from_one_place",
        {"val_set_size": 0.1, "test_datasets": [{"path": "org/t", "type": "chat_template"}]},
        "val_set_size and test_datasets are both written",
    ),
    ("val_set_size_is_a_share_or_a_count", {"val_set_size": 1}, "val_set_size is 1 -> write a share below 1"),
    ("val_set_size_is_a_share_or_a_count", {"val_set_size": 2.5}, "val_set_size is 2.5 -> write a share below 1"),
    (
        "a_part_of_the_rows_has_a_number",
        {"dataset_shard_num": 3},
        "dataset_shard_num is written, and dataset_shard_idx",
    ),
    (
        "a_part_of_the_rows_has_a_number",
        {"dataset_shard_idx": 3},
        "and dataset_shard_num is not -> add dataset_shard_num",
    ),
    (
        "a_part_of_the_rows_has_a_number",
        {"dataset_shard_num": 3, "dataset_shard_idx": 3},
        "dataset_shard_idx 3 is no part of 3 -> write a number from 0 to 2",
    ),
    ("min_sample_fits_the_sequence", {"min_sample_len": 600}, "min_sample_len 600 is above sequence_len 512"),
    (
        "padding_fits_the_sequence",
        {"pad_to_sequence_len": True, "pad_to_multiple_of": 100},
        "pads to 512, which is no multiple of pad_to_multiple_of 100",
    ),
    ("workers_before_prefetching", {"dataloader_prefetch_factor": 2}, "no worker builds batches -> add"),
    ("a_stream_ends_after_max_steps", {"streaming": True}, "max_steps is not written: a stream has no length"),
    ("a_stream_has_no_epochs", {**STREAM, "num_epochs": 2}, "num_epochs is written, and a stream"),
    ("a_stream_has_no_epochs", {**STREAM, "saves_per_epoch": 2}, "no epochs to count -> write save_steps"),
    (
        "a_stream_has_no_epochs",
        {**STREAM, "num_epochs": 2, "evals_per_epoch": 1},
        "num_epochs and evals_per_epoch are written, and a stream (streaming: true) has no epochs to count -> "
        "write max_steps alone, write eval_steps",
    ),
    (
        "a_stream_is_saved_and_evaluated_by_steps",
        {**STREAM, "save_strategy": "epoch"},
        "save_strategy is epoch, and a stream (streaming: true) has no epochs -> write save_steps",
    ),
    (
        "a_stream_is_evaluated_on_rows_of_its_own",
        {**STREAM, "val_set_size": 0.1},
        "nobody knows how many a stream (streaming: true) has -> write test_datasets",
    ),
    (
        "a_stream_is_never_seen_whole",
        {**STREAM, "dataset_exact_deduplication": True},
        "dataset_exact_deduplication needs all rows at once",
    ),
    ("a_stream_is_never_seen_whole", {**STREAM, "mixing_temperature": 2}, "mixing_temperature needs all rows at once"),
    (
        "a_stream_is_never_seen_whole",
        {**STREAM, "eval_overlap": "drop", "test_datasets": [ROW]},
        "eval_overlap: drop needs all rows at once, and a stream never has them",
    ),
    (
        "a_stream_is_mixed_by_weights",
        {**STREAM, "datasets": [{**ROW, "epochs": 2}]},
        "datasets[0].epochs: a stream (streaming: true) has no epochs to count -> write a weight in every row",
    ),
    (
        "a_stream_is_mixed_by_weights",
        {**STREAM, "datasets": [{**ROW, "weight": 2}], "order": "sequential"},
        "order: sequential reads each dataset of a stream to its end, and weights mix them",
    ),
    (
        "a_stream_is_for_supervised_training",
        {**STREAM, **DPO},
        "streaming is true, and rl: dpo needs all its rows before the first step -> remove streaming",
    ),
    (
        "a_stream_is_for_supervised_training",
        {**STREAM, "reward_model": True, "datasets": [{"path": "org/d"}]},
        "streaming is true, and reward_model: true needs all its rows",
    ),
    (
        "the_mix_is_described_once",
        {"mixing_temperature": 2, "datasets": [{**ROW, "weight": 1}]},
        "mixing_temperature is written, and so is datasets[0].weight -> keep one of them",
    ),
    ("the_mix_is_described_once", {"datasets": [{**ROW, "weight": 1, "epochs": 2}]}, "datasets[0].epochs is written"),
    (
        "every_dataset_has_a_weight",
        {"datasets": [{**ROW, "weight": 1}, ROW]},
        "datasets[1] has no weight, and others have -> write a weight in every row, or in none",
    ),
    (
        "evaluation_is_not_mixed",
        {"test_datasets": [{**ROW, "epochs": 2}]},
        "test_datasets[0].epochs is written, and an evaluation sees each row once",
    ),
    (
        "shuffling_is_asked_for_once",
        {"curriculum_sampling": True, "shuffle_merged_datasets": True},
        "curriculum_sampling is true, and so is shuffle_merged_datasets",
    ),
    (
        "a_mix_is_shuffled",
        {"curriculum_sampling": True, "mixing_temperature": 2},
        "mixing_temperature is written, and curriculum_sampling: true keeps the order of the files",
    ),
    (
        "a_mix_is_shuffled",
        {"shuffle_merged_datasets": False, "datasets": [{**ROW, "epochs": 2}]},
        "datasets[0].epochs is written, and shuffle_merged_datasets: false keeps the order of the files",
    ),
    (
        "phases_fill_the_epoch",
        {"phases": [{"share": 0.3, "weights": {"d": 1}}, {"share": 0.6, "weights": {"d": 1}}]},
        "the shares of phases add up to 0.9 -> let them add up to 1",
    ),
    (
        "phases_name_datasets",
        {"datasets": [{**ROW, "path": "org/code"}], "phases": [{"share": 1, "weights": {"cod": 1}}]},
        "phases[0].weights: there is no dataset 'cod' -> did you mean 'code'?",
    ),
    (
        "phases_name_datasets",
        {"phases": [{"share": 1, "weights": {"org/d": 0}}]},
        "phases[0].weights: every weight is 0",
    ),
    (
        "phases_say_the_order",
        {"order": "sequential", "phases": [{"share": 1, "weights": {"org/d": 1}}]},
        "order is sequential, and phases say what comes after what",
    ),
    (
        "supervised_runs_are_mixed",
        {"rl": "dpo", "datasets": [{"path": "org/d", "weight": 1}]},
        "datasets[0].weight is written, and rl: dpo sees each row once, shuffled -> remove the line",
    ),
    ("supervised_runs_are_mixed", {**DPO, "order": "sequential"}, "order is written, and rl: dpo sees each row once"),
    (
        "ways_of_packing_need_packing",
        {"sample_packing_balance": True, "micro_batch_size": 2},
        "sample_packing_balance is true, and sample_packing is not -> add `sample_packing: true`",
    ),
    ("ways_of_packing_need_packing", {"sample_packing_sequentially": True}, "sample_packing_sequentially is true"),
    (
        "packs_of_neighbours_hold_each_sample_once",
        {"sample_packing": True, "sample_packing_sequentially": True, "mixing_temperature": 2},
        "keeps samples in order, and mixing_temperature shows some of them more often",
    ),
    (
        "balanced_packs_are_shuffled",
        {"sample_packing": True, "sample_packing_balance": True, "curriculum_sampling": True, "micro_batch_size": 2},
        "sample_packing_balance deals packs anew, and curriculum_sampling: true keeps their order",
    ),
    ("jinja_comes_with_its_text", {"chat_template": "jinja"}, "there is no chat_template_jinja"),
    (
        "jinja_comes_with_its_text",
        {"chat_template": "chatml", "chat_template_jinja": "{{ x }}"},
        "chat_template_jinja would not be used: chat_template is chatml",
    ),
    (
        "template_variables_have_free_names",
        {"chat_template_kwargs": {"mood": "glad", "tokenize": True}},
        "chat_template_kwargs: 'tokenize' cannot be a variable of the template -> remove it: no template sees it",
    ),
    (
        "template_variables_have_free_names",
        {"chat_template_kwargs": {"tools": []}},
        "'tools' cannot be a variable of the template -> put tools into the rows (field_tools)",
    ),
    ("the_tokenizer_is_a_fast_one", {"tokenizer_use_fast": False}, "tokenizer_use_fast is false"),
    (
        "batch_is_described_once",
        {"batch_size": 4, "gradient_accumulation_steps": 2},
        "gradient_accumulation_steps is written, and so is batch_size",
    ),
    ("batch_is_made_of_whole_passes", {"batch_size": 9, "micro_batch_size": 2}, "batch_size 9 is no multiple of"),
    (
        "warmup_is_written_once",
        {"warmup_steps": 1, "warmup_ratio": 0.1},
        "warmup_ratio is written, and so is warmup_steps",
    ),
    (
        "saves_are_counted_once",
        {"save_steps": 1, "saves_per_epoch": 1},
        "saves_per_epoch is written, and so is save_steps",
    ),
    (
        "evaluations_are_counted_once",
        {"eval_steps": 1, "evals_per_epoch": 1, "val_set_size": 0.1},
        "evals_per_epoch is written, and so is eval_steps",
    ),
    ("save_steps_go_with_their_strategy", {"save_steps": 5, "save_strategy": "epoch"}, "and save_strategy is epoch"),
    (
        "eval_steps_go_with_their_strategy",
        {"eval_steps": 5, "eval_strategy": "epoch", "val_set_size": 0.1},
        "and eval_strategy is epoch",
    ),
    ("strategies_by_steps_have_steps", {"save_strategy": "steps"}, "save_strategy is steps, and save_steps is not"),
    (
        "strategies_by_steps_have_steps",
        {"eval_strategy": "steps", "val_set_size": 0.1},
        "eval_strategy is steps, and eval_steps is not",
    ),
    ("allowed_changes_are_names", {"allow_change": "lerning_rate"}, "there is no key 'lerning_rate' -> did you mean"),
    ("allowed_changes_are_names", {"allow_change": ["seed", "optimizer"]}, "optimizer cannot change in the middle"),
    ("intervals_are_shares_or_whole_steps", {"save_steps": 1.5}, "save_steps is 1.5 -> write a whole number of steps"),
    ("evaluation_has_rows", {"eval_steps": 5}, "eval_steps is written, and there is nothing to evaluate on"),
    ("the_best_is_known_by_evaluating", {"early_stopping_patience": 2}, "early_stopping_patience needs evaluations"),
    ("the_best_is_known_by_evaluating", {"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations"),
    ("the_best_is_known_by_evaluating", {"save_strategy": "best"}, "save_strategy needs evaluations"),
    ("the_best_is_known_by_evaluating", {"lr_scheduler": "greedy"}, "lr_scheduler: greedy needs evaluations"),
    (
        "loss_scaling_needs_float32_gradients",
        {**LORA, "fp16": True, "peft_autocast_adapter_dtype": False},
        "fp16 scales the gradients of float32 weights alone -> remove the line",
    ),
    (
        "random_weights_are_trained_in_full",
        {**LORA, "reinit_weights": True},
        "an adapter leaves the random weights as they are -> remove one",
    ),
    (
        "the_best_model_is_saved",
        {"load_best_model_at_end": True, "val_set_size": 0.1, "eval_steps": 4, "save_steps": 6},
        "could be the best -> write a multiple of 4",
    ),
    (
        "the_best_model_is_saved",
        {"load_best_model_at_end": True, "val_set_size": 0.1, "save_strategy": "no"},
        "and save_strategy is no",
    ),
    (
        "resuming_needs_the_optimizer",
        {"save_only_model": True, "auto_resume_from_checkpoints": True},
        "save_only_model leaves out what auto_resume_from_checkpoints needs",
    ),
    ("new_tokens_have_a_text", {"tokens": ["<x>", " "]}, "tokens: a token is empty -> write its text"),
    ("four_bits_or_eight", {**LORA, "load_in_4bit": True, "load_in_8bit": True}, "are both true -> keep one"),
    ("qlora_has_a_4bit_base", {**LORA, "adapter": "qlora"}, "is not loaded in 4 bits -> add `load_in_4bit: true`"),
    ("few_bits_need_an_adapter", {"load_in_4bit": True}, "quantised weights cannot be trained -> add `adapter: qlora`"),
    ("few_bits_need_an_adapter", {"load_in_8bit": True}, "quantised weights cannot be trained -> add `adapter: lora`"),
    (
        "four_bit_options_need_4bit",
        {"bnb_4bit_quant_type": "fp4"},
        "bnb_4bit_quant_type is written, and load_in_4bit is",
    ),
    (
        "adapter_options_need_an_adapter",
        {"lora_r": 4},
        "lora_r is written, and there is no adapter -> add `adapter: lora`",
    ),
    ("adapter_options_need_an_adapter", {"merge_adapters": True}, "merge_adapters is written, and there is no adapter"),
    (
        "the_adapter_has_targets",
        {"adapter": "lora"},
        "the adapter has nothing to adapt -> add `lora_target_linear: true`",
    ),
    (
        "patterns_compile",
        {"adapter": "lora", "lora_target_modules": ["q_(proj"]},
        "'q_(proj' is no regular expression",
    ),
    (
        "adapted_parameters_have_no_dropout",
        {"adapter": "lora", "lora_target_parameters": ["w"], "lora_dropout": 0.1},
        "which lora_target_parameters rules out -> write lora_dropout: 0",
    ),
    (
        "experts_have_one_implementation",
        {"experts_implementation": "eager", "use_scattermoe": True},
        "use_scattermoe asks for whet_experts, and experts_implementation for eager -> keep one of them",
    ),
    (
        "scatter_or_sonic",
        {"use_scattermoe": True, "use_sonicmoe": True},
        "use_scattermoe and use_sonicmoe are both true -> keep one of them",
    ),
    ("layers_pattern_counts_layers", {**LORA, "peft_layers_pattern": ["layers"]}, "add peft_layers_to_transform"),
    (
        "unfrozen_parameters_are_full_weights",
        {**LORA, "unfrozen_parameters": ["lm_head"]},
        "unfrozen_parameters has no meaning with an adapter, which freezes the whole model -> name the modules",
    ),
    (
        "lora_kernels_read_their_base",
        {**LORA, "load_in_8bit": True, "lora_mlp_kernel": True},
        "lora_mlp_kernel is true, and the kernels do not read 8-bit weights -> remove the line, or write load_in_4bit",
    ),
    (
        "one_scheme_of_learning_rates",
        {**LORA, "loraplus_lr_ratio": 16, "lr_groups": [{"name": "a", "modules": ["q"], "lr": 1}]},
        "loraplus_lr_ratio is written, and so is lr_groups",
    ),
    ("embeddings_have_one_learning_rate", {"embedding_lr": 1, "embedding_lr_scale": 1}, "and so is embedding_lr"),
    (
        "cosine_options_need_a_cosine",
        {"cosine_min_lr_ratio": 0.1, "lr_scheduler": "linear"},
        "cosine_min_lr_ratio is written, and lr_scheduler is linear",
    ),
    ("a_held_rate_has_its_height", {"cosine_constant_lr_ratio": 0.8}, "add `cosine_min_lr_ratio: 0.1`"),
    ("precision_is_chosen_once", {"bf16": True, "fp16": True}, "bf16 and fp16 are all asked for"),
    (
        "activations_go_to_one_place",
        {"gradient_checkpointing": "offload", "activation_offloading": "disk"},
        "activation_offloading is disk, and gradient_checkpointing is offload",
    ),
    (
        "compile_options_are_known",
        {"torch_compile": True, "torch_compile_options": {"debug": True}},
        "torch_compile_options: debug is none of them",
    ),
    (
        "compile_options_are_known",
        {"torch_compile": True, "torch_compile_mode": "default", "torch_compile_options": {"shape_padding": True}},
        "and so is torch_compile_mode",
    ),
    (
        "offloaded_inputs_are_those_of_checkpoints",
        {"activation_offloading": "hidden_states"},
        "add `gradient_checkpointing: true`",
    ),
    (
        "offloaded_checkpoints_are_not_reentrant",
        {"gradient_checkpointing": "offload", "gradient_checkpointing_kwargs": {"use_reentrant": True}},
        "write use_reentrant: false",
    ),
    ("offloaded_layers_are_frozen_and_checkpointed", {"layer_offloading": True}, "there is no adapter"),
    ("offloaded_layers_are_frozen_and_checkpointed", {**LORA, "layer_offloading": True}, "frees nothing without"),
    (
        "selective_checkpointing_keeps_on_the_device",
        {"gradient_checkpointing": True, "selective_checkpointing": True, "activation_offloading": True},
        "and activations are offloaded -> write activation_offloading: hidden_states",
    ),
    (
        "a_step_in_backward_sees_one_gradient",
        {"optimizer_in_backward": True},
        "max_grad_norm is 1, and optimizer_in_backward never has all gradients -> write max_grad_norm: 0",
    ),
    (
        "a_step_in_backward_sees_one_gradient",
        {"optimizer_in_backward": True, "max_grad_norm": 0, "gradient_accumulation_steps": 2},
        "write a larger micro_batch_size instead",
    ),
    (
        "a_step_in_backward_needs_no_other_parameter",
        {"optimizer_in_backward": True, "max_grad_norm": 0, "optimizer": "muon"},
        "optimizer_in_backward is not built for muon",
    ),
    ("rounding_needs_bfloat16_weights", {"stochastic_rounding": True}, "add `bfloat16: true`"),
    (
        "rounding_needs_bfloat16_weights",
        {"stochastic_rounding": True, "bfloat16": True, "optimizer": "adamw_8bit"},
        "stochastic_rounding is not built for adamw_8bit",
    ),
    (
        "weights_have_one_manager",
        {"stochastic_rounding": True, "bfloat16": True, "lisa_n_layers": 2, "lisa_step_interval": 4},
        "stochastic_rounding holds weights in its own way, and lisa_n_layers changes them",
    ),
    (
        "parameters_apart_are_not_filtered",
        {"stochastic_rounding": True, "bfloat16": True, "grokfast_alpha": 0.9},
        "grokfast filters all gradients together",
    ),
    ("shards_are_of_a_tiled_mlp", {"tiled_mlp_num_shards": 4}, "tiled_mlp is off"),
    ("garbage_is_collected_once", {"gc_steps": 4, "gc_collect_steps": 2}, "gc_steps is written, and so is gc_collect"),
    (
        "selective_checkpointing_is_checkpointing",
        {"selective_checkpointing": True},
        "gradient_checkpointing is off -> add `gradient_checkpointing: true`",
    ),
    (
        "selective_checkpointing_is_not_reentrant",
        {
            "gradient_checkpointing": True,
            "selective_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
        },
        "write use_reentrant: false",
    ),
    (
        "products_are_not_kept_under_an_adapter",
        {**LORA, "gradient_checkpointing": True, "selective_checkpointing": {"save": ["attention", "aten.mm.default"]}},
        "selective_checkpointing.save names aten.mm.default",
    ),
    (
        "kept_results_stay_on_the_device",
        {"gradient_checkpointing": True, "selective_checkpointing": {"offload": True}},
        "selective_checkpointing.offload is not built",
    ),
    (
        "layers_are_chosen_for_supervised_training",
        {**DPO, "gradient_checkpointing": True, "gradient_checkpointing_every": 2},
        "TRL's trainer for rl: dpo checkpoints every layer or none",
    ),
    (
        "reentrant_checkpoints_need_gradients_everywhere",
        {
            "gradient_checkpointing": True,
            "gradient_checkpointing_kwargs": {"use_reentrant": True},
            "unfrozen_parameters": ["x"],
        },
        "write use_reentrant: false",
    ),
    ("weights_are_safetensors", {"save_safetensors": False}, "save_safetensors is false"),
    ("preferences_are_not_packed", {**DPO, "sample_packing": True}, "sample_packing is true, and rl: dpo compares"),
    ("preferences_are_shuffled", {**DPO, "shuffle_merged_datasets": False}, "rl: dpo sees its pairs shuffled"),
    (
        "preferences_are_shuffled",
        {**DPO, "curriculum_sampling": True},
        "curriculum_sampling is true, and rl: dpo sees",
    ),
    ("preference_options_need_their_method", {"rl_beta": 0.1}, "rl_beta is written, and rl is not"),
    (
        "every_loss_has_a_weight",
        {**DPO, "dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [1]},
        "dpo_loss_weights has 1 numbers for 2 losses",
    ),
    ("the_score_has_rows", {"score_max_rows": 3}, "score_max_rows is written, and score_dataset is not"),
    ("the_method_exists", {"rl": "bco"}, "rl: bco is not supported yet"),
    (
        "there_is_one_method",
        {"rl": "kto", "reward_model": True, "datasets": [{"path": "org/d"}]},
        "reward_model is written, and so is rl -> keep one",
    ),
    ("the_method_exists", {"rl": "dop"}, "rl: there is no method 'dop' -> did you mean 'dpo'?"),
    ("the_optimizer_exists", {"optimizer": "adamw"}, "optimizer: there is no 'adamw' -> did you mean"),
    (
        "the_optimizer_exists",
        {"optimizer": "adamw_torch_xla"},
        "adamw_torch_xla is not built: it runs on XLA devices alone, and whet on CPU, CUDA and MPS -> write ",
    ),
    (
        "optimizer_keys_have_their_optimizer",
        {"dion_rank_fraction": 0.5},
        "dion_rank_fraction is read by dion, and optimizer is adamw_torch_fused -> remove the line",
    ),
    (
        "optimizer_keys_have_their_optimizer",
        {"optim_target_modules": ["attn"]},
        "optim_target_modules is read by apollo_adamw or galore_adafactor or",
    ),
    (
        "updates_in_backward_take_one_pass",
        {"optimizer": "lomo", "gradient_accumulation_steps": 2},
        "optimizer: lomo updates weights in each backward pass, so passes cannot be added up -> write gradient_acc",
    ),
    (
        "updates_in_backward_take_one_pass",
        {"optimizer": "lomo", "max_grad_norm": 1.0},
        "optimizer: lomo has no gradients left to clip when their norm is known -> write max_grad_norm: 0",
    ),
    (
        "updates_in_backward_take_one_pass",
        {"optimizer": "adalomo", "embedding_lr": 1e-5},
        "embedding_lr is written, and optimizer: adalomo treats all weights alike -> remove the line",
    ),
    (
        "restarts_have_an_interval",
        {"jagged_restart_warmup_steps": 5},
        "jagged_restart_warmup_steps is written, and jagged_restart_steps is not -> add jagged_restart_steps",
    ),
    (
        "restarts_have_room_for_their_ramps",
        {"jagged_restart_steps": 10, "jagged_restart_warmup_steps": 8, "jagged_restart_anneal_steps": 4},
        "a restart every 10 steps has no room for 12 steps of rise and fall -> write 12 or more",
    ),
    (
        "restarts_have_a_known_schedule",
        {"jagged_restart_steps": 10, "lr_scheduler": "greedy", "val_set_size": 0.1},
        "the rates of lr_scheduler: greedy follow evaluations -> write lr_scheduler: cosine",
    ),
    (
        "layers_are_drawn_by_number_and_interval",
        {"lisa_n_layers": 2},
        "lisa_n_layers is written, and lisa_step_interval is not -> add `lisa_step_interval: 20`",
    ),
    (
        "layers_are_drawn_by_number_and_interval",
        {"lisa_step_interval": 20},
        "lisa_step_interval is written, and lisa_n_layers is not -> add `lisa_n_layers: 2`, or remove the line",
    ),
    (
        "one_choice_of_what_is_trained",
        {**LORA, "spectrum_top_fraction": 0.5},
        "spectrum_top_fraction is written, and so is adapter: each says alone what is trained -> keep one of them",
    ),
    (
        "drawn_layers_have_an_optimizer_that_lets_them_rest",
        {"lisa_n_layers": 2, "lisa_step_interval": 20, "optimizer": "lomo"},
        "lisa_n_layers is written, and optimizer: lomo changes weights in the backward pass",
    ),
    (
        "restarts_of_the_adapter_have_an_interval",
        {**LORA, "relora": True},
        "relora is true, and jagged_restart_steps is not written -> add jagged_restart_steps",
    ),
    (
        "restarted_adapters_can_be_merged",
        {**RELORA, "adapter": "qlora", "load_in_4bit": True},
        "load_in_4bit does not go with relora: every merge would be rounded to 4 bits -> remove one of the two",
    ),
    (
        "restarted_adapters_can_be_merged",
        {**RELORA, "peft_init_lora_weights": "orthogonal"},
        "relora starts adapters anew, which PEFT cannot do with orthogonal -> write true or gaussian",
    ),
    (
        "restarted_adapters_move_float32_weights",
        {**RELORA, "bfloat16": True},
        "16 bits would round most of each adapter away -> write bf16: true, mixed precision over float32 weights",
    ),
    (
        "restarted_adapters_move_float32_weights",
        {**RELORA, "bf16": True, "torch_dtype": "bfloat16"},
        "torch_dtype is bfloat16: relora merges into the base weights, and 16 bits would round most of each adapter",
    ),
    (
        "evaluations_measure_one_model",
        {
            "qat": {"weight_dtype": "int4", "fake_quant_after_n_steps": 9},
            "early_stopping_patience": 2,
            "val_set_size": 0.1,
        },
        "those of the first 9 steps are of the model without rounding (fake_quant_after_n_steps) -> remove fake_qu",
    ),
    (
        "restarted_adapters_have_adams_state",
        {**RELORA, "optimizer": "sgd"},
        "relora prunes Adam's running means, and optimizer is sgd -> write adamw_torch or",
    ),
    (
        "restarted_adapters_have_a_falling_rate",
        {**RELORA, "lr_scheduler": "one_cycle"},
        "lr_scheduler: one_cycle rises once in a run, and relora starts again and again -> write lr_scheduler: cosine",
    ),
    (
        "restart_options_need_restarts",
        {**LORA, "relora_prune_ratio": 0.5},
        "relora_prune_ratio is written, and relora is not -> add `relora: true`, or remove the line",
    ),
    (
        "a_filter_of_gradients_is_written_once",
        {"optimizer": "grokadamw", "grokfast_lamb": 2.0},
        "grokfast_lamb is written, and grokadamw filters gradients itself",
    ),
    (
        "one_head",
        {"cut_cross_entropy": True, "chunked_cross_entropy": True},
        "cut_cross_entropy and chunked_cross_entropy are all true -> keep one of them",
    ),
    ("chunks_are_asked_for", {"chunked_cross_entropy_num_chunks": 4}, "and chunked_cross_entropy is not -> add"),
    ("token_scaling_is_ligers", {"liger_use_token_scaling": True}, "write use_dft: true, which is the same"),
    ("tokens_have_one_weight", {"use_eaft": True, "use_dft": True}, "use_dft is true, and so is use_eaft"),
    ("a_preference_has_its_own_loss", {**DPO, "use_dft": True}, "use_dft is about supervised fine-tuning"),
    ("a_preference_has_its_own_loss", {**DPO, "label_smoothing": 0.1}, "-> write dpo_label_smoothing"),
    (
        "plugins_are_known",
        {"plugins": ["axolotl.integrations.grokfast.GrokfastPlugin"]},
        "plugins: 'axolotl.integrations.grokfast.GrokfastPlugin' has no counterpart here -> remove it",
    ),
    ("the_scheduler_exists", {"lr_scheduler": "cosin"}, "lr_scheduler: there is no 'cosin' -> did you mean 'cosine'?"),
    ("the_adapter_exists", {**LORA, "adapter": "loar"}, "adapter: there is no 'loar' -> did you mean 'lora'?"),
    ("the_adapter_start_exists", {**LORA, "peft_init_lora_weights": "gausian"}, "did you mean 'gaussian'?"),
    ("the_adapter_start_exists", {**LORA, "peft_init_lora_weights": "eva"}, "eva is not supported yet"),
    ("the_attention_exists", {"attn_implementation": "flesh"}, "attn_implementation: there is no 'flesh'"),
    ("the_attention_exists", {"attn_implementation": "sage"}, "sage is not computed: it rounds queries and keys"),
    ("the_attention_exists", {"attn_implementation": "spda"}, "there is no 'spda' -> did you mean 'sdpa'?"),
    ("the_losses_exist", {**DPO, "dpo_loss_type": ["sigmod"]}, "did you mean 'sigmoid'?"),
    ("the_template_exists", {"chat_template": "qwen_3"}, "there is no template 'qwen_3' -> did you mean 'qwen"),
    ("the_template_exists", {"chat_template": "jamba"}, "the template jamba is not shipped"),
    ("one_way_to_shard", {"deepspeed": {"x": 1}, "fsdp": ["full_shard"]}, "deepspeed and fsdp are both written"),
    ("fsdp_has_one_version", {"fsdp_version": 2, "fsdp_config": {"fsdp_version": 1}}, "fsdp_version is 2, and 1 in"),
    (
        "unpinned_offloading_is_fsdp2",
        {"fsdp_config": {"cpu_offload_pin_memory": False}},
        "is for FSDP 2 with offload_params",
    ),
]

ROWS: list[tuple[Mapping[str, Any], str]] = [
    ({"type": "alpcaa"}, "datasets[0].type: there is no type 'alpcaa' -> did you mean 'alpaca'?"),
    ({"type": "alpaca:chta"}, "type alpaca has no style 'chta' -> did you mean 'chat'?"),
    ({"type": "completion:chat"}, "type completion has no style 'chat' -> write completion"),
    ({"type": "alpaca_chat.load_qq"}, "there is no type 'alpaca_chat.load_qq' -> did you mean 'alpaca_chat.load_qa'?"),
    ({"type": "axolotl.integrations.kd.chat_template"}, "kd.chat_template is not supported yet -> write the rows as"),
    ({"type": "zephyr.nectar"}, "there is no type 'zephyr.nectar' -> it is for pairs: write rl: dpo"),
    ({"type": "stepwise_supervised"}, "no type 'stepwise_supervised' -> it is for process_reward_model: true"),
    ({"type": "my_rows.py"}, "my_rows.py is a file -> name the function in it: my_rows.py:my_row"),
    ({"type": "no_such_package.rows"}, "there is no type 'no_such_package.rows' -> "),
    ({"type": {"format": "{instrction}"}}, "datasets[0].type.format: has a place {instrction} -> did you mean instru"),
    ({"type": {"format": "{}"}}, "has a place {} -> use one of: input, instruction (in braces; write {{ and }} for"),
    ({"type": {"format": "{instruction"}}, "has a brace that opens or closes nothing -> write {{ or }} for a brace"),
    ({"type": {"format": "{input:>3}"}}, "changes {input} with ':>3' -> write {input}"),
    ({"type": {"no_input_format": "{input}"}}, "type.no_input_format: has a place {input} -> "),
    ({"type": {"prompt_format": "{prompt}"}}, "datasets[0].type.prompt_format: prompt_format is not read without `rl`"),
    ({"type": "_synthetic"}, "datasets[0].type: type is _synthetic -> write path: synthetic with it"),
    ({"path": "synthetic"}, "datasets[0].type: path is synthetic -> write type: _synthetic with it"),
    (
        {"path": "synthetic", "type": "_synthetic", "max_input_id": 100},
        "datasets[0].max_input_id: 100 is not above min_input_id, 100 -> raise it",
    ),
    ({"type": "pretrain", "field": "a", "text_column": "b"}, "text_column: b, and field is a -> keep one of them"),
    ({"type": "messages.chat", "input_transform": "sharegpt"}, "'sharegpt' is no function -> write my_file.py:my_fun"),
    ({"type": "messages.chat", "input_transform": "no_such_package.f"}, "there is no module 'no_such_package' -> "),
    (
        {"chat_template": "chatmll"},
        "datasets[0].chat_template: there is no template 'chatmll' -> did you mean 'chatml'?",
    ),
    ({"chat_template": "jinja"}, "datasets[0].chat_template: there is no chat_template_jinja"),
    ({"chat_template": "chatml", "chat_template_jinja": "{{x}}"}, "not used, for chat_template is chatml"),
    (
        {"chat_template_kwargs": {"chat_template": "x"}},
        "datasets[0].chat_template_kwargs: 'chat_template' cannot be a variable of the template -> write chat_template",
    ),
    ({"shards": 3}, "datasets[0].shards: shards_idx is not written"),
    (
        {"explode_turns": True, "keep_history": True},
        "datasets[0].keep_history: true, and so is explode_turns -> keep one of them",
    ),
    ({"shards_idx": 3}, "datasets[0].shards_idx: shards is not written"),
    ({"shards": 3, "shards_idx": 3}, "datasets[0].shards_idx: 3 is no part of 3 -> write a number from 0 to 2"),
    (
        {"message_field_role": "from", "message_property_mappings": {"role": "who"}},
        "from, and message_property_mappings.role is who",
    ),
]

NOTED: list[tuple[str, Mapping[str, Any], str]] = [
    (
        "code_of_others_is_announced",
        {"trust_remote_code": True},
        "may run in this process, with all your rights -> remove the line unless you have read that code",
    ),
    (
        "adam_options_need_adam",
        {"adam_beta1": 0.8, "optimizer": "sgd"},
        "adam_beta1 changes nothing: sgd does not use it",
    ),
    (
        "averages_take_the_place_of_decay",
        {"optimizer": "schedule_free_adamw"},
        "schedule_free_adamw averages weights in place of a decay, and cosine decays as well -> write lr",
    ),
    ("evaluations_without_rows", {"evals_per_epoch": 1, "val_set_size": 0.0}, "no evaluation takes place"),
    (
        "checkpointing_options_need_checkpointing",
        {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
        "gradient_checkpointing is off",
    ),
    ("compile_options_need_compiling", {"torch_compile_mode": "default"}, "torch_compile is off"),
    ("wandb_options_need_a_project", {"wandb_name": "x"}, "there is no wandb_project"),
    ("hub_options_need_a_repository", {"hub_revision": "x"}, "there is no hub_model_id"),
    ("patience_needs_a_threshold", {"loss_watchdog_patience": 2}, "there is no loss_watchdog_threshold"),
    ("entropy_options_need_eaft", {"eaft_k": 7}, "eaft_k changes nothing: use_eaft is off -> add `use_eaft: true`"),
    ("shares_need_a_mix", {"mixing_by": "samples"}, "mixing_by changes nothing: no share is asked for"),
    ("buffer_needs_a_stream", {"streaming_multipack_buffer_size": 5}, "changes nothing: streaming is off -> add"),
    (
        "a_stream_reads_ahead_by_itself",
        {**STREAM, "dataloader_num_workers": 2},
        "dataloader_num_workers changes nothing: a stream is read ahead by a thread of the run -> remove it",
    ),
    ("a_stream_reads_ahead_by_itself", {**STREAM, "dataset_num_proc": 2}, "dataset_num_proc changes nothing"),
    (
        "balanced_steps_have_several_packs",
        {"sample_packing": True, "sample_packing_balance": True},
        "a process computes one pack a step -> add `gradient_accumulation_steps: 4`",
    ),
]


def problems(values: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as error:
        make_config({**BASE, **values})
    return [str(problem) for problem in error.value.problems]


@pytest.mark.parametrize(("rule", "values", "message"), BROKEN)
def test_a_contradiction_is_told_and_how_to_end_it(rule: str, values: Mapping[str, Any], message: str) -> None:
    (problem,) = problems(values)
    assert message in problem


def test_every_rule_has_a_config_that_breaks_it() -> None:
    assert {rule.__name__ for rule in RULES} == {name for name, _, _ in BROKEN}
    assert {rule.__name__ for rule in REMARKS} == {name for name, _, _ in NOTED}


@pytest.mark.parametrize(("row", "message"), ROWS)
@pytest.mark.parametrize("key", ["datasets", "test_datasets"])
def test_a_row_that_contradicts_itself_is_told(row: Mapping[str, Any], message: str, key: str) -> None:
    values = {key: [{"path": "org/d", "type": "chat_template", **row}]}
    (problem,) = problems(values)
    assert message.replace("datasets[0]", f"{key}[0]", 1) in problem


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zephyr.nectr", "there is no type 'zephyr.nectr' under rl: dpo -> did you mean 'zephyr.nectar'?"),
        ("chat_templte", "there is no type 'chat_templte' under rl: dpo -> did you mean 'chat_template'?"),
        ("alpaca", "there is no type 'alpaca' under rl: dpo -> it is for supervised fine-tuning"),
    ],
)
def test_preference_rows_have_their_own_types(name: str, message: str) -> None:
    (problem,) = problems({"rl": "dpo", "datasets": [{"path": "org/d", "type": name}]})
    assert message in problem
    for good in (None, "chat_template", "chatml.intel"):
        make_config({**BASE, "rl": "dpo", "datasets": [{"path": "org/d", "type": good}]})


def test_a_mapping_is_a_type_where_the_method_has_prompts_of_ones_own() -> None:
    (problem,) = problems({"rl": "grpo", "datasets": [{"path": "org/d", "type": {"prompt_format": "{prompt}"}}]})
    assert "a mapping is no type under rl: grpo -> use one of: passthrough.default, prompt, or a function" in problem
    (problem,) = problems({"rl": "kto", "datasets": [{"path": "org/d", "type": {"chosen_format": "{chosen}"}}]})
    assert "chosen_format is not read under rl: kto -> use field_system, field_prompt, field_completion" in problem


def test_types_may_be_written_with_the_path_of_axolotls_modules() -> None:
    for name, method in (("dpo.chatml.intel", "dpo"), ("kto.llama3.ultra", "kto"), ("alpaca_chat.load_qa", None)):
        row = {"path": "org/d", "type": f"axolotl.prompt_strategies.{name}"}
        assert make_config({**BASE, "rl": method, "datasets": [row]}).warnings == ()


PREPARED: list[tuple[Mapping[str, Any], str | None]] = [
    ({"rl": "kto", "kto_desirable_weight": 0.5}, "kto_desirable_weight"),
    ({"rl": "ipo"}, None),
    ({"rl": "grpo", "trl": {"num_generations": 4}}, "trl"),
    ({"rl": "ebft", "ebft": {"mode": "strided"}}, "ebft"),
    ({"reward_model": True, "center_rewards_coefficient": 0.01}, "center_rewards_coefficient"),
    ({"process_reward_model": True}, None),
]


@pytest.mark.parametrize(("values", "key"), PREPARED)
def test_data_of_a_method_is_prepared_before_the_method_trains(values: Mapping[str, Any], key: str | None) -> None:
    config = make_config({**BASE, "datasets": [{"path": "org/d"}], **values})
    (problem,) = check_trainable(config)
    assert "is not built: its data can be prepared and looked at (`whet preprocess`)" in problem.found
    assert [warning.key for warning in config.warnings] == ([key] if key else [])
    assert not check_trainable(make_config({**BASE, "datasets": [{"path": "org/d"}], "rl": "dpo"}))


@pytest.mark.parametrize(("remark", "values", "message"), NOTED)
def test_what_changes_nothing_is_said_and_stops_nothing(remark: str, values: Mapping[str, Any], message: str) -> None:
    (warning,) = make_config({**BASE, **values}).warnings
    assert message in str(warning)


@pytest.mark.parametrize("row", [{"type": "alpaca"}, {"type": "completion"}])
@pytest.mark.parametrize("option", ["explode_turns", "keep_history"])
def test_only_conversations_have_a_history(option: str, row: Mapping[str, Any]) -> None:
    (warning,) = make_config({**BASE, "datasets": [{"path": "org/d", **row, option: True}]}).warnings
    assert f"datasets[0].{option} changes nothing: type {row['type']} does not read it" in str(warning)
    (warning,) = make_config({**BASE, "rl": "dpo", "datasets": [{"path": "org/d", option: True}]}).warnings
    assert f"datasets[0].{option} changes nothing: rl: dpo does not read it" in str(warning)


def test_an_option_that_the_type_of_its_row_does_not_read_is_said() -> None:
    rows = [
        {"path": "org/d", "type": "alpaca", "roles_to_train": ["user"]},
        {"path": "org/e", "field": "x", "type": "completion"},
    ]
    (warning,) = make_config({**BASE, "datasets": rows}).warnings
    assert str(warning) == (
        "datasets.0.roles_to_train: datasets[0].roles_to_train changes nothing: type alpaca does not read it -> "
        "remove the line"
    )


GOOD: list[Mapping[str, Any]] = [
    {},
    {"adapter": "qlora", "load_in_4bit": True, "lora_target_modules": ".*proj", "bnb_4bit_quant_type": "nf4"},
    {"adapter": "lora", "lora_model_dir": "org/adapter"},
    {"adapter": None, "lora_r": None, "lora_model_dir": None, "lora_dropout": 0.0},
    {
        "val_set_size": 0.1,
        "eval_steps": 4,
        "save_steps": 8,
        "load_best_model_at_end": True,
        "early_stopping_patience": 2,
    },
    {"val_set_size": 0.1, "save_strategy": "best", "metric_for_best_model": "eval_loss"},
    {"val_set_size": 100, "eval_steps": 0.2, "save_steps": 0.4},
    {"eval_strategy": "no", "save_strategy": "no"},
    {"chat_template": "jinja", "chat_template_jinja": "{{ messages }}"},
    {"chat_template": "tokenizer_default_fallback_chatml"},
    {"bf16": "auto", "fp16": True},
    {"bf16": False, "float32": True},
    {"batch_size": 8, "micro_batch_size": 2},
    {"sample_packing": True, "sample_packing_balance": True, "batch_size": 8},
    {"sample_packing": True, "sample_packing_sequentially": True, "curriculum_sampling": True, "order": "sequential"},
    {"mixing_by": "samples", "datasets": [{**ROW, "weight": 2}, {**ROW, "path": "org/e", "weight": 1}]},
    {"datasets": [{**ROW, "epochs": 0.5}, ROW], "order": "sequential"},
    {"phases": [{"share": 0.3, "weights": {"org/d": 1}}, {"share": 0.7, "weights": {"d": 1, "d-2": 0}}]},
    {"lr_scheduler": "rex", "cosine_min_lr_ratio": 0.1},
    {"plugins": ["axolotl.integrations.liger.LigerPlugin"], "liger_fused_linear_cross_entropy": True},
    {"use_eaft": True, "eaft_alpha": 0.5, "eaft_k": 10, "label_smoothing": 0.1, "z_loss_coefficient": 1e-4},
    {**DPO, "rl_beta": 0.2, "dpo_loss_type": ["sigmoid", "sft"], "dpo_loss_weights": [0.8, 0.2]},
    {"datasets": [{"path": "org/d"}, {"path": "org/e", "type": "alpaca:chat"}, {"path": "x/y", "type": "sharegpt"}]},
]


@pytest.mark.parametrize("values", GOOD)
def test_what_does_not_contradict_itself_passes_without_a_word(values: Mapping[str, Any]) -> None:
    config = make_config({**BASE, **values})
    assert config.warnings == ()


def runnable(values: Mapping[str, Any], hardware: Hardware) -> list[str]:
    config: Config = make_config({**BASE, **values})
    return [problem.found for problem in check_runnable(config, hardware)]


def test_what_a_machine_cannot_run_is_told_when_a_run_starts() -> None:
    cpu, old = Hardware("cpu"), Hardware("cuda", "T4", bf16=False)
    new, two = Hardware("cuda", "H100", bf16=True), Hardware("cuda", world_size=2, bf16=True)
    assert runnable({"fsdp": ["full_shard"]}, new) == ["fsdp is understood, and does not run in this version"]
    assert runnable({"deepspeed": {"zero_optimization": {}}}, new) == [
        "deepspeed is understood, and does not run in this version"
    ]
    assert runnable({"bf16": True}, old) == ["bf16: T4 has no bfloat16"]
    assert runnable({"bfloat16": True}, old) == ["bfloat16: T4 has no bfloat16"]
    assert runnable({"tf32": True}, old) == ["tf32: T4 has no TensorFloat-32"]
    assert runnable({"fp16": True}, cpu) == ["fp16 is true, and a CPU does not train in float16"]
    assert runnable({"device_map": "auto"}, two) == ["device_map is for one process, and this run has 2"]
    for values in ({}, {"bf16": True}, {"fp16": True, "device_map": "auto"}):
        assert runnable(values, new) == []
    assert runnable({"bf16": True}, cpu) == []
    base = {"base_model": "/", "output_dir": "/tmp/.."}
    assert runnable(base, cpu) == ["output_dir '/tmp/..' is the folder of base_model, which the run would write over"]
    lisa = {"lisa_n_layers": 2, "lisa_step_interval": 20}
    assert runnable(lisa, two) == [
        "lisa_n_layers: DDP fixes at the start what is trained, and this run has 2 processes"
    ]
    assert runnable(lisa, new) == []
    assert runnable({"optimizer": "lomo"}, two) == [
        "optimizer: lomo changes weights before 2 processes have averaged their gradients"
    ]
    assert "2 processes" in runnable({"optimizer_in_backward": True, "max_grad_norm": 0}, two)[0]
    assert runnable({"torch_dtype": "float16"}, cpu) == ["torch_dtype is float16, in which a CPU does not train"]
    ada = Hardware("cuda", "L4", bf16=True, compute_capability=(8, 9))
    assert "fp8: a CPU has no products in 8-bit floats" in runnable({"fp8": True}, cpu)[0]
    assert "fp8: T4 has no products in 8-bit floats" in runnable({"fp8": True}, old)[0]
    assert runnable({"fp8": True}, ada) == []
    assert len(RUN_RULES) == 13, "two more are in tests/unit/model/test_loss_plan.py"


def test_a_merge_at_the_end_does_not_go_where_its_base_lies(tmp_path: Path) -> None:
    base, output = tmp_path / "out" / "merged", tmp_path / "out"
    base.mkdir(parents=True)
    values = {"base_model": str(base), "output_dir": str(output), "merge_adapters": True, **LORA}
    found = f"merge_adapters writes '{base}' in the end, where the base_model lies"
    assert runnable(values, Hardware("cpu")) == [found]
    assert runnable({**values, "merge_adapters": False}, Hardware("cpu")) == []
    assert runnable({**values, "output_dir": str(tmp_path)}, Hardware("cpu")) == []
