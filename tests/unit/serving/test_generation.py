"""Generation: the prompt's ids, where an answer stops, and text that arrives piece by piece."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whet.core.errors import ModelError
from whet.model.stops import stop_ids, template_turn_end
from whet.serving.generation import GenerationEngine
from whet.serving.incremental import IncrementalText
from whet.serving.sampling import Sampling

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """Bytes, three control tokens and a template that closes turns with a token that is not the end of sequence."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: number for number, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    return LlamaForCausalLM(config).eval()


MESSAGES = [{"role": "user", "content": "Hi"}]


def engine(model: Any, tokenizer: Any, stops: list[int] | None = None) -> GenerationEngine:
    return GenerationEngine(model, tokenizer, stops or [], "tiny")


def test_prompt_ids_are_those_of_the_template(model: Any, tokenizer: Any) -> None:
    expected = tokenizer("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)[
        "input_ids"
    ]
    assert engine(model, tokenizer).prompt_ids(MESSAGES) == expected


def test_the_greedy_answer_is_the_argmax_of_each_step(model: Any, tokenizer: Any) -> None:
    ids = engine(model, tokenizer).prompt_ids(MESSAGES)
    answer: list[int] = []
    for _ in range(12):
        with torch.no_grad():
            answer.append(int(model(torch.tensor([ids + answer])).logits[0, -1].argmax()))
    pieces = engine(model, tokenizer).stream(MESSAGES, Sampling(max_new_tokens=12))
    assert "".join(pieces) == tokenizer.decode(answer, skip_special_tokens=True)


def test_an_answer_ends_at_a_stop_token(model: Any, tokenizer: Any) -> None:
    whole = engine(model, tokenizer)
    ids = whole.prompt_ids(MESSAGES)
    with torch.no_grad():
        first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    pieces = list(engine(model, tokenizer, [first]).stream(MESSAGES, Sampling(max_new_tokens=12)))
    assert "".join(pieces) == tokenizer.decode([first], skip_special_tokens=True)


def test_the_same_seed_gives_the_same_sampled_answer(model: Any, tokenizer: Any) -> None:
    def answer(seed: int) -> str:
        sampling = Sampling(temperature=1.5, max_new_tokens=20, seed=seed)
        return "".join(engine(model, tokenizer).stream(MESSAGES, sampling))

    assert answer(1) == answer(1) != answer(2)


def test_closing_the_stream_ends_the_generation(model: Any, tokenizer: Any) -> None:
    pieces = engine(model, tokenizer).stream(MESSAGES, Sampling(max_new_tokens=100))
    next(pieces)
    pieces.close()  # type: ignore[attr-defined]  # it is a generator; returns only when the thread has ended


def test_a_fault_in_the_generating_thread_reaches_the_reader(
    tokenizer: Any, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model, "generate", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        list(engine(model, tokenizer).stream(MESSAGES, Sampling()))


def test_a_conversation_longer_than_the_context_is_refused(model: Any, tokenizer: Any) -> None:
    long = [{"role": "user", "content": "x" * 200}]
    with pytest.raises(ModelError, match="tokens, the model's context 128 -> begin a /new one"):
        next(iter(engine(model, tokenizer).stream(long, Sampling())))


def test_an_answer_never_leaves_the_context(model: Any, tokenizer: Any) -> None:
    room = 128 - len(engine(model, tokenizer).prompt_ids(MESSAGES))
    unlimited, limited, shorter = (
        "".join(engine(model, tokenizer).stream(MESSAGES, Sampling(max_new_tokens=limit)))
        for limit in (1000, room, room - 10)
    )
    assert unlimited == limited != shorter


def test_a_template_that_refuses_is_a_model_error(model: Any, tokenizer: Any) -> None:
    import copy

    strict = copy.deepcopy(tokenizer)
    strict.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(ModelError, match="it refuses this conversation: no system turn"):
        engine(model, strict).prompt_ids(MESSAGES)


def test_stops_unite_the_generation_config_the_tokenizer_and_the_template(tokenizer: Any) -> None:
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|end|>", "<|im_end|>", "<|im_start|>")}
    assert template_turn_end(tokenizer) == ids["<|im_end|>"]
    assert stop_ids(tokenizer, None) == sorted([ids["<|end|>"], ids["<|im_end|>"]])
    assert stop_ids(tokenizer, [5, 6]) == sorted([5, 6, ids["<|end|>"], ids["<|im_end|>"]])
    assert ids["<|im_start|>"] in stop_ids(tokenizer, 5, ["<|im_start|>", "not a token"])


@pytest.mark.parametrize("text", ["Hello, world!\n\n  two", "naïve – “quotes” 🧪🧪 你好", "", " leading", "a\ufffdb"])
def test_pieces_joined_are_the_decoded_text(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    incremental = IncrementalText(tokenizer)
    pieces = [incremental.add(token) for token in ids]
    assert "".join([*pieces, incremental.rest()]) == tokenizer.decode(ids, skip_special_tokens=True)


def test_a_character_appears_only_when_it_is_whole(tokenizer: Any) -> None:
    incremental = IncrementalText(tokenizer)
    assert [incremental.add(token) for token in tokenizer("é", add_special_tokens=False)["input_ids"]] == ["", "é"]
