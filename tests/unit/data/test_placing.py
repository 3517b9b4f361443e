"""The arithmetic of bytes marks the tokens that the tokenizer's own record of characters marks."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.tiny_tokenizers import byte_level_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from whet.data.placing import ByteLengths, SpanList, byte_lengths, overlapping
from whet.data.templates.regions import Span, merged
from whet.data.templates.render import Rendered
from whet.data.texts import Coded, TextEncoder

_ADDED = [
    AddedToken("<l>", lstrip=True, special=True, normalized=False),
    AddedToken("<r>", rstrip=True, special=True, normalized=False),
    AddedToken("<é>", special=False, normalized=True),
    AddedToken("<word>", single_word=True, special=True, normalized=False),
]


@cache
def tokenizer_of(kind: str) -> Any:
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>", "<c>"], 256 + 8 if kind == "bytes" else 420)
    if kind == "nfc":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    if kind == "added":
        tokenizer.add_tokens(_ADDED)
    return tokenizer


KINDS = ["merges", "bytes", "nfc", "added"]

_PIECES = [
    *("<s>", "</s>", "<c>", "<l>", "<r>", "<é>", "<e\u0301>", "<word>", " <l> ", " <r> ", "x<word>", " <word>!"),
    *(
        "e\u0301",
        "é",
        "🙂",
        "👩‍👩‍👧‍👦",
        "東京",
        "\u1100\u1161",
        "Å",
        " ",
        "  ",
        "\n",
        "ab",
        "The quick ",
        "function",
        "",
        "0",
    ),
]
texts = st.lists(
    st.one_of(st.sampled_from(_PIECES), st.text(st.characters(codec="utf-8"), max_size=4)), max_size=8
).map("".join)


@st.composite
def spans_in(draw: st.DrawFn, text: str) -> tuple[Span, ...]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    return merged(map(Span, places[0::2], places[1::2]))


@st.composite
def rendered_texts(draw: st.DrawFn) -> list[Rendered]:
    written = draw(st.lists(texts, max_size=5))
    return [Rendered(text, draw(spans_in(text)), draw(spans_in(text))) for text in written]


def coded(kind: str, rendered: list[Rendered], *, by_bytes: bool) -> Coded:
    encoder = TextEncoder(tokenizer_of(kind), ("<é>",))
    assert encoder._bytes is not None
    if not by_bytes:
        encoder._bytes = None
    batch = encoder.batch()
    assert [batch.add(one) for one in rendered] == list(range(len(rendered)))
    return encoder.encode(batch)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_bytes_mark_what_characters_mark(kind: str, data: st.DataObject) -> None:
    rendered = data.draw(rendered_texts())
    one, other = coded(kind, rendered, by_bytes=True), coded(kind, rendered, by_bytes=False)
    assert one.ids.tolist() == other.ids.tolist()
    assert one.offsets.tolist() == other.offsets.tolist()
    assert one.supervised.tolist() == other.supervised.tolist()
    assert {n: str(error) for n, error in one.refused.items()} == {n: str(error) for n, error in other.refused.items()}
    for number, text in enumerate(rendered):
        for char in range(len(text.text) + 1):
            assert one.first_token(number, char) == other.first_token(number, char)


@pytest.mark.parametrize("kind", KINDS)
@given(text=texts, data=st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_token_is_marked_if_its_first_byte_is(kind: str, text: str, data: st.DataObject) -> None:
    """Where tokens are bytes and nothing is lost: by their own bytes, one after the other."""
    tokenizer = tokenizer_of(kind)
    spans = data.draw(spans_in(text))
    result = coded(kind, [Rendered(text, spans, ())], by_bytes=True)
    decoder = {character: byte for byte, character in _byte_characters().items()}
    added = {number: token.content for number, token in tokenizer.added_tokens_decoder.items()}
    pieces = [
        added[i].encode() if i in added else bytes(decoder[c] for c in tokenizer.convert_ids_to_tokens(i))
        for i in result.ids.tolist()
    ]
    if b"".join(pieces) != text.encode():
        return
    before, expected = 0, []
    for piece in pieces:
        char = len(text.encode()[:before].decode(errors="ignore"))  # that it begins, or is a later part of
        expected.append(any(span.begin <= char < span.end for span in spans))
        before += len(piece)
    assert result.supervised.tolist() == expected


def _byte_characters() -> dict[int, str]:
    """The character that byte-level tokenizers write for each byte (Radford et al., 2019)."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + n) for n, byte in enumerate(hidden)}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda made: setattr(made, "normalizer", normalizers.Lowercase()), "it rewrites texts (Lowercase)"),
        (
            lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.ByteLevel(add_prefix_space=True)),
            "it puts a space before a text",
        ),
        (lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Whitespace()), "its tokens are not bytes"),
        (lambda made: setattr(made, "model", models.BPE(byte_fallback=True)), "its tokens are not bytes (BPE)"),
        (lambda made: setattr(made, "model", models.WordLevel()), "its tokens are not bytes (WordLevel)"),
    ],
)
def test_a_tokenizer_whose_tokens_are_not_the_texts_bytes_has_no_arithmetic(change: Any, why: str) -> None:
    tokenizer = byte_level_tokenizer(["<s>", "</s>", "<pad>"])
    assert isinstance(byte_lengths(tokenizer), ByteLengths)
    change(tokenizer.backend_tokenizer)
    assert byte_lengths(tokenizer) == why


def test_a_tokenizer_without_arithmetic_is_asked_for_characters() -> None:
    made = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.decoder = decoders.Fuse()
    encoder = TextEncoder(PreTrainedTokenizerFast(tokenizer_object=made))
    batch = encoder.batch()
    assert batch.unit == "chars"
    batch.add(Rendered("a  b é a", (Span(1, 6),), ()))  # white space before a token is the token's
    result = encoder.encode(batch)
    assert result.sequence(0)[0].tolist() == [0, 1, 2, 0]
    assert result.sequence(0)[1].tolist() == [False, True, True, False]
    assert encoder.engine == "tokenizers: its tokens are not bytes (WordLevel)"


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_ranges_that_touch_a_span_are_found(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 12), min_size=1, max_size=3))
    text_begins = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64)
    spans, inside = [], np.zeros(sum(lengths) + 1, np.bool_)
    for text, length in enumerate(lengths):
        places = sorted(data.draw(st.lists(st.integers(0, length), max_size=6, unique=True)))
        for begin, end in zip(places[0::2], places[1::2], strict=False):
            spans.append((text, begin, end))
            inside[text_begins[text] + begin : text_begins[text] + end] = True
    spans = data.draw(st.permutations(spans))
    total = sum(lengths)
    pairs = st.tuples(st.integers(0, total), st.integers(0, total)).map(sorted).filter(lambda pair: pair[0] < pair[1])
    ranges = data.draw(st.lists(pairs, max_size=8)) if total else []
    begins, ends = (np.array([pair[side] for pair in ranges], np.int64) for side in (0, 1))
    expected = [bool(inside[begin:end].any()) for begin, end in ranges]
    assert overlapping(begins, ends, text_begins, SpanList.of(spans)).tolist() == expected
