"""Another engine is used only where it gives the tokenizer's own ids, and no longer than it does."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.conversations import contents
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from whet.data import engines, texts
from whet.data.engines import HARD_STRINGS, Choice, Fast, Ids, Offsets, Reference, choose_engine, find_difference, flat
from whet.data.templates.regions import Span
from whet.data.templates.render import Rendered
from whet.data.templates.resolve import shipped
from whet.data.texts import TextEncoder

HAS_FAST = importlib.util.find_spec("fastokens") is not None
needs_fast = pytest.mark.skipif(not HAS_FAST, reason="fastokens is not installed")

TOKENIZER = byte_level_tokenizer(["<s>", "</s>", "<pad>"])


class Wrong:
    """The reference, but for texts that hold a word."""

    name = "wrong"

    def __init__(self, tokenizer: Any, word: str = "", raises: BaseException | None = None) -> None:
        self.reference, self.word, self.raises = Reference(tokenizer), word, raises

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Offsets]:
        if any(self.word in text for text in texts):
            if self.raises is not None:
                raise self.raises
            parts = [[7] if self.word in text else encoding.ids for text, encoding in self._pairs(texts)]
            return flat(parts)
        return self.reference.encode(texts)

    def _pairs(self, texts: Sequence[str]) -> list[tuple[str, Any]]:
        return list(zip(texts, self.reference.encodings(texts), strict=True))


def test_ids_of_texts_lie_behind_each_other() -> None:
    ids, offsets = Reference(TOKENIZER).encode(["ab", "", "c"])
    assert (ids.dtype, offsets.dtype) == (np.int32, np.int64)
    alone = [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in ("ab", "", "c")]
    assert [ids[a:b].tolist() for a, b in zip(offsets, offsets[1:], strict=False)] == alone  # noqa: RUF007
    assert [part.tolist() for part in Reference(TOKENIZER).encode([])] == [[], [0]]


def test_no_token_is_added() -> None:
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>"], adds_bos=True)
    assert Reference(tokenizer).encode(["a"])[0].tolist() == Reference(TOKENIZER).encode(["a"])[0].tolist()


def test_without_another_engine_the_tokenizers_own_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    choice = choose_engine(TOKENIZER, [])
    assert isinstance(choice.engine, Reference)
    assert choice.why == "fastokens is not installed (pip install fastokens)"


@needs_fast
def test_an_engine_that_gives_the_same_ids_is_used() -> None:
    choice = choose_engine(TOKENIZER, ["my own text"])
    assert choice.engine.name == "fastokens"
    assert choice.why == f"same ids as tokenizers on {len(HARD_STRINGS)} hard strings and 1 of these texts"


class Panic(BaseException):
    """As native code raises it."""


@pytest.mark.parametrize(
    "error", [ValueError("no such model\nat line 3"), Panic("no such model"), ImportError("no such model")]
)
def test_a_tokenizer_that_cannot_be_read_is_no_error(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def refuse(tokenizer: Any) -> Any:
        raise error

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines, "Fast", refuse)
    choice = choose_engine(TOKENIZER, [])
    assert isinstance(choice.engine, Reference)
    assert choice.why == "fastokens cannot read this tokenizer (no such model)"


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_a_person_who_stops_it_is_obeyed(monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]) -> None:
    def stop(tokenizer: Any) -> Any:
        raise interrupt

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines, "Fast", stop)
    with pytest.raises(interrupt):
        choose_engine(TOKENIZER, [])
    with pytest.raises(interrupt):
        find_difference(Wrong(TOKENIZER, raises=interrupt()), Reference(TOKENIZER), ["a"])


@pytest.mark.parametrize(
    ("word", "sample", "told"),
    [
        ("camelCase", [], "other ids for 'snake_case camelCase kebab-case ALLCAPS'"),
        ("mine", ["yours", "mine"], "other ids for 'mine'"),
    ],
)
def test_an_engine_that_gives_other_ids_is_not_used(
    monkeypatch: pytest.MonkeyPatch, word: str, sample: list[str], told: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(engines, "Fast", lambda tokenizer: Wrong(tokenizer, word))
    choice = choose_engine(TOKENIZER, sample)
    assert isinstance(choice.engine, Reference)
    assert choice.why.endswith(told)


@needs_fast
def test_a_tokenizer_of_another_kind_is_read_or_left() -> None:
    made = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    choice = choose_engine(PreTrainedTokenizerFast(tokenizer_object=made), ["a b"])
    assert choice.engine.encode(["a b"])[0].tolist() == [0, 1]


# -- in use ------------------------------------------------------------------------------------------------------------


def encoded(encoder: TextEncoder, *written: str) -> list[list[int]]:
    batch = encoder.batch()
    for text in written:
        batch.add(Rendered(text, (Span(0, len(text)),), ()))
    coded = encoder.encode(batch)
    return [coded.sequence(number)[0].tolist() for number in range(len(written))]


def own(*written: str) -> list[list[int]]:
    return [TOKENIZER(text, add_special_tokens=False)["input_ids"] for text in written]


@pytest.fixture
def wrong_about_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHARS_PER_TOKEN_BEFORE_FAST", 0)
    monkeypatch.setattr(texts, "choose_engine", lambda tokenizer, sample: Choice(Wrong(tokenizer, "secret"), "a test"))


@pytest.mark.parametrize("number", range(9))
def test_an_engine_is_given_up_when_it_gives_other_ids(
    wrong_about_secrets: None, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """Wherever the text stands: where ids do not add up to a text it is encoded again, too."""
    encoder = TextEncoder(TOKENIZER)
    plain = ["words"] * 9
    assert encoded(encoder, *plain) == own(*plain)
    assert encoder.engine == "wrong: a test"
    assert caplog.text == ""
    odd = [*plain[:number], "a secret", *plain[number + 1 :]]
    assert encoded(encoder, *odd) == own(*odd)
    assert "wrong gives other ids than tokenizers for 'a secret'; using tokenizers from here on" in caplog.text
    assert encoder.engine == "tokenizers: wrong gave other ids for 'a secret'"
    caplog.clear()
    assert encoded(encoder, *odd) == own(*odd)
    assert caplog.text == ""


def test_an_engine_that_fails_is_given_up(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(texts, "CHARS_PER_TOKEN_BEFORE_FAST", 0)
    broken = Wrong(TOKENIZER, "secret", raises=ValueError("out of words"))
    monkeypatch.setattr(texts, "choose_engine", lambda tokenizer, sample: Choice(broken, ""))
    assert encoded(TextEncoder(TOKENIZER), "a secret") == own("a secret")
    assert "for 'a text: out of words'" in caplog.text


def test_little_text_is_not_worth_another_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "CHARS_PER_TOKEN_BEFORE_FAST", 10 / len(TOKENIZER))
    monkeypatch.setattr(texts, "choose_engine", lambda tokenizer, sample: Choice(Wrong(tokenizer, "@"), "chosen"))
    encoder = TextEncoder(TOKENIZER)
    assert encoder.engine == ""
    encoded(encoder, "12345")
    assert encoder.engine == "tokenizers: too little text to be worth loading fastokens"
    encoded(encoder, "67890")
    assert encoder.engine == "wrong: chosen"


# -- fastokens ---------------------------------------------------------------------------------------------------------


@cache
def pair_of(name: str) -> tuple[Fast, Reference]:
    if name == "nfc":
        tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>"])
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
        return Fast(tokenizer), Reference(tokenizer)
    return Fast(tiny_tokenizer(name)), Reference(tiny_tokenizer(name))


@needs_fast
@pytest.mark.parametrize("name", ["nfc", *shipped()])
@given(written=st.lists(st.one_of(contents, st.text(max_size=8)), max_size=8), specials=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_fastokens_gives_the_ids_of_tokenizers(name: str, written: list[str], specials: st.DataObject) -> None:
    fast, reference = pair_of(name)
    tokens = [] if name == "nfc" else tiny_tokenizer(name).all_special_tokens
    mixed = [f"{specials.draw(st.sampled_from(tokens))}{text}" if tokens else text for text in written]
    assert find_difference(fast, reference, [*written, *mixed]) is None
    for mine, theirs in zip(fast.encode(mixed), reference.encode(mixed), strict=True):
        assert (mine.dtype, mine.tolist()) == (theirs.dtype, theirs.tolist())


@needs_fast
@pytest.mark.parametrize("name", ["nfc", *shipped()])
def test_fastokens_reads_every_tiny_tokenizer(name: str) -> None:
    fast, reference = pair_of(name)
    assert find_difference(fast, reference, HARD_STRINGS) is None


def test_reading_a_tokenizer_leaves_its_padding_as_it_was() -> None:
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>"])
    plain = engines.tokenizer_json(tokenizer)
    tokenizer.backend_tokenizer.enable_padding(length=7)
    tokenizer.backend_tokenizer.enable_truncation(max_length=5)
    before = tokenizer.backend_tokenizer.to_str()
    assert engines.tokenizer_json(tokenizer) == plain
    assert tokenizer.backend_tokenizer.to_str() == before
