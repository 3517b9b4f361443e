"""Rules about the blocks `qat` and `quantization`."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.names import FEW_BITS, FEW_BITS_GROUPS, FOLLOW_EVALUATIONS, few_bits_name
from whet.config.rules.base import Rule, at
from whet.config.schema import QuantizationConfig
from whet.core.errors import Problem


def _blocks(config: Config) -> dict[str, QuantizationConfig]:
    written = {"qat": config.quant.qat, "quantization": config.quant.quantization}
    return {key: block for key, block in written.items() if block is not None}


def weights_and_activations_go_together(config: Config) -> Problem | None:
    for key, block in _blocks(config).items():
        weight, activation = few_bits_name(block.weight_dtype), few_bits_name(block.activation_dtype)
        partners = FEW_BITS[str(weight)]
        if activation in partners:
            continue
        shown = " or ".join("none" if each is None else f"activation_dtype: {each}" for each in partners)
        found = f"{key}: activation_dtype {activation} does not go with weight_dtype {weight}"
        if activation is None:
            found = f"{key}: weight_dtype {weight} needs an activation_dtype"
        return at(config, key, found, f"write {shown}")
    return None


def the_group_fits_the_format(config: Config) -> Problem | None:
    for key, block in _blocks(config).items():
        weight, activation = few_bits_name(block.weight_dtype), few_bits_name(block.activation_dtype)
        fixed = FEW_BITS_GROUPS.get((str(weight), activation))
        if fixed is None or block.group_size in (None, fixed):
            continue
        return at(
            config,
            key,
            f"{key}: group_size is {block.group_size}, and {weight} has one scale for {fixed} weights",
            f"write group_size: {fixed}, or leave it out",
        )
    return None


def groups_are_of_integers(config: Config) -> Problem | None:
    for key, block in _blocks(config).items():
        if block.group_size is None or few_bits_name(block.weight_dtype) != "fp8":
            continue
        found = f"{key}: group_size is {block.group_size}, and fp8 weights have one scale for a row"
        return at(config, key, found, "leave group_size out")
    return None


def embeddings_are_integers(config: Config) -> Problem | None:
    for key, block in _blocks(config).items():
        if block.quantize_embedding and few_bits_name(block.weight_dtype) not in ("int4", "int8"):
            found = f"{key}: quantize_embedding is true, and there is no {block.weight_dtype} embedding"
            return at(config, key, found, "write weight_dtype: int8 or int4, or quantize_embedding: false")
    return None


def what_is_trained_for_is_what_is_written(config: Config) -> Problem | None:
    qat, written = config.quant.qat, config.quant.quantization
    if qat is None or written is None:
        return None
    for name in type(written).model_fields:
        ours, theirs = getattr(written, name), getattr(qat, name)
        if name.endswith("_dtype"):
            ours, theirs = few_bits_name(ours), few_bits_name(theirs)
        if ours != theirs:
            found = f"quantization: {name} is {ours}, and the model is trained for {theirs} (qat)"
            return at(config, "quantization", found, "leave the block quantization out: it follows qat by itself")
    return None


def rounding_is_trained_into_full_weights(config: Config) -> Problem | None:
    if config.quant.qat is None:
        return None
    if config.adapter.adapter:
        found = "qat rounds the weights that are written, which with an adapter exist only after the merge"
        return at(
            config, "qat", found, "remove adapter to train the full weights, or remove qat and run `whet quantize`"
        )
    if config.method.rl:
        found = f"qat is built for supervised fine-tuning, and rl is {config.method.rl}"
        return at(config, "qat", found, "remove qat, and run `whet quantize` after training")
    return None


def evaluations_measure_one_model(config: Config) -> Problem | None:
    """Before `fake_quant_after_n_steps` the model is evaluated without the rounding it will have."""
    qat, loop = config.quant.qat, config.loop
    if qat is None or not qat.fake_quant_after_n_steps:
        return None
    compared = {
        "load_best_model_at_end": loop.load_best_model_at_end,
        "early_stopping_patience": loop.early_stopping_patience is not None,
        "save_strategy": loop.save_strategy == "best",
        "lr_scheduler": config.optimizer.lr_scheduler in FOLLOW_EVALUATIONS,
    }
    for key, is_written in compared.items():
        if is_written:
            found = f"{key} compares evaluations, and those of the first {qat.fake_quant_after_n_steps} steps are of "
            found += "the model without rounding (fake_quant_after_n_steps)"
            return at(config, key, found, "remove fake_quant_after_n_steps from qat, or this line")
    return None


QUANTISATION_RULES: tuple[Rule, ...] = (
    weights_and_activations_go_together,
    the_group_fits_the_format,
    groups_are_of_integers,
    embeddings_are_integers,
    what_is_trained_for_is_what_is_written,
    rounding_is_trained_into_full_weights,
    evaluations_measure_one_model,
)
