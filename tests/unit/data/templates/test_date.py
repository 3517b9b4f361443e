"""A template that asks for the time is told one day, and what is prepared is named by it."""

from __future__ import annotations

import json
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.configs import config_with
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config.load import make_config
from whet.config.resolve import resolve
from whet.core.errors import RowError
from whet.core.types import Conversation, Hardware, Turn
from whet.data import prepare as prepare_module
from whet.data.prepare import prepare
from whet.data.store import PreparedSet
from whet.data.templates import render
from whet.data.templates.render import Renderer, TrainPolicy
from whet.data.tokenise import SampleEncoder

TOKENIZER = tiny_tokenizer("chatml")
PLAIN = str(TOKENIZER.chat_template)
DATED = "{{ strftime_now('%d %b %Y %H:%M') }}" + PLAIN
#: As Llama 3.1 has it.
LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    '{%- set date_string = strftime_now("%d %b %Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}'
    '{%- endif %}{{- "Today Date: " + date_string + "\\n" }}'
)
DAY, LATER = date(2026, 11, 21), date(2030, 1, 1)
TALK = Conversation((Turn({"role": "user", "content": "Q"}), Turn({"role": "assistant", "content": "A"})))


def on_day(day: date, monkeypatch: pytest.MonkeyPatch) -> None:
    class Calendar(date):
        @classmethod
        def today(cls) -> date:  # type: ignore[override]
            return day

    for module in (render, prepare_module):
        monkeypatch.setattr(module, "date", Calendar)


@pytest.mark.parametrize(
    "template",
    [
        DATED,
        LLAMA + PLAIN,
        "{% macro day() %}{{ strftime_now(format='%A') }}{% endmacro %}{{ day() }}" + PLAIN,
        "\n  {%- for _ in [1] %}{{ strftime_now('%Y')|int + 1 }}{% endfor %}\n" + PLAIN,
        "  {% if true %}{{ strftime_now('%S.%f') }}{% endif %}" + PLAIN,
    ],
)
def test_a_render_of_another_day_is_that_of_transformers_on_that_day(template: str) -> None:
    renderer = Renderer(template, TOKENIZER, today=DAY)
    text = renderer.render(TALK, TrainPolicy()).text
    renderer.check(TALK, text)
    assert renderer.date == "2026-11-21"
    with pytest.raises(RuntimeError, match="otherwise than transformers"):
        renderer.check(TALK, text.replace("2026", "2025").replace("2027", "2026") + " ")


def test_the_check_is_told_the_day_as_it_stands_in_the_text() -> None:
    renderer = Renderer(DATED, TOKENIZER, today=DAY)
    text = renderer.render(TALK, TrainPolicy()).text
    assert text.startswith("21 Nov 2026 00:00<")
    with pytest.raises(RuntimeError):
        renderer.check(TALK, text.replace("21 Nov 2026", f"{datetime.now():%d %b %Y}").replace("00:00", "00:01"))


def test_a_template_that_is_given_a_date_asks_for_none() -> None:
    renderer = Renderer(LLAMA + PLAIN, TOKENIZER, {"date_string": "1 May 2020"}, today=DAY)
    text = renderer.render(TALK, TrainPolicy()).text
    renderer.check(TALK, text)
    assert text.startswith("Today Date: 1 May 2020\n")
    assert renderer.date == ""
    assert Renderer(PLAIN, TOKENIZER, today=DAY).date == ""


def test_a_date_that_stands_only_in_conversations_with_tools_is_known() -> None:
    template = "{% if tools %}{{ strftime_now('%Y') }}{% endif %}" + PLAIN
    assert Renderer(template, TOKENIZER, today=DAY).date == "2026-11-21"


def test_a_date_that_nobody_knew_of_is_not_written() -> None:
    template = "{% if messages|length == 7 %}{{ strftime_now('%Y') }}{% endif %}" + PLAIN
    renderer = Renderer(template, TOKENIZER, today=DAY)
    renderer.render(TALK, TrainPolicy())
    assert renderer.date == ""
    with pytest.raises(RowError, match="chat template failed: it asks for the date in some conversations only"):
        renderer.render(Conversation((*TALK.turns, *TALK.turns, *TALK.turns, TALK.turns[0])), TrainPolicy())


def prepared(**keys: Any) -> PreparedSet:
    values = {
        "base_model": "org/m",
        "learning_rate": 1e-4,
        "datasets": [{"path": "talks.jsonl", "type": "chat_template"}],
        "chat_template": "jinja",
        "sequence_len": 512,
    }
    config = make_config({**values, **keys}, check_files=False)
    return prepare(config, resolve(config, Hardware("cpu")), TOKENIZER)


def begins(prepared: PreparedSet) -> list[str]:
    texts = [str(TOKENIZER.decode(prepared.train.tokens(at)[0])) for at in range(len(prepared.train))]
    return [text.partition("<|im_start|>")[0] for text in texts]


def write_talks(count: int) -> None:
    rows = [{"messages": [turn.message for turn in TALK.turns]}] * count
    Path("talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_sample_of_a_set_has_the_day_that_the_set_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_talks(2)
    on_day(DAY, monkeypatch)
    first = prepared(chat_template_jinja=DATED)
    assert begins(first) == ["21 Nov 2026 00:00"] * 2
    assert prepared(chat_template_jinja=DATED).path == first.path
    on_day(LATER, monkeypatch)
    write_talks(3)
    assert begins(prepared(chat_template_jinja=DATED)) == ["01 Jan 2030 00:00"] * 3
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warned[0] == (
        "chat_template: the chat template writes the date of preparation, 2026-11-21, into samples; every day they are "
        "others -> give it a date that stays in chat_template_kwargs; templates like Llama 3's read "
        '`date_string: "2026-11-21"`'
    )
    assert len(warned) == 3  # one for each preparation


def test_a_date_that_is_given_leaves_one_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write_talks(2)
    on_day(DAY, monkeypatch)
    keys = {"chat_template_jinja": LLAMA + PLAIN, "chat_template_kwargs": {"date_string": "1 May 2020"}}
    first = prepared(**keys)
    on_day(LATER, monkeypatch)
    assert prepared(**keys).path == first.path
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_the_day_is_part_of_what_an_encoder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_with({"type": "chat_template"}, chat_template="jinja", chat_template_jinja=DATED)
    days = []
    for day in (DAY, LATER):
        on_day(day, monkeypatch)
        days.append(SampleEncoder(config.data.datasets[0], config, TOKENIZER).identity()["date"])
    assert days == ["2026-11-21", "2030-01-01"]
