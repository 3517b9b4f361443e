"""What stands beside the weights in a folder that somebody saved: a tokenizer, an adapter's config, how it generates.

transformers and PEFT take the files for their own: one that is cut short or holds something else ends in whatever error
it meets first. Here that is an error that names the folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

from whet.core.errors import ModelError, Problem, WhetError
from whet.core.foreign import OF_ANOTHER_SHAPE

if TYPE_CHECKING:
    from peft import PeftConfig

NOT_READ = (*OF_ANOTHER_SHAPE, OSError, ImportError, NotImplementedError, AssertionError, StrictDataclassError)
"""What the libraries raise at files that are not as they write them. (tokenizers, which is Rust, a bare Exception.)"""

GENERATION = "generation_config.json"
HIGHEST_ID = (1 << 24) - 1


def saved_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        ModelError: it cannot be read.
    """
    with _read("tokenizer", folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        try_out(tokenizer)
    return tokenizer


def try_out(tokenizer: PreTrainedTokenizerBase) -> None:
    """Some of what tokenizer_config.json says is looked at first when a text is encoded; raises what that does then.

    Raises:
        ValueError: an id so high that the gaps below it fill memory; tokenizers counts each when it saves.
    """
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest > HIGHEST_ID:
        raise ValueError(f"it has a token with the id {highest:,}, and {HIGHEST_ID:,} is the highest that can be")
    tokenizer.decode(tokenizer("a")["input_ids"])


def saved_config(folder: Path, *, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config.json of a model in a folder; raises as `saved_tokenizer`."""
    with _read("config.json", folder):
        config: PretrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return config


def saved_adapter_config(folder: Path) -> PeftConfig:
    """The adapter_config.json in a folder; raises as `saved_tokenizer`."""
    from peft import PeftConfig  # a full fine-tuning run does without PEFT

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
def files_read(fault: Callable[[Exception], WhetError]) -> Iterator[None]:
    """Within it, what a library raises at a file that is not as it writes it becomes the ``fault`` made of it."""
    try:
        yield
    except NOT_READ as error:
        raise fault(error) from error
    except Exception as error:
        if type(error) is not Exception:  # tokenizers raises that, and a fault of ours never is
            raise
        raise fault(error) from error


def _read(what: str, folder: Path) -> AbstractContextManager[None]:
    return files_read(lambda error: ModelError(_cannot_read(what, folder, error)))


def _cannot_read(what: str, folder: Path, error: Exception) -> Problem:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return Problem("", f"the {what} in '{folder}' cannot be read ({reason})", "write it again, or name another folder")
