"""Laws of exact-match scoring, on a tiny model that has learnt one answer by heart."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from whet.core.errors import DataError
from whet.training.scoring import Prompting, exact_match

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


def row(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [row("one", "uno"), row("a longer question", "larga"), row("two", "dos")]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        ["user assistant"],
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["<pad>", "<s>", "</s>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>", additional_special_tokens=["<s>"]
    )
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Taught the first two answers, but not the third."""
    torch.manual_seed(0)
    learner = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=128,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.1,
        )
    )
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-2)
    taught = [
        torch.tensor([tokenizer(tokenizer.apply_chat_template(r["messages"], tokenize=False))["input_ids"]])
        for r in ROWS[:2]
    ]
    for _ in range(60):
        for ids in taught:
            learner(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return learner


def test_a_learnt_answer_counts_and_an_unknown_one_does_not(model: Any, tokenizer: Any) -> None:
    score = exact_match(model, tokenizer, ROWS, max_new_tokens=8)
    assert (score.num_rows, score.num_correct) == (3, 2)
    assert str(score) == "2 of 3 exact (66.7%)"


def test_wrong_answers_come_first_among_the_examples_and_show_prompt_and_both_texts(model: Any, tokenizer: Any) -> None:
    first, *rest = exact_match(model, tokenizer, ROWS, max_new_tokens=8).examples
    assert first.expected == "dos"
    assert first.got != "dos"
    assert first.prompt == "<s>user two</s><s>assistant "
    assert [answer.got for answer in rest] == ["uno", "larga"]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_the_batch_size_changes_no_answer(model: Any, tokenizer: Any, batch_size: int) -> None:
    assert exact_match(model, tokenizer, ROWS, 8, batch_size) == exact_match(model, tokenizer, ROWS, 8, batch_size=64)


def test_an_answer_that_goes_on_after_the_expected_text_is_wrong(model: Any, tokenizer: Any) -> None:
    assert exact_match(model, tokenizer, [row("one", "un")], max_new_tokens=8).num_correct == 0


def test_an_answer_ends_at_the_token_the_template_closes_a_turn_with(model: Any, tokenizer: Any) -> None:
    """A model that was only pre-trained has another end of text, in its tokenizer and in its generation config."""
    other = copy.deepcopy(tokenizer)
    other.add_special_tokens({"additional_special_tokens": ["<s>", "</s>"], "eos_token": "<pad>"})
    kept = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = other.eos_token_id
    try:
        assert exact_match(model, other, ROWS[:2], max_new_tokens=8).num_correct == 2
        other.chat_template = TEMPLATE.replace("</s>", "\n")
        assert exact_match(model, other, ROWS[:2], max_new_tokens=8).num_correct == 0
        named = Prompting(eot_tokens=("</s>",))
        assert exact_match(model, other, ROWS[:2], max_new_tokens=8, prompting=named).num_correct == 2
    finally:
        model.generation_config.eos_token_id = kept


def test_a_question_looks_as_it_did_in_training(model: Any, tokenizer: Any) -> None:
    with_topic = copy.deepcopy(tokenizer)
    with_topic.chat_template = "{{ topic }}" + TEMPLATE
    prompting = Prompting(system="be brief", template_kwargs={"topic": "numbers"})
    (answer,) = exact_match(model, with_topic, ROWS[:1], max_new_tokens=1, prompting=prompting).examples
    assert answer.prompt == "numbers<s>system be brief</s><s>user one</s><s>assistant "
    own = {"messages": [{"role": "system", "content": "mine"}, *ROWS[0]["messages"]]}
    (answer,) = exact_match(model, with_topic, [own], max_new_tokens=1, prompting=prompting).examples
    assert answer.prompt.startswith("numbers<s>system mine</s><s>user one</s>")


def test_an_answer_cut_by_the_limit_is_wrong(model: Any, tokenizer: Any) -> None:
    assert exact_match(model, tokenizer, [row("a longer question", "larga")], max_new_tokens=2).num_correct == 0


@pytest.mark.parametrize("training", [True, False])
def test_mode_cache_setting_and_random_state_are_given_back(model: Any, tokenizer: Any, training: bool) -> None:
    model.train(training)
    model.config.use_cache = False
    state = torch.get_rng_state()
    exact_match(model, tokenizer, ROWS, max_new_tokens=2)
    assert model.training is training
    assert model.config.use_cache is False
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "held.jsonl: no rows -> name a file with at least one conversation"),
        ([{"text": "x"}], "held.jsonl, row 1: no list of at least two `messages` -> "),
        ([ROWS[0], {"messages": ROWS[0]["messages"][:1] * 2}], "held.jsonl, row 2: the last message is no assistant's"),
    ],
)
def test_rows_that_ask_nothing_are_named(model: Any, tokenizer: Any, rows: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        exact_match(model, tokenizer, rows, where="held.jsonl")
    assert str(caught.value).startswith(message)
