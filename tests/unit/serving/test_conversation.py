"""A chat's commands, with an engine that answers from a list."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from whet.core.errors import WhetError
from whet.serving.conversation import COMMANDS, Answer, Conversation, Leave, Say
from whet.serving.sampling import Sampling


class Parrot:
    """Says how many messages it saw and repeats the last one, in two pieces."""

    description = "parrot"
    default_sampling = Sampling(temperature=0.5)

    def __init__(self) -> None:
        self.seen: list[tuple[list[dict[str, Any]], Sampling]] = []

    def prompt_ids(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return list(range(10 * len(messages)))

    def stream(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Iterator[str]:
        self.seen.append(([dict(message) for message in messages], sampling))
        yield f"{len(messages)} "
        yield messages[-1]["content"]


@pytest.fixture
def chat() -> Conversation:
    return Conversation(Parrot(), Parrot.default_sampling)


def say(chat: Conversation, line: str) -> str:
    reply = chat.reply(line)
    if isinstance(reply, Answer):
        return "".join(reply.pieces)
    assert isinstance(reply, Say)
    return reply.text


def test_a_prompt_sees_the_turns_before_it(chat: Conversation) -> None:
    assert say(chat, "one") == "1 one"
    assert say(chat, "two") == "3 two"
    assert [turn["role"] for turn in chat.turns] == ["user", "assistant", "user", "assistant"]


def test_without_history_each_prompt_stands_alone() -> None:
    chat = Conversation(Parrot(), Sampling(), system="be brief", keep_history=False)
    assert say(chat, "one") == "2 one"
    assert say(chat, "two") == "2 two"


def test_new_forgets_the_turns_and_keeps_the_system_message(chat: Conversation) -> None:
    say(chat, "/system be brief")
    say(chat, "one")
    assert say(chat, "/new") == "A new conversation."
    assert chat.messages == [{"role": "system", "content": "be brief"}]
    assert say(chat, "/system") == "be brief"
    say(chat, "/system clear")
    assert chat.messages == []


def test_retry_asks_the_last_prompt_again_and_undo_takes_it_back(chat: Conversation) -> None:
    say(chat, "one")
    say(chat, "two")
    before = [dict(turn) for turn in chat.turns]
    assert say(chat, "/retry") == "3 two"
    assert chat.turns == before
    assert say(chat, "/undo") == "Taken back: two"
    assert chat.turns == before[:2]


def test_settings_are_set_by_either_spelling_and_shown(chat: Conversation) -> None:
    assert say(chat, "/temperature 0.7") == "temperature 0.7"
    assert say(chat, "/set top_k 5") == "top_k 5"
    assert say(chat, "/set temperature") == "temperature 0.7"
    assert "top_k 5" in say(chat, "/set").splitlines()
    say(chat, "hello")
    assert isinstance(chat.engine, Parrot)
    assert chat.engine.seen[-1][1] == Sampling(temperature=0.7, top_k=5)
    assert say(chat, "/temperature default") == "temperature 0.5"


def test_history_and_status_tell_the_state(chat: Conversation) -> None:
    assert say(chat, "/history") == "Nothing has been said yet."
    say(chat, "/system s")
    say(chat, "one")
    assert say(chat, "/history") == "system: s\nuser: one\nassistant: 2 one"
    assert say(chat, "/status").splitlines()[:3] == ["model parrot", "system s", "turns 2, prompt tokens 30"]


def test_saved_conversations_are_training_rows(chat: Conversation, tmp_path: Path) -> None:
    say(chat, "höllo")
    assert say(chat, f"/save {tmp_path / 'a.jsonl'}") == f"Added to {tmp_path / 'a.jsonl'}."
    say(chat, f"/save {tmp_path / 'a.jsonl'}")
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"messages": chat.messages}] * 2


def test_quit_and_its_aliases_leave(chat: Conversation) -> None:
    assert all(isinstance(chat.reply(line), Leave) for line in ("/quit", "/exit", "/q"))


def test_help_names_every_command(chat: Conversation) -> None:
    text = say(chat, "/help")
    assert all(command.usage in text for command in COMMANDS.values())


def test_two_slashes_begin_a_prompt_with_one(chat: Conversation) -> None:
    assert say(chat, "//etc/passwd") == "1 /etc/passwd"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/histroy", "there is no command '/histroy' -> did you mean '/history'?"),
        ("/temprature 1", "there is no command '/temprature' -> did you mean '/temperature'?"),
        ("/set temprature 1", "there is no setting 'temprature' -> did you mean 'temperature'?"),
        ("/temperature hot", "temperature: 'hot' is not a number -> write one from 0 to 5"),
        ("/top_k 1.5", "top_k: '1.5' is not a whole number -> write one from 0 to 1000"),
        ("/temperature 9", "temperature: 9 is out of range -> write a number from 0 to 5"),
        ("/temperature nan", "temperature: nan is out of range -> write a number from 0 to 5"),
        ("/retry", "/retry: nothing has been said yet -> type a prompt first"),
        ("/undo", "/undo: nothing has been said yet -> type a prompt first"),
        ("/save", "/save: nothing has been said yet -> type a prompt first"),
    ],
)
def test_a_command_that_cannot_be_done_says_so_and_changes_nothing(chat: Conversation, line: str, message: str) -> None:
    with pytest.raises(WhetError) as error:
        chat.reply(line)
    assert str(error.value) == message
    assert chat.turns == []
    assert chat.sampling == Parrot.default_sampling


def test_saving_where_nothing_can_be_written_is_an_error_with_the_path(chat: Conversation, tmp_path: Path) -> None:
    say(chat, "one")
    with pytest.raises(WhetError) as error:
        chat.reply(f"/save {tmp_path / 'no' / 'a.jsonl'}")
    assert str(error.value) == (
        f"{tmp_path / 'no' / 'a.jsonl'}: cannot be written: No such file or directory -> /save another path"
    )


def test_an_answer_cut_short_is_remembered_as_far_as_it_was_read(chat: Conversation) -> None:
    reply = chat.reply("one")
    assert isinstance(reply, Answer)
    assert next(reply.pieces) == "1 "
    reply.pieces.close()
    assert chat.turns == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1 "}]


class Mute(Parrot):
    def stream(self, messages: Sequence[Mapping[str, Any]], sampling: Sampling) -> Iterator[str]:
        raise WhetError(())
        yield ""


def test_a_prompt_that_could_not_be_answered_is_taken_back() -> None:
    chat = Conversation(Mute(), Sampling())
    reply = chat.reply("one")
    assert isinstance(reply, Answer)
    with pytest.raises(WhetError):
        next(reply.pieces)
    assert chat.turns == []
