"""The tokenizer of a run: loaded, given the tokens the config asks for, and able to pad."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from whet.config import Config
from whet.core.errors import ModelError, Problem
from whet.core.log import say
from whet.core.nearest import suggestion
from whet.model.patches import bound_templates
from whet.model.saved import files_read, try_out
from whet.model.source import cannot_load, locate

# Tokens that model families set aside for padding, most specific first. Only one that the vocabulary has is used.
_MADE_FOR_PADDING = ("<|finetune_right_pad_id|>", "<|pad|>", "<pad>", "[PAD]", "<PAD>", "<|endoftext|>")


def load_tokenizer(config: Config) -> PreTrainedTokenizerBase:
    """The tokenizer that the config describes.

    In this order: load; replace reserved tokens (``added_tokens_overrides``); set ``special_tokens``; add ``tokens``;
    make sure that there is a pad token. The chat template is left as it is, see `with_template`.

    Raises:
        ModelError: nothing can be loaded, it is not a fast tokenizer, or a token cannot be set.
    """
    bound_templates()
    name = config.tokenizer.tokenizer_config or config.model.base_model
    key = "tokenizer_config" if config.tokenizer.tokenizer_config else "base_model"
    tokenizer = _load(name, config, key)
    if config.tokenizer.added_tokens_overrides:
        tokenizer = _with_overrides(tokenizer, config.tokenizer.added_tokens_overrides, config)
    _set_special_tokens(tokenizer, config)
    if config.tokenizer.tokens:
        _add_tokens(tokenizer, config.tokenizer.tokens)
    _ensure_pad_token(tokenizer, config)
    return tokenizer


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> PreTrainedTokenizerBase:
    """The same tokenizer with ``template`` (Jinja text) as its chat template; it is saved with the model."""
    tokenizer.chat_template = template
    return tokenizer


def highest_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The highest token id that the tokenizer can give; ids may have gaps, so ``len`` does not tell."""
    ids: dict[str, int] = tokenizer.get_vocab()
    return max(ids.values())


def _load(name: str, config: Config, key: str) -> PreTrainedTokenizerBase:
    section = config.tokenizer
    if not section.tokenizer_use_fast:
        raise ModelError(
            Problem(
                config.where("tokenizer_use_fast"),
                "tokenizer_use_fast: false asks for a slow tokenizer, and transformers 5 has only fast ones",
                "leave the key out",
                "tokenizer_use_fast",
            )
        )
    source = locate(name, config, key)
    options: dict[str, Any] = {"trust_remote_code": config.model.trust_remote_code}
    if section.tokenizer_legacy is not None:
        options["legacy"] = section.tokenizer_legacy
    if name == config.model.base_model and config.model.revision_of_model:
        options["revision"] = config.model.revision_of_model
    loader = _tokenizer_class(section.tokenizer_type, config)
    with files_read(lambda error: cannot_load(name, source, "tokenizer", error, config, key)):
        tokenizer: PreTrainedTokenizerBase = loader.from_pretrained(source, **options)
        try_out(tokenizer)
    if not tokenizer.is_fast:
        raise ModelError(
            Problem(
                config.where(key),
                f"{key}: '{name}' gives a {type(tokenizer).__name__}, which does not tell where in the text a token is",
                "labels need that: use a model with a tokenizer.json",
                key,
            )
        )
    return tokenizer


def _tokenizer_class(name: str | None, config: Config) -> Any:
    if name is None:
        return AutoTokenizer
    found = getattr(transformers, name, None)
    if found is None or not hasattr(found, "from_pretrained"):
        known = [each for each in dir(transformers) if "Tokenizer" in each]
        raise ModelError(
            Problem(
                config.where("tokenizer_type"),
                f"tokenizer_type: transformers {transformers.__version__} has no '{name}'",
                suggestion(name, known) if len(known) < 8 else f"leave the key out, or {_short(name, known)}",
                "tokenizer_type",
            )
        )
    return found


def _short(name: str, known: list[str]) -> str:
    advice = suggestion(name, known)
    return advice if len(advice) < 100 else "write AutoTokenizer"


