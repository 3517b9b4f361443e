"""Pieces of text are all of the text, and no character is torn."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.mistral_tokenizers import mistral_tokenizer
from tests.tiny_tokenizers import tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from whet.reports.pieces import TokenTexts, visible

TEXT = "Hello  world,\n\tna\u00efve \u6771\u4eac \U0001f642 \U0001f469\u200d\U0001f467 \ufffd </script>\x00 end "


def byte_fallback_tokenizer() -> Any:
    """A vocabulary as SentencePiece has it: words with a mark for the space before them, and the bytes."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        "\u2581",
        "\u2581a",
        "b",
        "\u2581\u2581",
    ]
    model = models.BPE(
        vocab={word: at for at, word in enumerate(words)}, merges=[], unk_token="<unk>", byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


TOKENIZERS = {
    "byte level": tiny_tokenizer,
    "sentencepiece": lambda: mistral_tokenizer("mistral_v1"),
    "byte fallback": byte_fallback_tokenizer,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[request.param]()


def shown(tokenizer: Any, ids: list[int]) -> str:
    return "".join(piece.text for piece in TokenTexts(tokenizer).pieces(ids))


def test_pieces_joined_are_the_text(tokenizer: Any) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    # A decoder may take away the space that it has put before the first word; the pieces keep what the tokens say.
    assert shown(tokenizer, ids).lstrip(" ") == TEXT.lstrip(" ")


def test_pieces_hold_every_token_once_and_in_order(tokenizer: Any) -> None:
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    assert [token for piece in TokenTexts(tokenizer).pieces(ids) for token in piece.ids] == ids


@given(st.lists(st.integers(min_value=0, max_value=419), max_size=40))
def test_pieces_of_any_ids_are_what_the_tokenizer_decodes(ids: list[int]) -> None:
    tokenizer = tiny_tokenizer()
    pieces = TokenTexts(tokenizer).pieces(ids)
    assert [token for piece in pieces for token in piece.ids] == ids
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    if not special & set(ids):  # beside an added token the decoder begins anew, in the middle of a character too
        assert b"".join(part for piece in pieces for part in piece.parts).decode(
            "utf-8", "replace"
        ) == tokenizer.decode(ids)


def test_the_tokens_of_one_character_are_one_piece() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("\U0001f642", add_special_tokens=False)["input_ids"]
    assert len(ids) > 1
    (piece,) = TokenTexts(tokenizer).pieces(ids)
    assert piece.text == "\U0001f642"
    assert b"".join(piece.parts) == "\U0001f642".encode()


def test_a_border_parts_a_character_and_its_bytes_stay() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("\U0001f642", add_special_tokens=False)["input_ids"]
    pieces = TokenTexts(tokenizer).pieces(ids, {1})
    assert pieces[0].ids == (ids[0],)
    assert pieces[0].text == "\ufffd"
    assert b"".join(part for piece in pieces for part in piece.parts) == "\U0001f642".encode()


def test_a_broken_character_does_not_swallow_the_text_behind_it() -> None:
    tokenizer = tiny_tokenizer()
    half = tokenizer("\U0001f642", add_special_tokens=False)["input_ids"][:1]
    word = tokenizer("a", add_special_tokens=False)["input_ids"]
    assert [piece.text for piece in TokenTexts(tokenizer).pieces([*half, *word])] == ["\ufffd", "a"]


def test_a_damaged_text_is_told_from_a_broken_character() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer("\ufffd", add_special_tokens=False)["input_ids"]
    (piece,) = TokenTexts(tokenizer).pieces(ids)
    assert b"".join(piece.parts) == "\ufffd".encode()


def test_added_tokens_are_special_and_equal_groups_are_one_object() -> None:
    tokenizer = tiny_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    word = tokenizer("a", add_special_tokens=False)["input_ids"][0]
    first, second, third = TokenTexts(tokenizer).pieces([end, word, end])
    assert first.special
    assert not second.special
    assert first is third


def test_nothing_that_a_terminal_obeys_is_left() -> None:
    unsafe = "".join(map(chr, [*range(32), *range(0x7F, 0xA0), 0x202E, 0x2066, 0x200F, 0xFEFF]))
    assert not set(visible(unsafe)) & (set(unsafe) - {"\n", "\t"})
    assert visible("\u0645\u0631\u062d\u0628\u0627 \U0001f642\n\t") == "\u0645\u0631\u062d\u0628\u0627 \U0001f642\n\t"
