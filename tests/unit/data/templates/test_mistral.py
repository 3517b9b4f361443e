"""With Mistral's own tokenizers, the shipped templates give the ids that `mistral-common` gives."""

from __future__ import annotations

from typing import Any

import pytest
from tests.mistral_tokenizers import FILES, mistral_file, mistral_tokenizer

from whet.core.types import Conversation, Turn
from whet.data.templates.render import Renderer, TrainPolicy
from whet.data.texts import TextEncoder

pytest.importorskip("mistral_common")

CHAT = [
    {"role": "user", "content": "What is [[1, 2], [3, 4]]? 🙂"},
    {"role": "assistant", "content": "A matrix, naïvely."},
    {"role": "user", "content": "And 東京?"},
]
SYSTEM = [{"role": "system", "content": "Be kind."}, *CHAT]


def official_ids(name: str, messages: list[dict[str, Any]]) -> list[int]:
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    request = ChatCompletionRequest(messages=messages)
    return list(MistralTokenizer.from_file(str(mistral_file(name))).encode_chat_completion(request).tokens)


# mistral-common ships no v7 Tekken file; its v3 file shares the tokens, and the form where there is no system message.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("name", "messages"), [*((name, CHAT) for name in FILES), *((name, SYSTEM) for name in list(FILES)[:3])]
)
def test_the_ids_are_mistrals(name: str, messages: list[dict[str, Any]]) -> None:
    ids = mistral_tokenizer(name).apply_chat_template(messages, tokenize=True, return_dict=False)
    assert ids == official_ids(name, messages)


@pytest.mark.parametrize("name", FILES)
def test_the_answer_and_its_stop_token_are_trained(name: str) -> None:
    tokenizer = mistral_tokenizer(name)
    renderer = Renderer(tokenizer.chat_template, tokenizer)
    messages = [*CHAT, {"role": "assistant", "content": "🙂 Tōkyō, 東京"}]
    rendered = renderer.render(Conversation(tuple(Turn(message) for message in messages)), TrainPolicy())
    encoder = TextEncoder(tokenizer, renderer.control)
    batch = encoder.batch()
    number = batch.add(rendered)
    ids, supervised = encoder.encode(batch).sequence(number)
    assert ids.tolist() == tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)
    answers = tokenizer.decode(ids[supervised], skip_special_tokens=False).split("</s>")
    assert [answer.strip() for answer in answers] == ["A matrix, naïvely.", "🙂 Tōkyō, 東京", ""]
    assert [answer[:1] == " " for answer in answers[:2]] == [name in ("mistral_v1", "mistral_v2v3")] * 2
