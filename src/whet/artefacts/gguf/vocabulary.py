"""A tokenizer as GGUF holds it: pieces with their kinds, and either merges (byte-level BPE) or scores (SentencePiece).

llama.cpp has its own programs for both, chosen by two names (``tokenizer.ggml.model`` and ``.pre``). A tokenizer that
does something which none of these programs does is refused: it would cut text into other tokens than in training.
"""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from whet.artefacts.prompts import CONVERSATIONS
from whet.core.errors import ArtefactError, Problem
from whet.model.stops import template_turn_end

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Kinds of pieces, as GGUF numbers them."""

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_ENDS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CAPITALS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)

_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}"
_QWEN2 = rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_ENDS}"
_TEKKEN = rf"{'|'.join(_CAPITALS)}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
_GPT4O = (
    rf"{'|'.join(f'{each}{_CONTRACTIONS}?' for each in _CAPITALS)}"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_ENDS}"
)

PRE_TOKENIZERS: Mapping[tuple[str, bool], str] = {
    ("gpt-2", False): "gpt-2",
    ("digits, gpt-2", False): "smollm",
    (_LLAMA3, True): "llama-bpe",
    (_LLAMA3, False): "smaug-bpe",
    (_QWEN2, False): "qwen2",
    (_TEKKEN, True): "tekken",
    (_GPT4O, False): "gpt-4o",
}
"""(how text is split, whether whole words skip the merges) -> llama.cpp's name of the program that does the same.

Its converter knows tokenizers by a hash of what they make of one text; by what they are told to do, a tokenizer of
one's own is known too, and nothing that does something else is.
"""


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF says of a tokenizer.

    Attributes:
        model: "gpt2" for byte-level BPE, "llama" for SentencePiece.
        pre: llama.cpp's name for the way of splitting.
        tokens, kinds: of every id of the embedding.
        scores: of SentencePiece's pieces; empty for BPE.
        merges: of BPE, as "left right"; empty for SentencePiece.
        special: bos, eos, unk, pad, eot -> id.
        adds_bos, adds_eos: whether they are to be put around every text (`to_put_around`).
        prefixes_space: whether SentencePiece puts a space in front of text.
        template: Jinja.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    kinds: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    prefixes_space: bool
    template: str | None


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer for an embedding of so many rows.

    Raises:
        ArtefactError: llama.cpp has no program that cuts text as this tokenizer does.
    """
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"]["type"] != "BPE":
        raise _refused(f"is of the kind {told['model']['type']}, and whet writes BPE and SentencePiece's BPE alone")
    tokens, kinds = _tokens(told, rows)
    is_sentencepiece = bool(told["model"].get("byte_fallback"))
    if is_sentencepiece:
        scores, prefixes = _scores(told, tokens), _prefixes_space(told, tokenizer)
        model, pre = "llama", "default"
        merges: tuple[str, ...] = ()
        kinds = _sentencepiece_kinds(told, tokens, kinds)
    else:
        model, pre, scores, prefixes = "gpt2", _pre_tokenizer(told), (), False
        merges = tuple(" ".join(pair) for pair in _pairs(told))
        if not merges:
            raise _refused("has no merges (every token is a byte), and llama.cpp needs some")
    bos, eos = to_put_around(tokenizer)
    found = Vocabulary(
        model,
        pre,
        tokens,
        kinds,
        scores,
        merges,
        _special(tokenizer),
        adds_bos=bos,
        adds_eos=eos,
        prefixes_space=prefixes,
        template=_template(tokenizer),
    )
    if is_sentencepiece:
        _check_scores(found, tokenizer)
    return found


def puts_around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer itself puts BOS and EOS around a text."""
    bos, eos, coded = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer("x").input_ids
    return bos is not None and coded[0] == bos, eos is not None and coded[-1] == eos


def to_put_around(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether BOS and EOS are to be put around every text, so that a chat has the ids of training.

    llama.cpp and Ollama do it to the text of a chat too, where training took the ids of the template's text as they
    are. So with a template BOS is put in front only if the template writes it there, and EOS never behind.
    """
    adds_bos, adds_eos = puts_around(tokenizer)
    if not (adds_bos or adds_eos) or not tokenizer.chat_template:
        return adds_bos, adds_eos
    try:
        text = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except (TemplateError, TypeError, ValueError):
        return adds_bos, adds_eos
    return adds_bos and str(text).startswith(str(tokenizer.bos_token)), False


