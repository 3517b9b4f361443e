"""The same model, tokenizer, template and rows for every contestant, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
import re
from itertools import cycle, islice
from pathlib import Path

from common import REPOSITORY

ROWS = REPOSITORY / "tests" / "data" / "pydoc-sample.jsonl"

# ChatML, with the generation markers TRL needs to find the assistant's tokens; whet reads the same text.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Mistral's control tokens: each is one token, so that no text can melt into a border between turns.
MISTRAL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}"
    "{% elif message['role'] == 'system' %}{{ '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}"
    "{% else %}{{ '[INST]' + message['content'] + '[/INST]' }}{% endif %}{% endfor %}"
)


def make_rows(folder: Path, limit: int | None = None) -> Path:
    """Write the conversations as ``{"messages": [...]}`` lines and return the file."""
    lines = ROWS.read_text(encoding="utf-8").splitlines()[:limit]
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"messages": json.loads(line)["messages"]}) + "\n" for line in lines))
    return rows


def make_model(folder: Path, *, hidden_size: int, num_layers: int, vocab_size: int) -> Path:
    """A Llama with random weights and a byte-level BPE tokenizer trained on the rows, saved as a model folder."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (message["content"] for line in ROWS.read_text().splitlines() for message in json.loads(line)["messages"])
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = TEMPLATE
    set_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=hidden_size * 4,
            num_hidden_layers=num_layers,
            num_attention_heads=max(4, hidden_size // 64),
            num_key_value_heads=max(4, hidden_size // 64),
            max_position_embeddings=8192,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    target = folder / "model"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def make_many_rows(source: Path, target: Path, count: int) -> None:
    """Write ``count`` conversations, a line at a time: those of the source over and over, no two messages alike.

    Every message of every copy has a number of its own in its middle, so that nothing is gained by remembering a text.
    """
    lines = [json.loads(line)["messages"] for line in source.read_text(encoding="utf-8").splitlines()]
    with target.open("w", encoding="utf-8") as file:
        for number, messages in enumerate(islice(cycle(lines), count)):
            edited = [{**message, "content": _numbered(message["content"], number)} for message in messages]
            file.write(json.dumps({"messages": edited}, ensure_ascii=False) + "\n")


def _numbered(text: str, number: int) -> str:
    """The text with a number after the word in its middle."""
    space = re.compile(r"\s|$").search(text, len(text) // 2)
    assert space is not None
    return f"{text[: space.start()]} {number}{text[space.start() :]}"


def make_mistral_model(folder: Path) -> Path:
    """Mistral's tokenizer (Tekken: byte-level BPE, 131,072 tokens), and a model that is as small as one can be."""
    from importlib.resources import files

    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.integrations.mistral import convert_tekken_tokenizer

    tokenizer = convert_tekken_tokenizer(str(Path(str(files("mistral_common"))) / "data" / "tekken_240911.json"))
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    tokenizer.chat_template = MISTRAL_TEMPLATE
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
            num_key_value_heads=1,
            max_position_embeddings=131_072,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=True,
        )
    )
    target = folder / "mistral"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target
