"""Rules about the optimizer, precision and the method."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.rules.base import Rule, at, clash, first_set
from whet.core.errors import Problem


def one_scheme_of_learning_rates(config: Config) -> Problem | None:
    return clash(config, "lr_groups", "loraplus_lr_ratio", "keep one of them")


def embeddings_have_one_learning_rate(config: Config) -> Problem | None:
    return clash(config, "embedding_lr", "embedding_lr_scale", "keep one of them")


def cosine_options_need_a_cosine(config: Config) -> Problem | None:
    scheduler = config.optimizer.lr_scheduler
    allowed = {
        "cosine_min_lr_ratio": ("cosine", "rex"),
        "cosine_constant_lr_ratio": ("cosine",),
        "lr_quadratic_warmup": ("cosine",),
    }
    for key, schedulers in allowed.items():
        if config.value(key) and scheduler not in schedulers:
            return at(
                config,
                key,
                f"{key} is written, and lr_scheduler is {scheduler}",
                f"write lr_scheduler: {schedulers[0]}",
            )
    return None


def a_held_rate_has_its_height(config: Config) -> Problem | None:
    if config.optimizer.cosine_constant_lr_ratio is None or config.optimizer.cosine_min_lr_ratio is not None:
        return None
    return at(
        config,
        "cosine_constant_lr_ratio",
        "cosine_constant_lr_ratio is written, and the rate to hold is not",
        "add `cosine_min_lr_ratio: 0.1`",
    )


def precision_is_chosen_once(config: Config) -> Problem | None:
    precision = config.precision
    chosen = [key for key in ("bfloat16", "float16", "float32", "fp16") if getattr(precision, key)]
    if precision.bf16 in (True, "full"):
        chosen.insert(0, "bf16")
    if len(chosen) < 2:
        return None
    return at(config, chosen[1], f"{' and '.join(chosen)} are all asked for", "keep one of them")


def weights_have_one_type(config: Config) -> Problem | None:
    precision = config.precision
    for pure in ("float32", "bfloat16", "float16"):
        if getattr(precision, pure) and precision.torch_dtype not in (None, pure):
            found = f"torch_dtype is {precision.torch_dtype}, and {pure} is true"
            return at(config, "torch_dtype", found, "remove one of the two")
    if precision.fp16 and precision.torch_dtype == "float16" and not config.adapter.adapter:
        found = "torch_dtype is float16, and fp16 scales the gradients of float32 weights alone"
        return at(config, "torch_dtype", found, "remove the line")
    return None


def products_in_8_bits_train_full_weights(config: Config) -> Problem | None:
    if not config.precision.fp8:
        return None
    if config.adapter.adapter:
        found = "fp8 is true, and with an adapter the products are those of a frozen base"
        return at(config, "fp8", found, "remove one of the two")
    return clash(config, "fp8", "qat", "keep one of them")


def norm_classes_need_fp32_norms(config: Config) -> Problem | None:
    if not config.precision.fp32_norm_classes or config.precision.fp32_norms:
        return None
    found = "fp32_norm_classes is written, and fp32_norms is not"
    return at(config, "fp32_norm_classes", found, "add `fp32_norms: true`")


def loss_scaling_needs_float32_gradients(config: Config) -> Problem | None:
    if not config.precision.fp16 or config.adapter.peft_autocast_adapter_dtype is not False:
        return None
    return at(
        config,
        "peft_autocast_adapter_dtype",
        "peft_autocast_adapter_dtype is false, and fp16 scales the gradients of float32 weights alone",
        "remove the line",
    )


def random_weights_are_trained_in_full(config: Config) -> Problem | None:
    if not config.model.reinit_weights or not config.adapter.adapter:
        return None
    return at(
        config,
        "reinit_weights",
        "reinit_weights is true, and an adapter leaves the random weights as they are",
        "remove one of the two",
    )


def weights_are_safetensors(config: Config) -> Problem | None:
    if config.output.save_safetensors:
        return None
    return at(
        config, "save_safetensors", "save_safetensors is false, and pickled weights are not written", "remove the line"
    )


def preferences_are_not_packed(config: Config) -> Problem | None:
    if not config.method.rl or not config.packing.sample_packing:
        return None
    return at(
        config,
        "sample_packing",
        f"sample_packing is true, and rl: {config.method.rl} compares pairs of answers",
        "write sample_packing: false",
    )


def preferences_are_shuffled(config: Config) -> Problem | None:
    if not config.method.rl:
        return None
    for key, kept in (("shuffle_merged_datasets", False), ("curriculum_sampling", True)):
        if config.value(key) is kept:
            found = f"{key} is {str(kept).lower()}, and rl: {config.method.rl} sees its pairs shuffled"
            return at(config, key, found, "remove the line")
    return None


def preference_options_need_their_method(config: Config) -> Problem | None:
    if config.method.rl == "dpo":
        return None
    keys = ("rl_beta", "dpo_label_smoothing", "dpo_loss_type", "dpo_loss_weights")
    key = first_set(config, keys) or ("precompute_ref_log_probs" if config.method.precompute_ref_log_probs else None)
    if key is None or config.method.rl:
        return None
    return at(config, key, f"{key} is written, and rl is not", "add `rl: dpo`, or remove the line")


def every_loss_has_a_weight(config: Config) -> Problem | None:
    weights, losses = config.method.dpo_loss_weights, config.method.dpo_loss_type or ("sigmoid",)
    if weights is None or len(weights) == len(losses):
        return None
    return at(
        config,
        "dpo_loss_weights",
        f"dpo_loss_weights has {len(weights)} numbers for {len(losses)} losses in dpo_loss_type",
        "write one weight for each loss",
    )


def the_score_has_rows(config: Config) -> Problem | None:
    key = first_set(config, ("score_max_new_tokens", "score_max_rows"))
    if key is None or config.score.score_dataset:
        return None
    return at(config, key, f"{key} is written, and score_dataset is not", "add score_dataset, or remove the line")


TRAINING_RULES: tuple[Rule, ...] = (
    one_scheme_of_learning_rates,
    embeddings_have_one_learning_rate,
    cosine_options_need_a_cosine,
    a_held_rate_has_its_height,
    precision_is_chosen_once,
    weights_have_one_type,
    products_in_8_bits_train_full_weights,
    norm_classes_need_fp32_norms,
    loss_scaling_needs_float32_gradients,
    random_weights_are_trained_in_full,
    weights_are_safetensors,
    preferences_are_not_packed,
    preferences_are_shuffled,
    preference_options_need_their_method,
    every_loss_has_a_weight,
    the_score_has_rows,
)