def name_for(name: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """The name for ``general.name``, by which llama.cpp decides whether control tokens swallow the space behind them.

    It does so for names with "phi-3" in them, and looks up tokens that only Phi-3's tokenizer has.

    Raises:
        ArtefactError: tokens swallow spaces, and this is not Phi-3's tokenizer.
    """
    added = tokenizer.added_tokens_decoder.values()
    if any(token.lstrip or token.single_word for token in added):
        raise _refused("has tokens that swallow the space before them, or stand as whole words alone")
    is_phi3 = {"<unk>", "<s>", "</s>", "<|endoftext|>"} <= tokenizer.get_vocab().keys()
    if any(token.rstrip for token in added):
        if not is_phi3:
            raise _refused("has tokens that swallow the space behind them, which llama.cpp does for Phi-3 alone")
        return name if "phi-3" in name.lower() else f"{name} (tokenizer of phi-3)"
    return re.sub(r"(?i)phi-?3", "phi_3", name)


def write_vocabulary(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    """All of it, as fields of the file."""
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.prefixes_space)
    writer.add_token_types(vocabulary.kinds)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    add = {
        "bos": writer.add_bos_token_id,
        "eos": writer.add_eos_token_id,
        "unk": writer.add_unk_token_id,
        "pad": writer.add_pad_token_id,
        "eot": writer.add_eot_token_id,
    }
    for name, index in vocabulary.special.items():
        add[name](index)
    writer.add_add_bos_token(vocabulary.adds_bos)
    writer.add_add_eos_token(vocabulary.adds_eos)
    if vocabulary.template:
        writer.add_chat_template(vocabulary.template)


def _refused(what: str) -> ArtefactError:
    return ArtefactError(
        Problem("", f"the tokenizer {what}", "no GGUF is written: it would cut text into other tokens than in training")
    )


def _tokens(told: Mapping[str, Any], rows: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Of every row of the embedding; a row without a token has a name that no text gives."""
    by_id = {index: token for token, index in told["model"]["vocab"].items()}
    kinds = dict.fromkeys(by_id, NORMAL)
    for added in told["added_tokens"]:
        by_id[added["id"]] = added["content"]
        kinds[added["id"]] = CONTROL if added["special"] else USER_DEFINED
    highest = max(by_id)
    if highest >= rows:
        raise _refused(f"has ids up to {highest}, and the model's embedding {rows} rows")
    tokens = tuple(by_id.get(index, f"[PAD{index}]") for index in range(rows))
    return tokens, tuple(kinds.get(index, UNUSED) for index in range(rows))


def _pairs(told: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = told["model"]["merges"]
    halves = [each.split(" ", 1) if isinstance(each, str) else each for each in merges]
    return [(left, right) for left, right in halves]


def _pre_tokenizer(told: Mapping[str, Any]) -> str:
    _refuse_normalizer(told["normalizer"])
    split = _split(told["pre_tokenizer"])
    skips_merges = bool(told["model"].get("ignore_merges"))
    name = PRE_TOKENIZERS.get((split, skips_merges))
    if name is None:
        how = f"splits text by {split!r}" + (", with ignore_merges" if skips_merges else "")
        raise _refused(f"{how}, for which llama.cpp has no name that whet knows")
    return name


def _refuse_normalizer(normalizer: Mapping[str, Any] | None) -> None:
    # NFC, which Qwen's tokenizers have, changes nothing in text that is composed already; llama.cpp leaves it out too.
    if normalizer is not None and normalizer["type"] != "NFC":
        raise _refused(f"changes text before it is split ({normalizer['type']}), and llama.cpp does not")


def _split(pre: Mapping[str, Any] | None) -> str:
    """How text is split, in one word or as its regular expression."""
    none: Mapping[str, Any] = {"type": "nothing"}
    first = pre or none
    steps: list[Mapping[str, Any]] = list(first["pretokenizers"]) if first["type"] == "Sequence" else [first]
    kinds = [step["type"] for step in steps]
    byte_level = steps[-1] if kinds[-1] == "ByteLevel" else None
    if byte_level is None or byte_level["add_prefix_space"]:
        raise _refused(f"splits text by {', '.join(kinds)}" + (" with a prefix space" if byte_level else ""))
    if kinds == ["ByteLevel"] and byte_level["use_regex"]:
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and byte_level["use_regex"] and steps[0]["individual_digits"]:
        return "digits, gpt-2"
    if kinds == ["Split", "ByteLevel"] and not byte_level["use_regex"]:
        step = steps[0]
        if step["behavior"] == "Isolated" and not step["invert"] and "Regex" in step["pattern"]:
            return str(step["pattern"]["Regex"])
        if step["behavior"] == "Removed" and step["invert"] and "Regex" in step["pattern"]:
            return str(step["pattern"]["Regex"])
    return ", ".join(kinds)


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    named = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "eot": template_turn_end(tokenizer),
    }
    return {name: int(index) for name, index in named.items() if index is not None}


def _template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    template = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


# SentencePiece. ------------------------------------------------------------------------------------------------------


def _sentencepiece_kinds(told: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int]) -> tuple[int, ...]:
    unknown = told["model"].get("unk_token")
    return tuple(
        UNKNOWN if token == unknown else BYTE if kind == NORMAL and _is_byte(token) else kind
        for token, kind in zip(tokens, kinds, strict=True)
    )


def _is_byte(token: str) -> bool:
    return len(token) == 6 and token.startswith("<0x") and token.endswith(">")


def _scores(told: Mapping[str, Any], tokens: Sequence[str]) -> tuple[float, ...]:
    """The earlier a piece is merged, the higher: transformers keeps the order of merges, SentencePiece the scores."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(_pairs(told)):
        first.setdefault(left + right, rank)
    return tuple(float(-first[token]) if token in first else -1e6 for token in tokens)


def _prefixes_space(told: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether every text gets a space in front.

    Newer tokenizers put it in front of the very first text alone, llama.cpp behind every special token too. In chats
    the first text is a special token as a rule, so there none is put.
    """
    steps = [told["normalizer"], told["pre_tokenizer"]]
    flat = [each for step in steps if step for each in step.get("normalizers", step.get("pretokenizers", [step]))]
    for step in flat:
        if step["type"] == "Prepend":
            return True
        if step["type"] == "Metaspace":
            scheme = step.get("prepend_scheme", "always")
            return bool(scheme == "always" or (scheme == "first" and not tokenizer.chat_template))
    return False


def _check_scores(vocabulary: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Cut texts by the scores, as llama.cpp will, and hold that against the tokenizer."""
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    for text in _probes(vocabulary.tokens):
        expected = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        prefix = "▁" if _starts_with_space(tokenizer) else ""
        found = [ids.get(piece) for piece in cut_by_scores(prefix + text.replace(" ", "▁"), vocabulary.scores, ids)]
        if [each for each in found if each is not None] != [each for each in expected if _is_piece(vocabulary, each)]:
            raise _refused("merges in an order that SentencePiece's scores cannot express")


def _starts_with_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    first = tokenizer.backend_tokenizer.encode("x", add_special_tokens=False).tokens
    return bool(first and first[0].startswith("▁"))


def _is_piece(vocabulary: Vocabulary, index: int) -> bool:
    return vocabulary.kinds[index] not in (BYTE, UNKNOWN)


def _probes(tokens: Sequence[str]) -> Iterable[str]:
    """Texts of people, and pieces of the vocabulary one behind the other."""
    yield from (text for turns in CONVERSATIONS for text in turns)
    words = [token.replace("▁", " ") for token in tokens if len(token) > 1 and not token.startswith(("<", "["))]
    step = max(1, len(words) // 2000)
    for start in range(0, len(words), 40 * step):
        yield "".join(words[start : start + 40 * step : step]).strip()


def cut_by_scores(text: str, scores: Sequence[float], ids: Mapping[str, int]) -> list[str]:
    """SentencePiece's BPE: the two neighbours that make the piece of the highest score are joined, until none do.

    Of equal scores the leftmost. (Kudo and Richardson 2018, arXiv 1808.06226; the form llama.cpp has.)
    """
    pieces: list[str | None] = list(text)
    after = [*range(1, len(text)), -1]
    before = [*range(-1, len(text) - 1)]
    waiting: list[tuple[float, int, int, str]] = []

    def consider(left: int, right: int) -> None:
        if left < 0 or right < 0:
            return
        joined = f"{pieces[left]}{pieces[right]}"
        if joined in ids:
            heapq.heappush(waiting, (-scores[ids[joined]], left, right, joined))

    for position in range(len(text) - 1):
        consider(position, position + 1)
    while waiting:
        _, left, right, joined = heapq.heappop(waiting)
        if pieces[left] is None or pieces[right] is None or f"{pieces[left]}{pieces[right]}" != joined:
            continue
        pieces[left], pieces[right] = joined, None
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
        consider(before[left], left)
        consider(left, after[left])
    return [piece for piece in pieces if piece is not None]
