"""What stands beside the weights in a folder that somebody saved: a tokenizer, an adapter's config, how it generates.

transformers and PEFT take the files for their own: one that is cut short or holds something else ends in whatever error
it meets first. Here that is an error that names the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft import PeftConfig
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from whet.core.errors import ModelError, Problem
from whet.core.foreign import OF_ANOTHER_SHAPE

NOT_READ = (*OF_ANOTHER_SHAPE, OSError, ImportError, NotImplementedError)
"""What the libraries raise at files that are not as they write them."""

GENERATION = "generation_config.json"


def saved_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        ModelError: it cannot be read.
    """
    with _read("tokenizer", folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return tokenizer


def saved_adapter_config(folder: Path) -> PeftConfig:
    """The adapter_config.json in a folder; raises as `saved_tokenizer`."""
    with _read("adapter_config.json", folder):
        config: PeftConfig = PeftConfig.from_pretrained(folder)
    return config


def saved_generation_config(folder: Path) -> GenerationConfig | None:
    """The generation_config.json in a folder, None where there is none; raises as `saved_tokenizer`."""
    if not (folder / GENERATION).is_file():
        return None
    with _read(GENERATION, folder):
        config: GenerationConfig = GenerationConfig.from_pretrained(folder)
    return config


@contextmanager
def _read(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except NOT_READ as error:
        raise ModelError(cannot_read(what, folder, error)) from error


def cannot_read(what: str, folder: Path, error: Exception) -> Problem:
    """What to say of a file that is not as the libraries write it."""
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return Problem("", f"the {what} in '{folder}' cannot be read ({reason})", "write it again, or name another folder")
