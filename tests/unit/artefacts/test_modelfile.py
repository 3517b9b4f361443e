"""The Modelfile's template in Go writes what the Jinja template wrote in training, or is left out and says why."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tests.models import make_config
from tests.tiny_tokenizers import tiny_tokenizer
from transformers import GenerationConfig

from whet.artefacts.gguf.modelfile import NotInGo, Pieces, learn, write_modelfile

TURNS = ("How is it called?", "By {{ its }} name.\n\nAnd so on:", "Übung, 東京?", "1 < 2", "Thanks!")


def conversation(turns: int, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(TURNS[:turns])]
    return [{"role": "system", "content": system}, *messages] if system else messages


CONVERSATIONS = [conversation(turns, system) for turns in (1, 3, 5) for system in (None, "Be brief.")]


def go(template: str, messages: list[dict[str, str]]) -> str:
    """Go's text/template, as much of it as a Modelfile of ours has, with Ollama's variables.

    Actions are read in order; a condition opens a level, ``else``, ``else if`` and ``end`` belong to the innermost.
    """
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    parts = re.split(r"(\{\{.*?\}\})", template)
    position = 0

    def block(number: int | None, active: bool) -> str:
        """Up to the ``end`` or ``else`` that closes the level; ``position`` stands behind it then."""
        nonlocal position
        written = ""
        while position < len(parts):
            part = parts[position]
            action = part[2:-2].strip() if part.startswith("{{") else None
            if action is not None and (action == "end" or action.startswith("else")):
                return written
            position += 1
            if action is None:
                written += part if active else ""
            elif action.startswith("range"):
                assert action == "range $i, $_ := .Messages"
                start = position
                for index in range(len(messages)) if active else [0]:
                    position = start
                    written += block(index, active)
                position += 1
            elif action.startswith("if "):
                written += conditional(action[3:], number, active)
            elif action == "$last := eq (len (slice $.Messages $i)) 1":
                continue
            elif active:
                written += value(action, number)
        return written

    def conditional(condition: str, number: int | None, active: bool) -> str:
        nonlocal position
        holds = active and truth(condition, number)
        written, done = block(number, holds), holds
        while parts[position][2:-2].strip() != "end":
            action = parts[position][2:-2].strip()
            position += 1
            now = active and not done and (action == "else" or truth(action.removeprefix("else if "), number))
            written += block(number, now)
            done = done or now
        position += 1
        return written

    def truth(condition: str, number: int | None) -> bool:
        if condition == ".System":
            return bool(system)
        assert number is not None
        is_last = len(messages[number:]) == 1
        known = {"$last": is_last, "not $last": not is_last}
        if condition in known:
            return known[condition]
        role = re.fullmatch(r'eq \.Role "(\w+)"', condition)
        assert role, f"not in the subset: {condition}"
        return messages[number]["role"] == role[1]

    def value(action: str, number: int | None) -> str:
        if action == ".System":
            return system
        if action == '"{{"':
            return "{{"
        assert action == ".Content"
        assert number is not None
        return messages[number]["content"]

    return block(None, True)


PLAIN = ["chatml", "llama3", "exaone", "phi_35", "qwen_25", "metharme", "mistral_v1", "alpaca", "deepseek_v2",
         "deepseek_v3", "cohere", "llama4"]  # fmt: skip
"""Shipped templates that write turn by turn."""


def rendered(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", PLAIN)
def test_go_writes_what_jinja_writes(name: str) -> None:
    tokenizer = tiny_tokenizer(name)
    pieces = learn(tokenizer, {}, adds_bos=False)
    compared = 0
    for messages in CONVERSATIONS:
        if messages[0]["role"] == "system" and pieces.before_system is None:
            continue
        assert go(pieces.in_go(), messages) == rendered(tokenizer, messages)
        compared += 1
    assert compared >= 3


def test_the_bos_that_llama_cpp_adds_is_not_written_twice() -> None:
    tokenizer = tiny_tokenizer("llama3")
    pieces = learn(tokenizer, {}, adds_bos=True)
    assert "<|begin_of_text|>" not in pieces.in_go()
    for messages in CONVERSATIONS:
        assert tokenizer.bos_token + go(pieces.in_go(), messages) == rendered(tokenizer, messages)


def test_braces_of_a_template_are_text_in_go() -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '{{' + m.role + '}}' + m.content + '\n' }}{% endfor %}{{ '{{assistant}}' }}"
    )
    pieces = learn(tokenizer, {}, adds_bos=False)
    for messages in CONVERSATIONS:
        assert go(pieces.in_go(), messages) == rendered(tokenizer, messages)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}", "writes today's date"),
        ("{{ messages[0].content }}", "does not write every text once"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}{{ messages|length }}", "otherwise when others follow"),
        (
            "{% for m in messages %}{{ m.role + ('!' if loop.index0 > 2 else '?') + m.content }}{% endfor %}",
            "5 turns otherwise than turn by turn",
        ),
        ("{{ raise_exception('no') }}", r"refuses a plain conversation \(no\)"),
        (None, "the tokenizer has no chat template"),
    ],
)
def test_what_go_cannot_say_is_named(template: str | None, why: str) -> None:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>")
    tokenizer.chat_template = template
    with pytest.raises(NotInGo, match=why):
        learn(tokenizer, {}, adds_bos=False)


def test_a_modelfile_has_template_stops_system_and_sampling(tmp_path: Path) -> None:
    config = make_config("base", template={"default_system_message": "You are whet."})
    tokenizer = tiny_tokenizer("qwen_25")
    im_end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<pad>"])
    generation = GenerationConfig(
        eos_token_id=[im_end, eos], do_sample=True, temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05
    )
    said = write_modelfile(tmp_path / "Modelfile", "model.gguf", "adapter.gguf", tokenizer, generation, config)
    text = (tmp_path / "Modelfile").read_text()
    assert said.startswith("with the training template in Go")
    assert text.splitlines()[1:3] == ["FROM ./model.gguf", "ADAPTER ./adapter.gguf"]
    template = re.search(r'TEMPLATE """(.*)"""\nSYSTEM """You are whet."""\n', text, re.DOTALL)
    assert template is not None
    assert go(template[1], CONVERSATIONS[3]) == rendered(tokenizer, CONVERSATIONS[3])
    assert re.findall("PARAMETER (.*)", text) == [
        'stop "<|im_end|>"', 'stop "<pad>"', "temperature 0.7", "top_p 0.8", "top_k 20", "repeat_penalty 1.05"
    ]  # fmt: skip


def test_a_template_that_is_left_out_is_said_in_the_file(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer("mistral_v2v3")
    said = write_modelfile(tmp_path / "M", "llama3.2", None, tokenizer, GenerationConfig(), make_config("base"))
    text = (tmp_path / "M").read_text()
    assert "without TEMPLATE, as the chat template writes 3 turns and a system message otherwise" in said
    assert 'TEMPLATE "' not in text
    assert "FROM llama3.2\n" in text
    assert "# no TEMPLATE: the chat template writes 3 turns and a system message otherwise" in text


def test_pieces_are_written_turn_by_turn() -> None:
    pieces = Pieces("<u>", "<s>", "<u>", "<a>", "<u>", "<a!>")
    assert pieces.write(conversation(3)) == f"<u>{TURNS[0]}<a>{TURNS[1]}<u>{TURNS[2]}<a!>"
    assert pieces.write(conversation(1, "S")) == f"<s>S<u>{TURNS[0]}<a!>"
