"""A command line divided: own options, overrides, launcher arguments."""

from __future__ import annotations

import pytest

from whet.cli.arguments import Arguments, Takes, divide

OPTIONS = {
    "--help": Takes.NOTHING,
    "--debug": Takes.NOTHING,
    "--num-processes": Takes.VALUE,
    "--resume-from-checkpoint": Takes.PERHAPS_VALUE,
}


@pytest.mark.parametrize(
    ("line", "own", "overrides"),
    [
        ("my.yaml", "my.yaml", ""),
        ("my.yaml --learning-rate 1e-4", "my.yaml", "--learning-rate 1e-4"),
        ("--learning-rate 1e-4 my.yaml", "my.yaml", "--learning-rate 1e-4"),
        ("my.yaml --bf16 --no-fp16 --seed=3", "my.yaml", "--bf16 --no-fp16 --seed=3"),
        ("my.yaml --weight-decay -0.1", "my.yaml", "--weight-decay -0.1"),
        ("my.yaml --x -.5 --y -", "my.yaml", "--x -.5 --y -"),
        ("my.yaml --num_processes 2 --lora.r 8 --debug", "my.yaml --num-processes 2 --debug", "--lora.r 8"),
        ("my.yaml --num-processes=2", "my.yaml --num-processes=2", ""),
        ("my.yaml --resume_from_checkpoint", "my.yaml --resume-from-checkpoint true", ""),
        ("my.yaml --resume_from_checkpoint a/b", "my.yaml --resume-from-checkpoint a/b", ""),
        ("my.yaml --resume-from-checkpoint --seed 1", "my.yaml --resume-from-checkpoint true", "--seed 1"),
        ("my.yaml -x", "my.yaml -x", ""),
        ("my.yaml --seed 1 --seed 2", "my.yaml", "--seed 1 --seed 2"),
    ],
)
def test_each_token_goes_to_one_part_in_its_order(line: str, own: str, overrides: str) -> None:
    assert divide(line.split(), OPTIONS) == Arguments(tuple(own.split()), tuple(overrides.split()))


def test_what_follows_two_dashes_is_the_launchers() -> None:
    arguments = divide(["my.yaml", "--", "--debug", "--", "x"], OPTIONS)
    assert arguments == Arguments(("my.yaml",), (), ("--debug", "--", "x"))


def test_override_names_are_options_without_values() -> None:
    arguments = divide(["my.yaml", "--lora.r=8", "--weight-decay", "-0.1", "--bf16"], OPTIONS)
    assert arguments.override_names() == ["--lora.r", "--weight-decay", "--bf16"]
