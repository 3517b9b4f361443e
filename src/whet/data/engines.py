"""Texts to ids in bulk: by the tokenizer's own engine, or by a faster one where it is proved to give the same ids.

The faster one is fastokens (Rust, Apache-2.0), whose result is two buffers and no Python object a token. It reads the
tokenizer's own ``tokenizer.json``. Before it is used it must agree with `tokenizers` on a list of hard strings and on
the first texts of the user's own data, and later on a few texts of every chunk.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

HARD_STRINGS: tuple[str, ...] = (
    "",
    " ",
    "  ",
    "\n",
    "\r\n",
    "\t\t x",
    "a",
    " a",
    "a ",
    "  two  spaces  ",
    "line one\nline two\n\n\nline five",
    "trailing newline\n",
    "don't can't I'LL we've 's 'S",
    "1234567890 12 345 6,789.01 1e-5 0x1F ½ ² ٣٤",
    "snake_case camelCase kebab-case ALLCAPS",
    "def f(x):\n    return {'a': [1, 2], \"b\": x**2}  # comment\n",
    "<|im_start|><|im_end|></s><s>[INST][/INST]<unk><pad>",
    "https://example.org/?q=a%20b&c=d#e user@example.org",
    "naïve café Ünïcödé ẞ ﬁ Å Å é e\u0301",
    "漢字かな交じり文 한국어 ไทย العربية עברית हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈 e\u0301\u0327 \u200b\u200d\ufeff\u00ad",
    "\u00a0\u2003\u3000 \u2028\u2029\x0b\x0c\x85",
    "\x00\x01\x7f \ufffd \U0010ffff \U0001d54f",
    "a" * 600,
    " " * 300,
    "ab" * 300 + "\n" * 40,
    "!!!??? ... --- === ``` ~~~ $$$ \\\\ ////",
    "İstanbul ǅ ǆ ß SS ﬀ ⅷ ①",
)
"""Where pre-tokenizers, normalizers and Unicode tables are known to differ."""


class Engine(Protocol):
    """Turns texts into ids, adding no tokens of its own."""

    @property
    def name(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        """ids int32[T] of all texts, and offsets int64[N + 1]: text n has ``ids[offsets[n]:offsets[n + 1]]``."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """The engine that was chosen, and the sentence that says why."""

    engine: Engine
    why: str


class Reference:
    """The tokenizer's own engine, `tokenizers`."""

    name = "tokenizers"

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        return flat([encoding.ids for encoding in self.encodings(texts)])

    def encodings(self, texts: Sequence[str]) -> list[Any]:
        """One ``tokenizers.Encoding`` a text: it also knows which characters a token stands for."""
        if not texts:
            return []
        batch = self._tokenizer(
            list(texts),
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return list(batch.encodings)


class Fast:
    """fastokens.

    Raises:
        ImportError: it is not installed.
        ValueError: it cannot do what this tokenizer does.
    """

    name = "fastokens"

    def __init__(self, tokenizer: Any) -> None:
        import fastokens

        self._native = fastokens.Tokenizer.from_json_str(tokenizer_json(tokenizer))

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        ids, offsets = self._native.encode_batch_flat(texts if isinstance(texts, list) else list(texts))
        return np.frombuffer(ids, np.int32), np.frombuffer(offsets, np.int64)


def tokenizer_json(tokenizer: Any) -> str:
    """The tokenizer as its ``tokenizer.json``, without padding and truncation: these are the state of the last call."""
    backend = tokenizer.backend_tokenizer
    padding, truncation = backend.padding, backend.truncation
    backend.no_padding()
    backend.no_truncation()
    text: str = backend.to_str()
    if padding is not None:
        backend.enable_padding(**padding)
    if truncation is not None:
        backend.enable_truncation(**truncation)
    return text


def flat(sequences: Sequence[Sequence[int]]) -> tuple[Ids, Offsets]:
    """Lists of ids as one array and offsets."""
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in sequences])]).astype(np.int64)
    parts = [np.asarray(ids, dtype=np.int32) for ids in sequences]
    return np.concatenate([np.zeros(0, np.int32), *parts]), offsets


def choose_engine(tokenizer: Any, sample: Sequence[str]) -> Choice:
    """The fastest engine that gives the tokenizer's ids on the hard strings and on the sample.

    Args:
        tokenizer: a fast tokenizer of transformers.
        sample: texts of the user's own data.
    """
    reference = Reference(tokenizer)
    if importlib.util.find_spec("fastokens") is None:
        return Choice(reference, "fastokens is not installed (pip install fastokens)")
    try:
        fast = Fast(tokenizer)
    except BaseException as error:  # noqa: BLE001 - native code; a panic of it is no Exception
        _pass_on_interrupts(error)
        return Choice(reference, f"fastokens cannot read this tokenizer ({_first_line(error)})")
    texts = [*HARD_STRINGS, *sample]
    difference = find_difference(fast, reference, texts)
    if difference is not None:
        return Choice(reference, f"fastokens gives other ids for {difference!r}")
    return Choice(fast, f"same ids as tokenizers on {len(HARD_STRINGS)} hard strings and {len(sample)} of these texts")


def attempt(engine: Engine, texts: Sequence[str]) -> tuple[Ids, Offsets] | str:
    """What an engine makes of texts, or the first line of what it died of."""
    try:
        return engine.encode(texts)
    except BaseException as error:  # noqa: BLE001 - see choose_engine
        _pass_on_interrupts(error)
        return f"a text: {_first_line(error)}"


def find_difference(one: Engine, other: Engine, texts: Sequence[str]) -> str | None:
    """The beginning of the first text that two engines encode differently; None if there is none."""
    first, second = attempt(one, texts), attempt(other, texts)
    if isinstance(first, str) or isinstance(second, str):
        return first if isinstance(first, str) else str(second)
    (ids, offsets), (other_ids, other_offsets) = first, second
    for number, text in enumerate(texts):
        mine = ids[offsets[number] : offsets[number + 1]]
        if not np.array_equal(mine, other_ids[other_offsets[number] : other_offsets[number + 1]]):
            return text[:60]
    return None


def _pass_on_interrupts(error: BaseException) -> None:
    if isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
        raise error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