def _with_overrides(
    tokenizer: PreTrainedTokenizerBase, overrides: Mapping[int, str], config: Config
) -> PreTrainedTokenizerBase:
    """A tokenizer whose reserved tokens have new texts; ids stay. Done on its saved files, the one public form."""
    reserved = {index: str(token) for index, token in tokenizer.added_tokens_decoder.items()}
    taken = tokenizer.get_vocab()
    problems = []
    for index, text in overrides.items():
        if index not in reserved:
            found = f"added_tokens_overrides: {index} is {tokenizer.convert_ids_to_tokens(index)!r}, not an added token"
            fix = (
                f"use reserved ids, such as {', '.join(map(str, sorted(reserved)[:5])) or '(this tokenizer has none)'}"
            )
            problems.append(Problem(config.where("added_tokens_overrides"), found, fix, "added_tokens_overrides"))
        elif taken.get(text, index) != index:
            found = f"added_tokens_overrides: '{text}' is already token {taken[text]}"
            problems.append(
                Problem(config.where("added_tokens_overrides"), found, "choose another text", "added_tokens_overrides")
            )
    if problems:
        raise ModelError(problems)
    renamed = {reserved[index]: text for index, text in overrides.items()}
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            path = Path(folder) / file
            content = _renamed(json.loads(path.read_text(encoding="utf-8")), renamed)
            path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        changed: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    changed.name_or_path = tokenizer.name_or_path
    return changed


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """``value`` with every string and key that is one of ``names`` replaced, at any depth."""
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [_renamed(each, names) for each in value]
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(each, names) for key, each in value.items()}
    return value


def _set_special_tokens(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    wanted = config.tokenizer.special_tokens
    if wanted is None:
        return
    roles = {role: text for role, text in wanted.model_dump().items() if isinstance(text, str)}
    before = (tokenizer.bos_token, tokenizer.eos_token)
    _announce_new([*roles.values(), *(wanted.additional_special_tokens or ())], tokenizer)
    extra = [str(token) for token in tokenizer.extra_special_tokens]
    extra += [text for text in wanted.additional_special_tokens or () if text not in extra]
    # transformers takes the list of extra tokens as the whole list, so the tokenizer's own must be in it.
    tokenizer.add_special_tokens({**roles, "additional_special_tokens": extra})
    adds_edges = getattr(tokenizer, "add_bos_token", False) or getattr(tokenizer, "add_eos_token", False)
    if adds_edges and before != (tokenizer.bos_token, tokenizer.eos_token):
        tokenizer.update_post_processor()


def _add_tokens(tokenizer: PreTrainedTokenizerBase, tokens: tuple[str, ...]) -> None:
    _announce_new(tokens, tokenizer)
    # Not special: they appear in decoded text. Not normalised: their text is matched as it stands.
    tokenizer.add_tokens([AddedToken(text, lstrip=False, rstrip=False, normalized=False) for text in tokens])


def _announce_new(texts: list[str] | tuple[str, ...], tokenizer: PreTrainedTokenizerBase) -> None:
    known = tokenizer.get_vocab()
    new = [text for text in dict.fromkeys(texts) if text not in known]
    if new:
        say(f"tokenizer: {', '.join(map(repr, new))} {'is' if len(new) == 1 else 'are'} new to the vocabulary")


def _ensure_pad_token(tokenizer: PreTrainedTokenizerBase, config: Config) -> None:
    """Padding is masked by position, never by token, so any token serves; one made for it confuses nobody."""
    if tokenizer.pad_token is not None:
        return
    vocabulary = tokenizer.get_vocab()
    made_for_it = [text for text in _MADE_FOR_PADDING if text in vocabulary]
    candidates = [*made_for_it, tokenizer.unk_token, tokenizer.eos_token]
    chosen = next((token for token in candidates if token is not None), None)
    if chosen is None:
        raise ModelError(
            Problem(
                config.where("special_tokens"),
                "the tokenizer has no pad token, and none that could stand for one (no unknown or end-of-text token)",
                "write special_tokens: {pad_token: ...} with a token of its vocabulary, or a new one",
                "special_tokens",
            )
        )
    tokenizer.pad_token = chosen
    say(f"tokenizer: no pad token; '{chosen}' fills short rows (padding is masked by position, labels are unaffected)")
