"""The Modelfile's template in Go writes what the Jinja template wrote in training, or is left out and says why.

What Go's text/template makes of it was asked of Go itself and is kept in ``tests/data/ollama.json``; where there is Go
on the machine, it is asked again.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from tests import ollama
from tests.models import make_config
from tests.tiny_tokenizers import tiny_tokenizer
from transformers import GenerationConfig

from whet.artefacts.gguf.go_template import NotInGo, Pieces, SystemPieces, learn
from whet.artefacts.gguf.modelfile import write_modelfile

needs_go = pytest.mark.skipif(bool(ollama.lacks_go()), reason=ollama.lacks_go())

RECORDED = json.loads(ollama.RECORDED.read_text("utf-8"))

EDGE = ("cohere", "gemma", "gemma3", "gemma3n", "llama2", "llama3", "llama4", "metharme")
"""Shipped templates that take spaces off the ends of texts."""


def rendered(tokenizer: Any, messages: ollama.Messages) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", ollama.shipped())
def test_go_writes_what_jinja_writes(name: str) -> None:
    """For every shipped template: with and without a system message, up to nine turns, empty texts, braces."""
    tokenizer = tiny_tokenizer(name)
    go, conversations = ollama.written_in_go(name)
    assert RECORDED[name]["template"] == go, f"another template than Go was asked about: {ollama.RENEW}"
    assert len(conversations) >= 7
    for messages, prompt in zip(conversations, RECORDED[name]["prompts"], strict=True):
        assert prompt == rendered(tokenizer, messages)


@needs_go
def test_go_says_what_was_recorded() -> None:
    made = [ollama.written_in_go(name) for name in RECORDED]
    said = ollama.read([f'FROM x\nTEMPLATE """{go}"""' for go, _ in made], [each for _, each in made])
    assert [each.prompts for each in said] == [each["prompts"] for each in RECORDED.values()]


def changed(template: str | None) -> Any:
    tokenizer = tiny_tokenizer("chatml")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="</s>", bos_token="<s>")
    tokenizer.chat_template = template
    return tokenizer


AWKWARD = {
    "braces": "{{ '{{' + m.role + '}}' + m.content + '{' }}",
    "quotes": "{{ m.role + '\"\"\"' + m.content + '\"' }}",
    "what nobody sees": "{{ '\\u200b' + m.role + '\\u3000\\u00a0' + m.content + '\\r\\n\\x02' }}",
    "backslashes": "{{ '\\\\n' + m.role + '`' + m.content + '\\\\' }}",
}


@needs_go
def test_texts_that_go_or_a_modelfile_would_change_are_kept(tmp_path: Path) -> None:
    files, expected = [], []
    for end in ("{", '"', '"""', "x"):
        for line in AWKWARD.values():
            tokenizer = changed(f"{{% for m in messages %}}{line}{{% endfor %}}{{{{ 'assistant{end}' }}}}")
            write_modelfile(
                tmp_path / "M", "m.gguf", None, tokenizer, GenerationConfig(), make_config("base"), adds_bos=False
            )
            files.append((tmp_path / "M").read_text("utf-8"))
            expected.append([rendered(tokenizer, messages) for messages in ollama.CONVERSATIONS])
    said = ollama.read(files, [ollama.CONVERSATIONS] * len(files))
    assert [each.prompts for each in said] == expected


def test_the_bos_that_llama_cpp_adds_is_not_written_twice() -> None:
    tokenizer = tiny_tokenizer("llama3")
    pieces = learn(tokenizer, {}, adds_bos=True)
    assert "<|begin_of_text|>" not in pieces.in_go()
    assert pieces.differences == learn(tokenizer, {}, adds_bos=False).differences
    for messages in ollama.CONVERSATIONS:
        assert tokenizer.bos_token + pieces.write(messages) == rendered(tokenizer, messages)


def test_a_bos_that_training_did_not_have_is_said() -> None:
    assert learn(tiny_tokenizer("chatml"), {}, adds_bos=True).differences == (
        "the GGUF has <s> put in front, which was not there in training",
    )


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
        (
            "{% for m in messages %}{{ m.role + ':' + (m.content or 'nothing') }}{% endfor %}",
            "otherwise than turn by turn",
        ),
        ("{{ raise_exception('no\nmore') }}", r"refuses a plain conversation \(no"),
        ("{{ messages[0].content + 1 }}", r"refuses a plain conversation \(can only concatenate"),
        (None, "the tokenizer has no chat template"),
    ],
)
def test_what_go_cannot_say_is_named(template: str | None, why: str) -> None:
    with pytest.raises(NotInGo, match=why):
        learn(changed(template), {}, adds_bos=False)


