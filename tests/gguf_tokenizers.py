"""Tokenizers of each kind that GGUF knows, trained on text of Python's library: 1,000 tokens and a few special ones."""

from __future__ import annotations

import functools
import pydoc
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from whet.artefacts.gguf.vocabulary import _GPT4O, _LLAMA3, _QWEN2, _TEKKEN
from whet.data.templates.resolve import shipped_template

_SPECIAL = ("<s>", "</s>", "<unk>", "<|im_start|>", "<|im_end|>")


@functools.cache
def _corpus() -> tuple[str, ...]:
    texts = [pydoc.render_doc(name, renderer=pydoc.plaintext) for name in ("argparse", "collections", "datetime")]
    return (*texts, "don't I'll WE'RE Übung 東京 naïve 12345 1,234.5 🙂  \n\n\t x", "user system assistant")


def _byte_level(pre: Any, *, ignore_merges: bool = False, adds_bos: bool = False) -> Any:
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _finished(tokenizer, adds_bos)


def _finished(tokenizer: Tokenizer, adds_bos: bool) -> Any:
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair=None, special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    made.chat_template = shipped_template("chatml")
    return made


def _split(regex: str, **keys: Any) -> Any:
    pre = [pre_tokenizers.Split(Regex(regex), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return _byte_level(pre_tokenizers.Sequence(pre), **keys)


@functools.cache
def sentencepiece_tokenizer() -> Any:
    """Pieces with a space in front, bytes for what they cannot spell, and every way to join two as a merge.

    As transformers makes one of a SentencePiece model, whose scores are the order of the pieces.
    """
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(_corpus(), trainers.BpeTrainer(vocab_size=700, show_progress=False))
    pieces = [token for token, _ in sorted(trained.get_vocab().items(), key=lambda pair: pair[1])]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    vocabulary = {token: index for index, token in enumerate(names)}
    merges = [
        (token[:cut], token[cut:])
        for token in pieces
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(tokenizer, adds_bos=True)


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: _byte_level(pre_tokenizers.ByteLevel(False)),
    "gpt-2, with a BOS": lambda: _byte_level(pre_tokenizers.ByteLevel(False), adds_bos=True),
    "smollm": lambda: _byte_level(
        pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False)])
    ),
    "llama-bpe": lambda: _split(_LLAMA3, ignore_merges=True, adds_bos=True),
    "smaug-bpe": lambda: _split(_LLAMA3),
    "qwen2": lambda: _split(_QWEN2),
    "tekken": lambda: _split(_TEKKEN, ignore_merges=True),
    "gpt-4o": lambda: _split(_GPT4O),
    "sentencepiece": sentencepiece_tokenizer,
}
