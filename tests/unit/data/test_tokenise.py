"""Rows -> ids and labels, in order, each bad row as its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.configs import config_with
from tests.conversations import contents
from tests.tiny_tokenizers import byte_level_tokenizer, tiny_tokenizer

from whet.core.errors import ConfigError, DataError, RowError
from whet.data.samples import Encoded, EncodedPreference
from whet.data.texts import TextEncoder
from whet.data.tokenise import SampleEncoder, explain_tokens

SPECIALS = ["<s>", "</s>", "<pad>"]


def encode(rows: list[dict[str, Any]], tokenizer: Any, keys: dict[str, Any] | None = None, **options: Any) -> list[Any]:
    config = config_with(options, **(keys or {}))
    return SampleEncoder(config.data.datasets[0], config, tokenizer).encode_rows(rows)


def trained(encoded: Any, tokenizer: Any) -> str:
    assert isinstance(encoded, Encoded), encoded
    return str(tokenizer.decode(encoded.input_ids[encoded.supervised], skip_special_tokens=False))


def chat(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_rows_keep_their_order_and_a_bad_one_becomes_its_reason() -> None:
    tokenizer = tiny_tokenizer("chatml")
    rows = [chat(("user", "Q"), ("assistant", "A")), {"x": 1}, chat(("user", "Q")), chat(("assistant", "B"))]
    first, missing, none, last = encode(rows, tokenizer, type="chat_template")
    assert trained(first, tokenizer) == "A<|im_end|>"
    assert isinstance(missing, RowError)
    assert missing.reason == "missing field"
    assert str(none) == "no assistant turn: its turns are of: user"
    assert trained(last, tokenizer) == "B<|im_end|>"


def test_the_arrays_are_of_the_promised_types() -> None:
    (sample,) = encode([chat(("user", "Q"), ("assistant", "A"))], tiny_tokenizer("chatml"), type="chat_template")
    assert (sample.input_ids.dtype, sample.supervised.dtype) == (np.int32, np.bool_)
    assert len(sample) == len(sample.input_ids) == len(sample.supervised)


def test_no_rows_give_no_samples() -> None:
    assert encode([], tiny_tokenizer("chatml"), type="chat_template") == []


@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_a_control_token_in_a_content_is_refused_whoever_says_it(role: str) -> None:
    turns = {"system": "S", "user": "Q", "assistant": "A", "tool": "R"}
    for template in ("chatml", "qwen3"):
        row = chat(*{**turns, role: "say <|im_end|> now"}.items())
        (refused,) = encode([row], tiny_tokenizer(template), type="chat_template")
        assert isinstance(refused, RowError)
        assert refused.reason == "special token in content"
        assert "'<|im_end|>'" in refused.detail


def test_a_control_token_in_an_instruction_is_refused_and_in_raw_text_it_is_kept() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    (refused,) = encode([{"instruction": "x</s>", "output": "y"}], tokenizer, type="alpaca")
    assert isinstance(refused, RowError)
    assert refused.reason == "special token in content"
    (kept,) = encode([{"text": "x</s>y"}], tokenizer, type="completion")
    assert trained(kept, tokenizer) == "x</s>y</s>"


@pytest.mark.parametrize("adds_bos", [True, False])
def test_raw_text_gets_the_bos_that_the_tokenizer_gives_it_and_an_eos(adds_bos: bool) -> None:
    tokenizer = byte_level_tokenizer(SPECIALS, adds_bos=adds_bos)
    (sample,) = encode([{"text": "hello"}], tokenizer, type="completion")
    assert sample.input_ids.tolist() == [*tokenizer("hello")["input_ids"], tokenizer.eos_token_id]
    assert sample.supervised.tolist() == [not adds_bos, *[True] * (len(sample) - 1)]


def test_an_eos_that_is_there_is_not_doubled() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    (sample,) = encode([{"text": "hello</s>"}], tokenizer, type="completion")
    assert sample.input_ids.tolist().count(tokenizer.eos_token_id) == 1


def test_an_instructions_answer_and_eos_are_trained() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    (sample,) = encode([{"instruction": "Add.", "input": "", "output": " three"}], tokenizer, type="alpaca")
    assert trained(sample, tokenizer) == " three</s>"


def test_segments_are_one_text() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    segments = [{"label": False, "text": "<s>Q "}, {"label": True, "text": "A</s>"}, {"label": False, "text": "!"}]
    (sample,) = encode([{"segments": segments}], tokenizer, type="input_output")
    assert trained(sample, tokenizer) == "A</s>"
    assert tokenizer.decode(sample.input_ids) == "<s>Q A</s>!"


def test_rows_with_nothing_to_train_are_refused() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    (sample,) = encode([{"segments": [{"label": False, "text": "abc"}]}], tokenizer, type="input_output")
    assert isinstance(sample, RowError)
    assert sample.reason == "nothing to train"


def test_tokens_outside_the_vocabulary_are_refused() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    good, bad = encode([{"input_ids": [1, 2]}, {"input_ids": [1, 10**6]}], tokenizer)
    assert good.input_ids.tolist() == [1, 2]
    assert str(bad).startswith("unknown token id: 1000000 is not below ")


def test_a_long_text_is_cut_and_no_token_is_lost() -> None:
    tokenizer = byte_level_tokenizer(SPECIALS)
    config = config_with({"type": "completion"})
    encoder = SampleEncoder(config.data.datasets[0], config, tokenizer)
    (sample,) = encoder.encode_rows([{"text": "word " * 50}])
    assert encoder.cuts_long_rows
    assert isinstance(sample, Encoded)
    pieces = sample.chunks(16)
    assert max(len(piece) for piece in pieces) == 16
    assert np.concatenate([piece.input_ids for piece in pieces]).tolist() == sample.input_ids.tolist()


@given(
    prompt=contents,
    chosen=contents,
    rejected=contents,
    template=st.sampled_from(["chatml", "llama3", "mistral_v3_tekken", "mistral_v1", "phi_3", "deepseek_v2"]),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_prompt_and_answer_together_are_the_whole_conversation(
    prompt: str, chosen: str, rejected: str, template: str
) -> None:
    tokenizer = tiny_tokenizer(template)
    config = config_with({}, rl="dpo")
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    (pair,) = SampleEncoder(config.data.datasets[0], config, tokenizer).encode_rows([row])
    if isinstance(pair, RowError):
        assert (pair.reason, chosen.strip()) == ("answers are equal", rejected.strip())
        return
    assert isinstance(pair, EncodedPreference), pair
    for answer, ids in ((chosen, pair.chosen_ids), (rejected, pair.rejected_ids)):
        messages = chat(("user", prompt), ("assistant", answer))["messages"]
        whole = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
        together = [*pair.prompt_ids.tolist(), *ids.tolist()]
        assert whole[: len(together)] == together
        assert tokenizer.decode(whole[len(together) :]).replace("<|endoftext|>", "").strip() == ""
        assert len(ids) > 0


def test_the_prompt_of_a_pair_ends_with_the_generation_prompt() -> None:
    tokenizer = tiny_tokenizer("llama3", vocab_size=256)  # no merges: no token across the end of the prompt
    row = {"prompt": "Q", "chosen": "yes", "rejected": "no", "system": "S"}
    (pair,) = encode([row], tokenizer, {"rl": "dpo"})
    messages = chat(("system", "S"), ("user", "Q"))["messages"]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert pair.prompt_ids.tolist() == ids
    assert tokenizer.decode(pair.chosen_ids) == "yes<|eot_id|>"
    assert tokenizer.decode(pair.rejected_ids) == "no<|eot_id|>"


@given(text=contents)
@settings(max_examples=40, deadline=None)
def test_explained_tokens_are_the_text_with_its_labels(text: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    (sample,) = encode([chat(("user", "Q"), ("assistant", text))], tokenizer, type="chat_template")
    pieces = explain_tokens(sample, tokenizer)
    assert [token for piece in pieces for token in piece.ids] == sample.input_ids.tolist()
    assert [piece.supervised for piece in pieces for _ in piece.ids] == sample.supervised.tolist()
    assert "".join(piece.text for piece in pieces) == tokenizer.decode(sample.input_ids)


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="Slow does not say which characters a token stands for -> use a fast tokeni"):
        TextEncoder(Slow())


def test_an_unknown_type_is_refused_before_any_row() -> None:
    config = config_with({"type": "chat_templat"})
    with pytest.raises(ConfigError, match=r"did you mean 'chat_template'\?"):
        SampleEncoder(config.data.datasets[0], config, tiny_tokenizer("chatml"))


def test_variables_of_the_template_are_the_configs_and_then_the_datasets() -> None:
    tokenizer = tiny_tokenizer("chatml")
    template = "{{ topic }}{{ mood }}" + tokenizer.chat_template
    keys = {"chat_template_jinja": template, "chat_template_kwargs": {"topic": "numbers", "mood": "glad"}}
    row = chat(("user", "Q"), ("assistant", "A"))
    (sample,) = encode([row], tokenizer, keys, type="chat_template", chat_template_kwargs={"mood": "sad"})
    variables = {"topic": "numbers", "mood": "sad"}
    stock = tokenizer.apply_chat_template(
        row["messages"], chat_template=template, tokenize=True, return_dict=False, **variables
    )
    assert sample.input_ids.tolist() == stock
    assert tokenizer.decode(stock).startswith("numberssad")
    assert trained(sample, tokenizer) == "A<|im_end|>"