def test_what_go_does_otherwise_with_a_text_is_told() -> None:
    for name in ollama.shipped():
        told = " ".join(learn(tiny_tokenizer(name), {}, adds_bos=False).differences)
        assert ("spaces at the ends of texts" in told) == (name in EDGE), name
        assert ("reasoning" in told) == (name == "qwen3"), name


def test_a_modelfile_has_template_stops_system_and_sampling(tmp_path: Path) -> None:
    config = make_config("base", template={"default_system_message": "You are whet."})
    tokenizer = tiny_tokenizer("qwen_25")
    im_end, eos, letter = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<pad>", "Ġa"])
    generation = GenerationConfig(
        eos_token_id=[im_end, eos, letter],
        do_sample=True,
        temperature=0.7,
        top_p=0.8,
        top_k=20,
        repetition_penalty=1.05,
    )
    said = write_modelfile(
        tmp_path / "Modelfile", "model.gguf", "adapter.gguf", tokenizer, generation, config, adds_bos=False
    )
    text = (tmp_path / "Modelfile").read_text("utf-8")
    assert said.startswith("with the training template in Go")
    assert "# tools are not written: with this template Ollama refuses requests that have some\n" in text
    expected = [
        ("FROM", "./model.gguf"), ("ADAPTER", "./adapter.gguf"), ("TEMPLATE", RECORDED["qwen_25"]["template"]),
        ("SYSTEM", "You are whet."), ("PARAMETER", "stop <|im_end|>"), ("PARAMETER", "stop <pad>"),
        ("PARAMETER", "stop  a"), ("PARAMETER", "temperature 0.7"), ("PARAMETER", "top_p 0.8"),
        ("PARAMETER", "top_k 20"), ("PARAMETER", "repeat_penalty 1.05"),
    ]  # fmt: skip
    assert 'PARAMETER stop " a"\n' in text
    assert f'TEMPLATE """{expected[2][1]}"""\nSYSTEM """You are whet."""\n' in text
    if not ollama.lacks_go():
        assert ollama.read([text], [[]])[0].instructions == expected


@pytest.mark.parametrize("system", ['Say """.', 'Say "no"', "zero\u200bwidth"])
def test_a_system_message_that_a_modelfile_would_change_is_a_comment(system: str, tmp_path: Path) -> None:
    config = make_config("base", template={"default_system_message": system})
    write_modelfile(tmp_path / "M", "m.gguf", None, tiny_tokenizer(), GenerationConfig(), config, adds_bos=False)
    text = (tmp_path / "M").read_text("utf-8")
    assert "\nSYSTEM" not in text
    assert f"# the system message of training: {system!r}\n" in text


def test_a_template_that_is_left_out_is_said_in_the_file(tmp_path: Path) -> None:
    tokenizer = changed("{{ raise_exception('no\nmore') }}")
    said = write_modelfile(
        tmp_path / "M", "llama3.2", None, tokenizer, GenerationConfig(), make_config("base"), adds_bos=False
    )
    text = (tmp_path / "M").read_text("utf-8")
    assert "without TEMPLATE, as the chat template refuses a plain conversation (no more); Ollama then" in said
    assert 'TEMPLATE "' not in text
    assert "FROM llama3.2\n" in text
    assert "# no TEMPLATE: the chat template refuses a plain conversation (no more).\n" in text
    assert all(line.startswith(("#", "FROM", "PARAMETER")) for line in text.splitlines())


def test_a_token_of_a_stranger_commands_nothing(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(changed(tiny_tokenizer().chat_template))
    tokenizer.bos_token = "<s>\nFROM evil"
    write_modelfile(tmp_path / "M", "m.gguf", None, tokenizer, GenerationConfig(), make_config("base"), adds_bos=True)
    text = (tmp_path / "M").read_text("utf-8")
    assert [line for line in text.splitlines() if line.startswith("FROM")] == ["FROM ./m.gguf"]
    assert "FROM evil put in front" in text


def test_pieces_are_written_turn_by_turn() -> None:
    turns = [each["content"] for each in ollama.conversation(3)]
    first = Pieces("<u>", "<a>", "<u>", "<a!>", SystemPieces(("<s>", "</s>")))
    assert first.write(ollama.conversation(3)) == f"<u>{turns[0]}<a>{turns[1]}<u>{turns[2]}<a!>"
    assert first.write(ollama.conversation(1, "S")) == f"<s>S</s>{turns[0]}<a!>"
    last = Pieces("<u>", "<a>", "<u>", "<a!>", SystemPieces(("<s>", "</s>"), ("<u><s>", "</s>")))
    assert last.write(ollama.conversation(3, "S")) == f"<u>{turns[0]}<a>{turns[1]}<u><s>S</s>{turns[2]}<a!>"
