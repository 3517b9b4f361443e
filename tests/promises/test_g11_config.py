"""G11: every one-letter typo of every key is refused; every accepted key is read by something."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import whet
from whet.config.config import Config
from whet.config.fitting import shape_of
from whet.config.keys import Findings, canonical, ours
from whet.config.known_keys import ALIASES, ATTENTION_SWITCHES, INTERNAL, NO_EFFECT, REFUSED, RENAMED
from whet.config.schema import (
    SECTIONS,
    DatasetConfig,
    FsdpConfig,
    LrGroup,
    Phase,
    QatConfig,
    QuantizationConfig,
    Section,
    SelectiveCheckpointing,
    SpecialTokens,
    fields,
    owner,
)
from whet.config.tree import plant

SOURCE = Path(whet.__file__).parent
SUBSTITUTES = "e_"
BLOCKS = {
    "datasets": (DatasetConfig, True),
    "test_datasets": (DatasetConfig, True),
    "lr_groups": (LrGroup, True),
    "phases": (Phase, True),
    "special_tokens": (SpecialTokens, False),
    "fsdp_config": (FsdpConfig, False),
    "selective_checkpointing": (SelectiveCheckpointing, False),
    "qat": (QatConfig, False),
    "quantization": (QuantizationConfig, False),
}


def typos(word: str) -> Iterator[str]:
    """Each letter left out, each doubled, each swapped with the next, each replaced."""
    for index, letter in enumerate(word):
        yield word[:index] + word[index + 1 :]
        yield word[:index] + letter + word[index:]
        if index + 1 < len(word):
            yield word[:index] + word[index + 1] + letter + word[index + 2 :]
        for substitute in SUBSTITUTES:
            yield word[:index] + substitute + word[index + 1 :]


def known() -> set[str]:
    return {*fields(), *ALIASES, *RENAMED, *ATTENTION_SWITCHES, *REFUSED, *NO_EFFECT, *INTERNAL}


def read(values: dict[str, object]) -> Findings:
    """What is said about the keys of some values."""
    findings = Findings()
    ours(canonical(plant(values), findings), findings)
    return findings


@pytest.mark.parametrize("key", sorted({*fields(), *ALIASES}))
def test_every_one_letter_typo_of_a_key_is_refused(key: str) -> None:
    wrong = {typo for typo in typos(key) if typo and typo not in known()}
    assert wrong
    for typo in wrong:
        (problem,) = read({typo: "x"}).problems
        assert problem.found == f"unknown key '{typo}'"


@pytest.mark.parametrize("key", sorted(key for key in fields() if len(key) > 5))
def test_a_typo_is_answered_with_a_key_it_may_stand_for(key: str) -> None:
    """The middle letter left out; a shorter word with a letter less may be like nothing at all."""
    typo = key[: len(key) // 2] + key[len(key) // 2 + 1 :]
    if typo in known():
        return
    (problem,) = read({typo: "x"}).problems
    assert problem.fix.startswith("did you mean '")


@pytest.mark.parametrize("block", sorted(BLOCKS))
def test_every_one_letter_typo_inside_a_block_is_refused(block: str) -> None:
    section, listed = BLOCKS[block]
    accepted = {*section.model_fields}
    for key in section.model_fields:
        for typo in typos(key):
            inner = {typo: 77}
            if not typo or typo in accepted or (block == "fsdp_config" and typo.removeprefix("fsdp_") in accepted):
                continue
            findings = read({block: [inner] if listed else inner})
            assert findings.problems or findings.warnings, typo
            if not findings.warnings:
                assert "unknown key" in findings.problems[0].found or "not supported" in findings.problems[0].found


ALWAYS_SO = {"save_safetensors"}
"""Keys whose one accepted value is what always happens."""
RUNS_LATER = {"fsdp", "fsdp_version", "fsdp_config", "deepspeed"}
"""Keys that are checked now; a run with one of them is refused (check_runnable)."""


def modules() -> Iterator[tuple[str, set[str], list[tuple[str, str]]]]:
    """Of each module that acts on a config: its text, the attributes it names, and (attribute, of what) it looks up.

    Rules and explanations do not count: a key that is only checked is a key that does nothing.
    """
    for path in sorted(SOURCE.rglob("*.py")):
        if path.relative_to(SOURCE).parts[0] == "config" and path.name != "resolve.py":
            continue
        text = path.read_text(encoding="utf-8")
        found = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
        yield text, {node.attr for node in found}, [(node.attr, ast.unparse(node.value)) for node in found]


def test_every_accepted_key_is_read_by_something() -> None:
    read_keys: set[str] = set()
    for text, named, lookups in modules():
        for attribute, of in lookups:
            if attribute in fields() and owner(attribute) in named and of != "torch":
                read_keys.add(attribute)
        read_keys |= {key for key in ("bfloat16", "float16", "float32") if f'"{key}"' in text and "precision" in named}
    assert sorted(set(fields()) - read_keys - ALWAYS_SO - RUNS_LATER) == []


@pytest.mark.parametrize("block", [DatasetConfig, SpecialTokens, LrGroup, Phase, SelectiveCheckpointing, QatConfig])
def test_every_accepted_key_of_a_block_is_read_by_something(block: type[Section]) -> None:
    read_keys: set[str] = set()
    for text, _, lookups in modules():
        if block is SpecialTokens and ".special_tokens" in text and ".model_dump(" in text:
            read_keys |= set(block.model_fields)  # all of them, as a mapping
        read_keys |= {name for name, of in lookups if of.rsplit(".", 1)[-1] not in SECTIONS}
    assert sorted(set(block.model_fields) - read_keys) == []


def test_every_section_of_the_schema_is_a_section_of_the_config() -> None:
    assert {name for name in Config.model_fields if name in SECTIONS} == set(SECTIONS)
    assert all(Config.model_fields[name].annotation is section for name, section in SECTIONS.items())


def test_every_annotation_of_the_schema_can_be_fitted() -> None:
    for section in (*SECTIONS.values(), *(block for block, _ in BLOCKS.values())):
        for name, field in section.model_fields.items():
            assert str(shape_of(field.annotation)), name
