"""Tokenizers for tests and benchmarks, without network: small ones made here, and Mistral's from `mistral-common`."""

from __future__ import annotations

import functools
import re
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from whet.data.templates.render import Renderer
from whet.data.templates.resolve import shipped_template

#: What marks a token in the text of a template.
_TOKEN = re.compile(
    r"<\|[A-Za-z_]+\|>|<｜[^｜]+｜>|\[/?[A-Z_]{3,}\]|\[\|[a-z]+\|\]|<(?:start|end)_of_turn>|<\|[a-z]+\|>"
)

#: Tokens that are no part of a chat's control: they stay ordinary text in tokenizers that have them.
_ORDINARY = {"<think>", "</think>", "<tool_call>", "</tool_call>"}

#: BOS and EOS of the models a template belongs to; others have <s> and </s>.
_ENDS = {
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "gemma": ("<bos>", "<eos>"),
    "gemma3": ("<bos>", "<eos>"),
    "cohere": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"),
    "deepseek_v2": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "exaone": ("[BOS]", "[|endofturn|]"),
    "phi_3": ("<s>", "<|endoftext|>"),
    "phi_35": ("<s>", "<|endoftext|>"),
    "qwen3": (None, "<|im_end|>"),
    "qwen_25": (None, "<|im_end|>"),
}

_CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is a function, and how is it called?",
    "system user assistant model tool human gpt\n\n### Instruction:\n\n### Response:\n",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}  [[1, 2], [3, 4]]',
    "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))  # élan, naïve, 東京, 🙂",
]


@functools.cache
def tiny_tokenizer(template_name: str = "chatml", vocab_size: int = 420) -> Any:
    """A byte-level BPE tokenizer with the special tokens of a shipped template, and that template."""
    text = shipped_template(template_name)
    bos, eos = _ENDS.get(template_name, ("<s>", "</s>"))
    specials = [token for token in (bos, eos, "<unk>", "<pad>") if token]
    specials += [token for token in dict.fromkeys(_TOKEN.findall(text)) if token not in {*specials, *_ORDINARY}]
    made = byte_level_tokenizer(specials, vocab_size, bos=bos, eos=eos)
    made.chat_template = text
    return made


def byte_level_tokenizer(
    specials: list[str],
    vocab_size: int = 420,
    bos: str | None = "<s>",
    eos: str | None = "</s>",
    adds_bos: bool = False,
) -> Any:
    """A byte-level BPE tokenizer trained on four lines."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    if adds_bos and bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=None, special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token="<pad>")


@functools.cache
def tiny_renderer(template_name: str, vocab_size: int = 420) -> Renderer:
    """The renderer of a shipped template for its tiny tokenizer."""
    tokenizer = tiny_tokenizer(template_name, vocab_size)
    return Renderer(tokenizer.chat_template, tokenizer)
