"""Which chat template a config asks for, and the renderer and policy that a dataset's options make of it."""

from __future__ import annotations

from datetime import date
from importlib import resources
from pathlib import Path
from typing import Any

from whet.config.config import Config
from whet.config.names import CHAT_TEMPLATES_NOT_YET
from whet.config.schema.data import DatasetConfig
from whet.core.disk import read_small
from whet.core.errors import ConfigError, Problem
from whet.core.log import warn
from whet.core.nearest import nearest
from whet.core.sandbox import budget
from whet.data.templates.render import Renderer, TrainPolicy

_FALLBACK = "tokenizer_default_fallback_"


def shipped() -> list[str]:
    """Names of the templates in this folder, sorted."""
    folder = resources.files("whet.data.templates")
    return sorted(file.name.removesuffix(".jinja") for file in folder.iterdir() if file.name.endswith(".jinja"))


def shipped_template(name: str, where: str = "") -> str:
    """Jinja text of a shipped template.

    Raises:
        ConfigError: there is none of this name.
    """
    names = shipped()
    if name in names:
        return resources.files("whet.data.templates").joinpath(f"{name}.jinja").read_text(encoding="utf-8")
    specials = ["jinja", "tokenizer_default"]
    if name in CHAT_TEMPLATES_NOT_YET:
        found = f"the chat template '{name}' is not shipped yet"
        fix = "use the model's own (chat_template: tokenizer_default), or its text with chat_template: jinja"
    else:
        close = nearest(name, [*names, *specials])
        found = f"'{name}' is not a chat template"
        fix = f"{f'did you mean {close!r}? ' if close else ''}use one of: {', '.join([*names, *specials])}"
    raise ConfigError(Problem(where, found, fix, "chat_template"))


def resolve_template(config: Config, dataset: DatasetConfig | None, tokenizer: Any) -> str:
    """Jinja text of the chat template for a dataset; for the run as a whole without one.

    Raises:
        ConfigError: no such template, or the tokenizer has none of its own.
    """
    name, jinja, place = _asked_for(config, dataset)
    where = config.where((*place, "chat_template")) if place else config.where("chat_template")
    if name == "jinja":
        return _jinja_text(config, jinja, place, where)
    if name is None or name == "tokenizer_default" or name.startswith(_FALLBACK):
        own = _tokenizer_template(tokenizer)
        if own is not None:
            return own
        if name is not None and name.startswith(_FALLBACK):
            return shipped_template(name.removeprefix(_FALLBACK), where)
        found = "the tokenizer has no chat template of its own"
        fix = f"set chat_template to one of: {', '.join(shipped())}"
        raise ConfigError(Problem(where, found, fix, "chat_template"))
    return shipped_template(name, where)


def _asked_for(config: Config, dataset: DatasetConfig | None) -> tuple[str | None, str | None, tuple[str | int, ...]]:
    """Name and Jinja text, and the place of the keys: the dataset's own if it has any, else the top-level ones."""
    if dataset is not None and (dataset.chat_template or dataset.chat_template_jinja):
        asked, place = (dataset.chat_template, dataset.chat_template_jinja), dataset_place(config, dataset)
    else:
        asked, place = (config.template.chat_template, config.template.chat_template_jinja), ()
    name, jinja = asked
    return ("jinja" if name is None and jinja is not None else name), jinja, place


def _jinja_text(config: Config, jinja: str | None, place: tuple[str | int, ...], where: str) -> str:
    if not jinja:
        fix = "write the Jinja text, or the path of a file with it, there"
        raise ConfigError(Problem(where, "chat_template is 'jinja' but chat_template_jinja is empty", fix))
    if "{" in jinja or "\n" in jinja:
        return jinja
    file = next((path for path in (Path(jinja), Path(config.file).parent / jinja) if path.is_file()), None)
    if file is None:
        at = config.where((*place, "chat_template_jinja")) if place else config.where("chat_template_jinja")
        raise ConfigError(Problem(at, f"there is no file '{jinja}'", "correct the path, or write the template itself"))
    try:
        return read_small(file, 4 * budget.LIMITS.text).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        at = config.where((*place, "chat_template_jinja")) if place else config.where("chat_template_jinja")
        found = f"'{file}' cannot be read as a template ({getattr(error, 'strerror', None) or error})"
        raise ConfigError(Problem(at, found, "name a file of UTF-8 text")) from error


def _tokenizer_template(tokenizer: Any) -> str | None:
    """The tokenizer's own template; of several, the one named "default"."""
    own = tokenizer.chat_template
    return own.get("default") if isinstance(own, dict) else own


def dataset_place(config: Config, dataset: DatasetConfig) -> tuple[str | int, ...]:
    """Where a dataset stands in the config: ``("datasets", 0)``; empty if it is not in it."""
    for key in ("datasets", "test_datasets"):
        for number, candidate in enumerate(getattr(config.data, key)):
            if candidate is dataset:
                return (key, number)
    return ()


def template_place(config: Config, dataset: DatasetConfig) -> str:
    """The place of the key that names a dataset's template: its own, or the one for all."""
    place = dataset_place(config, dataset)
    own = bool(place and (dataset.chat_template or dataset.chat_template_jinja))
    return config.where((*place, "chat_template")) if own else config.where("chat_template")


def policy_of(config: Config, dataset: DatasetConfig) -> TrainPolicy:
    """Which turns a dataset's options train."""
    on_inputs = config.data.train_on_inputs if dataset.train_on_inputs is None else dataset.train_on_inputs
    names = dataset.roles_to_train
    roles = None if on_inputs else frozenset(names if names is not None else ("assistant",))
    on_eos = dataset.train_on_eos or "turn"
    return TrainPolicy(roles, on_eos, dataset.train_on_eot or on_eos)


def renderer_for(
    config: Config, dataset: DatasetConfig, tokenizer: Any, template: str | None = None, today: date | None = None
) -> Renderer:
    """The renderer of a dataset's conversations, with ``template`` (Jinja text) or the one the options ask for.

    ``today`` is the day that a template is told which asks for it; the day of the call where it is left out.

    Raises:
        ConfigError: an entry of ``eot_tokens`` is not one token, or the template is not Jinja.
        DataError: the template cannot be used.
    """
    where = template_place(config, dataset)
    text = template if template is not None else resolve_template(config, dataset, tokenizer)
    kwargs = {**(config.template.chat_template_kwargs or {}), **(dataset.chat_template_kwargs or {})}
    renderer = Renderer(text, tokenizer, kwargs, config.template.eot_tokens, where, today)
    _check_eot_tokens(config, tokenizer, renderer)
    return renderer


def _check_eot_tokens(config: Config, tokenizer: Any, renderer: Renderer) -> None:
    where = config.where("eot_tokens")
    tokens = config.template.eot_tokens or ()
    several = [token for token in tokens if len(tokenizer(token, add_special_tokens=False)["input_ids"]) != 1]
    if several:
        fix = "add it under `tokens`, or name a token that the tokenizer has"
        found = "eot token '{}' is not one token of this tokenizer"
        raise ConfigError(Problem(where, found.format(token), fix, "eot_tokens") for token in several)
    for token in tokens:
        if token not in renderer.writes:
            found = f"the chat template never writes the eot token '{token}', so it has no effect"
            warn(Problem(where, found, "name the token that the template writes after a turn", "eot_tokens"))
