"""Rules about the loss."""

from __future__ import annotations

from whet.config.config import Config
from whet.config.heads import CUT, PACKAGES, PLUGINS, installed
from whet.config.resolve import asked_heads
from whet.config.rules.base import Rule, at, first_set
from whet.core.errors import Problem
from whet.core.types import Hardware

_TERMS = ("label_smoothing", "z_loss_coefficient", "use_dft", "use_eaft", "liger_use_token_scaling")


def one_head(config: Config) -> Problem | None:
    asked = list(asked_heads(config))
    if len(asked) < 2:
        return None
    return at(config, asked[1], f"{' and '.join(asked)} are all true", "keep one of them")


def chunks_are_asked_for(config: Config) -> Problem | None:
    loss = config.loss
    if loss.chunked_cross_entropy_num_chunks is None or loss.chunked_cross_entropy:
        return None
    return at(
        config,
        "chunked_cross_entropy_num_chunks",
        "chunked_cross_entropy_num_chunks is written, and chunked_cross_entropy is not",
        "add `chunked_cross_entropy: true`",
    )


def token_scaling_is_ligers(config: Config) -> Problem | None:
    loss = config.loss
    if not loss.liger_use_token_scaling or loss.liger_fused_linear_cross_entropy:
        return None
    return at(
        config,
        "liger_use_token_scaling",
        "liger_use_token_scaling is true, and liger_fused_linear_cross_entropy is not",
        "write use_dft: true, which is the same",
    )


def tokens_have_one_weight(config: Config) -> Problem | None:
    asked = [key for key in ("use_eaft", "use_dft", "liger_use_token_scaling") if config.value(key)]
    if "use_eaft" not in asked or len(asked) < 2:
        return None
    return at(config, asked[1], f"{asked[1]} is true, and so is use_eaft", "keep one of them")


def a_preference_has_its_own_loss(config: Config) -> Problem | None:
    method = config.method
    if not (method.rl or method.reward_model or method.process_reward_model):
        return None
    key = next((key for key in _TERMS if config.value(key)), None)
    if key is None:
        return None
    found = f"{key} is about supervised fine-tuning, and this run has a loss of its own"
    return at(config, key, found, "write dpo_label_smoothing" if key == "label_smoothing" else "remove the line")


def plugins_are_known(config: Config) -> Problem | None:
    for name in config.loss.plugins or ():
        if name not in PLUGINS:
            found = f"plugins: '{name}' has no counterpart here"
            return at(config, "plugins", found, f"remove it; known are {', '.join(sorted(PLUGINS))}")
    return None


LOSS_RULES: tuple[Rule, ...] = (
    one_head,
    chunks_are_asked_for,
    token_scaling_is_ligers,
    tokens_have_one_weight,
    a_preference_has_its_own_loss,
    plugins_are_known,
)


def entropy_options_need_eaft(config: Config) -> Problem | None:
    key = first_set(config, ("eaft_alpha", "eaft_k"))
    if key is None or config.loss.use_eaft:
        return None
    return at(config, key, f"{key} changes nothing: use_eaft is off", "add `use_eaft: true`, or remove it")


def the_head_that_is_asked_for_is_installed(config: Config, hardware: Hardware) -> Problem | None:
    key, head = next(iter(asked_heads(config).items()), (None, None))
    if key is None or head is None or hardware.device != "cuda" or installed(head):
        return None
    module, command = PACKAGES[head]
    found = f"{key} is true, and the package {module.replace('_', '-')} is not installed"
    return at(config, key, found, f"{command}, or remove the line: whet's own head keeps as few logits")


def cut_cross_entropy_needs_16_bits(config: Config, hardware: Hardware) -> Problem | None:
    precision = config.precision
    is_full = precision.float32 or (not precision.bf16 and not precision.fp16 and not precision.bfloat16)
    if not config.loss.cut_cross_entropy or hardware.device != "cuda" or not is_full or precision.float16:
        return None
    return at(
        config, CUT, "cut_cross_entropy computes in 16 bits, and this run in float32", "write bf16: true, or remove it"
    )
