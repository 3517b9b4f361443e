"""Mistral's own tokenizers, as they come with the package `mistral-common`, made fast ones. No network."""

from __future__ import annotations

import functools
import shutil
import tempfile
from importlib.resources import files
from pathlib import Path
from typing import Any

from whet.data.templates.resolve import shipped_template

#: Template -> file of the package.
FILES = {
    "mistral_v1": "tokenizer.model.v1",
    "mistral_v2v3": "mistral_instruct_tokenizer_240323.model.v3",
    "mistral_v3_tekken": "tekken_240718.json",
    "mistral_v7_tekken": "tekken_240911.json",
}


def mistral_file(template_name: str) -> Path:
    """The file of the tokenizer that a shipped template belongs to."""
    return Path(str(files("mistral_common"))) / "data" / FILES[template_name]


@functools.cache
def mistral_tokenizer(template_name: str) -> Any:
    """A fast tokenizer of transformers, with the shipped template. Tekken has 131,072 tokens, the others 32,768."""
    source = mistral_file(template_name)
    if source.suffix == ".json":
        from transformers.integrations.mistral import convert_tekken_tokenizer

        tokenizer = convert_tekken_tokenizer(str(source))
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    else:
        from transformers import LlamaTokenizer

        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(source, Path(folder) / "tokenizer.model")
            tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False, add_prefix_space=False)
    tokenizer.chat_template = shipped_template(template_name)
    return tokenizer
