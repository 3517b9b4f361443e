"""Rules about what a config of others may not do: run code that comes with models (none does unless
`trust_remote_code` is written), and reach files by names that are no files' names."""

from __future__ import annotations

import re

from whet.config.config import Config
from whet.config.rules.base import Rule, at
from whet.core.errors import Problem

_OWN_KEYS = {
    "trust_remote_code": "trust_remote_code",
    "revision": "revision_of_model",
    "config": "base_model_config",
    "dtype": "bf16 or fp16",
    "torch_dtype": "bf16 or fp16",
    "quantization_config": "load_in_4bit or load_in_8bit",
    "attn_implementation": "attn_implementation",
    "device_map": "device_map",
    "max_memory": "max_memory",
}
"""Arguments of from_pretrained that whet gives -> the key that says which."""

_RUNNING_CODE = (
    "weights_only",
    "allow_all_kernels",
    "use_kernels",
    "kernel_config",
    "custom_generate",
    "code_revision",
)
"""Arguments that switch off what keeps code of others from running, or name some."""


def model_arguments_have_no_key_of_their_own(config: Config) -> Problem | None:
    given = config.model.overrides_of_model_kwargs or {}
    key = "overrides_of_model_kwargs"
    name = next((name for name in given if name in _OWN_KEYS), None)
    if name is not None:
        return at(config, key, f"{key}: '{name}' is an argument that whet gives", f"write {_OWN_KEYS[name]} instead")
    name = next((name for name in given if name in _RUNNING_CODE), None)
    if name is None:
        return None
    found = f"{key}: '{name}' lets files of others run code, which whet never asks for"
    return at(config, key, found, "remove it; weights that need it are to be saved again as safetensors")


def kernels_of_the_hub_need_trust(config: Config) -> Problem | None:
    name = config.attention.attn_implementation
    if name is None or "/" not in name or config.model.trust_remote_code:
        return None
    found = f"attn_implementation: '{name}' is code that is fetched from the hub and run"
    return at(config, "attn_implementation", found, "write trust_remote_code: true as well, or name one of whet's own")


def code_of_others_is_announced(config: Config) -> Problem | None:
    """A remark: printed by each command and kept in run.json."""
    if not config.model.trust_remote_code:
        return None
    names = (config.model.base_model, config.tokenizer.tokenizer_config, config.attention.attn_implementation)
    shown = ", ".join(f"'{name}'" for name in dict.fromkeys(names) if name is not None)
    found = f"trust_remote_code: Python code that comes with {shown} may run in this process, with all your rights"
    return at(config, "trust_remote_code", found, "remove the line unless you have read that code")


_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_REPOSITORY = re.compile(rf"({_IDENTIFIER.pattern}/)?{_IDENTIFIER.pattern}")


def names_that_become_files_are_plain(config: Config) -> Problem | None:
    """A run's id becomes part of a folder's name, a repository and its branch parts of URLs and of folders."""
    for key, value, pattern in (
        ("wandb_run_id", config.tracking.wandb_run_id, _IDENTIFIER),
        ("hub_model_id", config.output.hub_model_id, _REPOSITORY),
    ):
        if value is not None and (not pattern.fullmatch(value) or ".." in value):
            found = f"{key}: '{value[:60]}' is no name: it becomes part of a path"
            return at(config, key, found, "write letters, digits, and - _ . between them")
    revision = config.output.hub_revision
    if revision is not None and (
        ".." in revision or not re.fullmatch(r"[\w./-]{1,200}", revision) or revision[0] in "/-"
    ):
        found = f"hub_revision: '{revision[:60]}' is no name of a branch"
        return at(config, "hub_revision", found, "write letters, digits, and - _ . / between them")
    return None


TRUST_RULES: tuple[Rule, ...] = (
    model_arguments_have_no_key_of_their_own,
    kernels_of_the_hub_need_trust,
    names_that_become_files_are_plain,
)
