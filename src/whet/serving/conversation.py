"""A conversation with an engine, and the commands that steer it. No terminal here: lines in, replies out."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path

from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.core.nearest import suggestion
from whet.serving.engine import Engine
from whet.serving.sampling import LIMITS, Sampling, require_setting


@dataclass(frozen=True, slots=True)
class Say:
    """Text for the person, not from the model."""

    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer, in pieces; the conversation remembers it as far as it was read. Close it to stop early."""

    pieces: Generator[str]


@dataclass(frozen=True, slots=True)
class Leave:
    """The person wants to go."""


Reply = Say | Answer | Leave


@dataclass(slots=True)
class Conversation:
    """The turns so far and the settings of the next answer.

    Attributes:
        engine: who answers.
        sampling: how.
        system: the system message each conversation begins with; None for none.
        keep_history: whether a prompt sees the turns before it.
        turns: user and assistant messages, without the system message.
    """

    engine: Engine
    sampling: Sampling
    system: str | None = None
    keep_history: bool = True
    turns: list[dict[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[dict[str, str]]:
        """What the template sees."""
        opening = [{"role": "system", "content": self.system}] if self.system else []
        return [*opening, *self.turns]

    def reply(self, line: str) -> Reply:
        """Act on one line: a command if it begins with ``/``, else a prompt. ``//`` begins a prompt with a slash.

        Raises:
            WhetError: a command that does not exist, or cannot be done; the conversation is unchanged.
        """
        if line.startswith("//"):
            return self.ask(line[1:])
        if not line.startswith("/"):
            return self.ask(line)
        word, _, rest = line[1:].strip().partition(" ")
        name = ALIASES.get(word, word)
        if name in COMMANDS:
            return COMMANDS[name].act(self, rest.strip())
        if name in LIMITS:
            return _set(self, f"{name} {rest}")
        raise ConfigError(
            Problem("", f"there is no command '/{word}'", suggestion(f"/{word}", [f"/{known}" for known in _words()]))
        )

    def ask(self, prompt: str) -> Answer:
        """Put a prompt to the model."""
        if not self.keep_history:
            self.turns.clear()
        self.turns.append({"role": "user", "content": prompt})
        return Answer(self._answer())

    def _answer(self) -> Generator[str]:
        said: list[str] = []
        pieces = self.engine.stream(self.messages, self.sampling)
        finished = False
        try:
            for piece in pieces:
                said.append(piece)
                yield piece
            finished = True
        finally:
            # A prompt that failed before the first word is taken back; an answer that was cut short is kept.
            if finished or said:
                self.turns.append({"role": "assistant", "content": "".join(said)})
            else:
                self.turns.pop()


@dataclass(frozen=True, slots=True)
class Command:
    """A slash command: how it is written, what it does, and the doing."""

    usage: str
    help: str
    act: Callable[[Conversation, str], Reply]


def _help(conversation: Conversation, rest: str) -> Reply:
    width = max(len(command.usage) for command in COMMANDS.values())
    lines = [f"{command.usage:<{width}}  {command.help}" for command in COMMANDS.values()]
    return Say("\n".join([*lines, "", f"settings: {', '.join(LIMITS)}; '//' begins a prompt with a slash"]))


def _new(conversation: Conversation, rest: str) -> Reply:
    conversation.turns.clear()
    return Say("A new conversation.")


def _system(conversation: Conversation, rest: str) -> Reply:
    if not rest:
        return Say(conversation.system or "No system message.")
    conversation.system = None if rest == "clear" else rest
    return Say("No system message from now on." if rest == "clear" else "System message set.")


def _set(conversation: Conversation, rest: str) -> Reply:
    name, _, value = rest.partition(" ")
    value = value.strip()
    if not name:
        return Say("\n".join(conversation.sampling.lines()))
    require_setting(name)
    if value.lower() in ("none", "default"):
        default = getattr(conversation.engine.default_sampling, name)
        conversation.sampling = replace(conversation.sampling, **{name: default})
    elif value:
        conversation.sampling = conversation.sampling.with_values(**{name: value})
    return Say(f"{name} {getattr(conversation.sampling, name)}")


def _status(conversation: Conversation, rest: str) -> Reply:
    num_tokens = len(conversation.engine.prompt_ids(conversation.messages)) if conversation.messages else 0
    return Say(
        "\n".join(
            [
                f"model {conversation.engine.description}",
                f"system {conversation.system or 'none'}",
                f"turns {len(conversation.turns)}, prompt tokens {num_tokens}",
                *conversation.sampling.lines(),
            ]
        )
    )


def _history(conversation: Conversation, rest: str) -> Reply:
    if not conversation.messages:
        return Say("Nothing has been said yet.")
    return Say("\n".join(f"{message['role']}: {message['content']}" for message in conversation.messages))


def _retry(conversation: Conversation, rest: str) -> Reply:
    prompt = _take_back(conversation, "/retry")
    return conversation.ask(prompt)


def _undo(conversation: Conversation, rest: str) -> Reply:
    prompt = _take_back(conversation, "/undo")
    return Say(f"Taken back: {prompt}")


def _take_back(conversation: Conversation, command: str) -> str:
    """Remove the last prompt and what followed it; return the prompt."""
    prompts = [number for number, turn in enumerate(conversation.turns) if turn["role"] == "user"]
    if not prompts:
        raise ConfigError(Problem(command, "nothing has been said yet", "type a prompt first"))
    prompt = conversation.turns[prompts[-1]]["content"]
    del conversation.turns[prompts[-1] :]
    return prompt


def _save(conversation: Conversation, rest: str) -> Reply:
    """Append the conversation as one row that ``type: chat_template`` reads."""
    path = Path(rest or "chat.jsonl").expanduser()
    if not conversation.turns:
        raise ConfigError(Problem("/save", "nothing has been said yet", "type a prompt first"))
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"messages": conversation.messages}, ensure_ascii=False) + "\n")
    except OSError as error:
        raise ArtefactError(Problem(str(path), f"cannot be written: {error.strerror}", "/save another path")) from None
    return Say(f"Added to {path}.")


def _quit(conversation: Conversation, rest: str) -> Reply:
    return Leave()


COMMANDS: dict[str, Command] = {
    "help": Command("/help", "this list", _help),
    "new": Command("/new", "begin a new conversation", _new),
    "system": Command("/system [TEXT|clear]", "show, set or clear the system message", _system),
    "set": Command("/set [NAME [VALUE]]", "show or change a setting; also /temperature 0.7", _set),
    "status": Command("/status", "the model, the settings, the tokens of the conversation", _status),
    "history": Command("/history", "what has been said", _history),
    "retry": Command("/retry", "answer the last prompt again", _retry),
    "undo": Command("/undo", "take the last prompt and its answer back", _undo),
    "save": Command("/save [FILE]", "append the conversation to a JSONL file of training rows (chat.jsonl)", _save),
    "quit": Command("/quit", "leave; so does Ctrl-D", _quit),
}

ALIASES = {
    "?": "help",
    "clear": "new",
    "reset": "new",
    "params": "status",
    "regen": "retry",
    "exit": "quit",
    "q": "quit",
}


def _words() -> list[str]:
    return [*COMMANDS, *(alias for alias in ALIASES if alias.isalpha()), *LIMITS]
