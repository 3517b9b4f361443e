"""Rules about the names of things that other layers build."""

from __future__ import annotations

from collections.abc import Mapping

from whet.config.config import Config
from whet.config.names import (
    ADAPTERS,
    ATTENTION,
    ATTENTION_MAPPED,
    ATTENTION_REFUSED,
    ATTENTION_SHORT,
    CHAT_TEMPLATES,
    CHAT_TEMPLATES_NOT_YET,
    DPO_LOSSES,
    LORA_STARTS,
    LORA_STARTS_NOT_YET,
    METHODS,
    METHODS_NOT_YET,
    METHODS_PREPARED,
    OPTIMIZERS,
    OPTIMIZERS_REFUSED,
    SCHEDULERS,
    TEMPLATE_VARIABLES_TAKEN,
)
from whet.config.optimizers import missing
from whet.config.rules.base import Place, Rule, at, contributed, shown_place
from whet.config.tasks import method_key
from whet.core.errors import Problem
from whet.core.nearest import suggestion


def the_method_exists(config: Config) -> Problem | None:
    name = config.method.rl
    if name is None or name in (*METHODS, *METHODS_PREPARED) or contributed("methods", name):
        return None
    if name in METHODS_NOT_YET:
        return at(config, "rl", f"rl: {name} is not supported yet", "write rl: dpo, or leave it out")
    return at(config, "rl", f"rl: there is no method '{name}'", suggestion(name, (*METHODS, *METHODS_PREPARED)))


def there_is_one_method(config: Config) -> Problem | None:
    method = config.method
    written = [key for key in ("rl", "reward_model", "process_reward_model") if getattr(method, key)]
    if len(written) < 2:
        return None
    return at(config, written[1], f"{written[1]} is written, and so is {written[0]}", "keep one of them")


def check_trainable(config: Config) -> list[Problem]:
    """What stands between the config and training, although its data can be prepared; before torch is imported."""
    found = (_method_is_built(config), _optimizer_is_installed(config))
    return [problem for problem in found if problem is not None]


def _method_is_built(config: Config) -> Problem | None:
    key, name = method_key(config), config.method.rl
    if key is None or name in METHODS or (name is not None and contributed("methods", name)):
        return None
    found = f"training with {key} is not built: its data can be prepared and looked at (`whet preprocess`)"
    return at(config, key.partition(":")[0], found, "write rl: dpo, or leave it out, to train")


def _optimizer_is_installed(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    reason = missing(name)
    if reason is None:
        return None
    return at(config, "optimizer", f"optimizer: {name} cannot be used: {reason}", "install it, or write another")


def the_optimizer_exists(config: Config) -> Problem | None:
    name = config.optimizer.optimizer
    if name in OPTIMIZERS or contributed("optimizers", name):
        return None
    if name in OPTIMIZERS_REFUSED:
        reason, fix = OPTIMIZERS_REFUSED[name]
        return at(config, "optimizer", f"optimizer: {name} is not built: {reason}", fix)
    return at(config, "optimizer", f"optimizer: there is no '{name}'", suggestion(name, OPTIMIZERS))


def the_scheduler_exists(config: Config) -> Problem | None:
    name = config.optimizer.lr_scheduler
    if name in SCHEDULERS:
        return None
    return at(config, "lr_scheduler", f"lr_scheduler: there is no '{name}'", suggestion(name, SCHEDULERS))


def the_adapter_exists(config: Config) -> Problem | None:
    name = config.adapter.adapter
    if name is None or name in ADAPTERS:
        return None
    return at(config, "adapter", f"adapter: there is no '{name}'", suggestion(name, ADAPTERS))


def the_adapter_start_exists(config: Config) -> Problem | None:
    name = config.adapter.peft_init_lora_weights
    if name is None or isinstance(name, bool) or name in LORA_STARTS:
        return None
    key = "peft_init_lora_weights"
    if name in LORA_STARTS_NOT_YET or name.startswith("pissa_niter_"):
        return at(config, key, f"{key}: {name} is not supported yet", "write true, gaussian or orthogonal")
    return at(config, key, f"{key}: there is no '{name}'", suggestion(name, (*LORA_STARTS, "true", "false")))


def the_attention_exists(config: Config) -> Problem | None:
    name = config.attention.attn_implementation
    if name is None or name in {*ATTENTION, *ATTENTION_SHORT, *ATTENTION_MAPPED} or "/" in name:
        return None
    key = "attn_implementation"
    if name in ATTENTION_REFUSED:
        return at(config, key, f"{key}: {name} is not computed: {ATTENTION_REFUSED[name]}", "remove the line")
    return at(config, key, f"{key}: there is no '{name}'", suggestion(name, ATTENTION))


def the_losses_exist(config: Config) -> Problem | None:
    for name in config.method.dpo_loss_type or ():
        if name not in DPO_LOSSES:
            return at(config, "dpo_loss_type", f"dpo_loss_type: there is no '{name}'", suggestion(name, DPO_LOSSES))
    return None


def the_template_exists(config: Config) -> Problem | None:
    return template_problem(config, ("chat_template",), config.template.chat_template)


def template_problem(config: Config, place: Place, name: str | None) -> Problem | None:
    if name in (None, "jinja", "tokenizer_default"):
        return None
    shown = shown_place(place)
    bare = name.removeprefix("tokenizer_default_fallback_")
    if bare in CHAT_TEMPLATES:
        return None
    where, key = config.where(place), str(place[0])
    if bare in CHAT_TEMPLATES_NOT_YET:
        return Problem(
            where,
            f"{shown}: the template {bare} is not shipped",
            "write tokenizer_default, or jinja with its text",
            key,
        )
    names = (*CHAT_TEMPLATES, "tokenizer_default", "jinja")
    return Problem(where, f"{shown}: there is no template '{name}'", suggestion(bare, names), key)


def template_variables_have_free_names(config: Config) -> Problem | None:
    return variables_problem(config, ("chat_template_kwargs",), config.template.chat_template_kwargs)


def variables_problem(config: Config, place: Place, variables: Mapping[str, object] | None) -> Problem | None:
    taken = next((name for name in variables or () if name in TEMPLATE_VARIABLES_TAKEN), None)
    if taken is None:
        return None
    found = f"{shown_place(place)}: '{taken}' cannot be a variable of the template"
    return Problem(config.where((*place, taken)), found, TEMPLATE_VARIABLES_TAKEN[taken], str(place[0]))


NAME_RULES: tuple[Rule, ...] = (
    the_method_exists,
    there_is_one_method,
    the_optimizer_exists,
    the_scheduler_exists,
    the_adapter_exists,
    the_adapter_start_exists,
    the_attention_exists,
    the_losses_exist,
    the_template_exists,
    template_variables_have_free_names,
)
