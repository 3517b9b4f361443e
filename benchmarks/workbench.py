"""The same model, tokenizer, template and rows for every contestant, made on the spot: nothing is downloaded."""

from __future__ import annotations

import json
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
