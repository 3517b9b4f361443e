"""``whet``: the table of commands, and what becomes of an error.

| what happened                     | what is printed (standard error)          | exit code |
|-----------------------------------|-------------------------------------------|-----------|
| a mistake the user can mend       | one ``error:`` line for each problem      | 2         |
| the run ended itself              | the same                                  | 1         |
| Ctrl-C                            | one sentence                              | 130       |
| SIGTERM, or the terminal is gone  | the same                                  | 143, 129  |
| the disk is full                  | one ``error:`` line                       | 2         |
| the reader of our output has left | nothing                                   | 141       |
| anything else: a fault of ours    | the traceback, and where to report it     | 1         |
"""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import typer

from whet.cli import (
    check,
    config,
    evaluate,
    export_gguf,
    inference,
    inspect,
    merge_lora,
    merge_sharded,
    preprocess,
    push,
    quantize,
    rerun,
    train,
)
from whet.cli.arguments import Arguments, Takes, divide
from whet.cli.elsewhere import COMMANDS, OPTIONS
from whet.cli.endings import Ended, ended_by_signals, full_disk
from whet.cli.options import OVERRIDES_HELP
from whet.cli.problems import print_error_line, print_problems
from whet.core.errors import ConfigError, Problem, StoppedAsAsked, WhetError
from whet.core.nearest import nearest, suggestion
from whet.core.secrets import redact_process

USAGE_CODE = 2
FAULT_CODE = 1
INTERRUPTED_CODE = 130
BROKEN_PIPE_CODE = 141

# Options whose value may be left out. Click cannot say that of an option, so the division of the line does.
_VALUE_OPTIONAL = frozenset({"--resume-from-checkpoint"})


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command and leave the process with its exit code."""
    raise SystemExit(run_command(sys.argv[1:] if argv is None else argv))


def run_command(argv: Sequence[str]) -> int:
    """Run one command and return its exit code; everything that can go wrong is printed here and nowhere else."""
    redact_process()
    _write_whatever_stands_in_a_name()
    try:
        with ended_by_signals():
            code = _dispatch(list(argv))
            sys.stdout.flush()
    except WhetError as error:
        print_problems(error.problems, kind="" if isinstance(error, StoppedAsAsked) else "error: ")
        return error.exit_code
    except KeyboardInterrupt as interrupted:
        print_error_line("\nInterrupted. What was published before (checkpoints, prepared data) is kept.")
        return interrupted.exit_code if isinstance(interrupted, Ended) else INTERRUPTED_CODE
    except BrokenPipeError:
        _drop_output()
        return BROKEN_PIPE_CODE
    # Not a hiding place: this is the one spot where a fault of ours is shown in full, with what to do about it.
    except Exception as error:  # noqa: BLE001
        if (problem := full_disk(error)) is not None:
            print_problems([problem])
            _drop_output()
            return USAGE_CODE
        print_error_line(traceback.format_exc())
        print_error_line("This is a fault in whet, not in your file. Please report it to the project, with the above.")
        return FAULT_CODE
    return code


def _write_whatever_stands_in_a_name() -> None:
    """Standard output as standard error has it: what its encoding has no character for is written as an escape."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _drop_output() -> None:
    """The interpreter flushes standard output once more on its way out, which would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def build_app() -> typer.Typer:
    """Every command, with nothing imported that a help page does not need.

    Help is plain text: it is half the time of Rich's panels (0.05 s against 0.10 s) and leaves the sentences more room.
    """
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
    app = typer.Typer(name="whet", add_completion=False, rich_markup_mode=None, context_settings=settings)
    app.callback()(_root)
    for name, command in _COMMANDS.items():
        app.command(name, short_help=_IN_SHORT.get(name), epilog=OVERRIDES_HELP, context_settings=settings)(command)
    config_app = typer.Typer(
        name="config",
        help="Look at the keys a config may have, and at the values one has.",
        short_help="All keys, and where each value comes from.",
        context_settings=settings,
        rich_markup_mode=None,
    )
    config_app.command("schema", context_settings=settings)(config.schema)
    config_app.command("explain", epilog=OVERRIDES_HELP, context_settings=settings)(config.explain)
    app.add_typer(config_app)
    return app


_COMMANDS: dict[str, Callable[..., None]] = {
    "train": train.train,
    "rerun": rerun.rerun,
    "preprocess": preprocess.preprocess,
    "inspect": inspect.inspect,
    "check": check.check,
    "inference": inference.inference,
    "chat": inference.inference,
    "merge-lora": merge_lora.merge_lora,
    "merge-sharded-fsdp-weights": merge_sharded.merge_sharded_fsdp_weights,
    "quantize": quantize.quantize,
    "push": push.push,
    "export-gguf": export_gguf.export_gguf,
    "evaluate": evaluate.evaluate,
}

_IN_SHORT: dict[str, str] = {
    "train": "Fine-tune a model, or go on with a run.",
    "rerun": "Repeat the run that a run.json records.",
    "preprocess": "Read and tokenise the data alone.",
    "inspect": "Write a page that shows the data.",
    "check": "Find mistakes before training does.",
    "inference": "Talk to the trained model.",
    "chat": "The same as inference.",
    "merge-lora": "Fold an adapter into its base model.",
    "merge-sharded-fsdp-weights": "Make one model of FSDP's shards.",
    "quantize": "Write the trained model in few bits.",
    "push": "Send to the hub and trackers what they lack.",
    "export-gguf": "Write GGUF for llama.cpp and Ollama.",
    "evaluate": "Losses of the trained model.",
}
"""What the list of all commands says of each, in what is left of 80 columns."""


def _root(version: bool = typer.Option(False, "--version", help="Print the version and leave.")) -> None:
    """Fine-tune language models from one YAML file.

    Begin with 'whet check my.yaml': it finds every mistake that can be known before the first step. Then 'whet train
    my.yaml'; 'whet COMMAND --help' has more on each.
    """


def _dispatch(argv: list[str]) -> int:
    if "--version" in argv[:1]:
        _print_version()
        return 0
    path, command, tokens = _find_command(argv)
    takes_config = any(parameter.name in ("config_file", "record_file") for parameter in command.params)
    options = _options_of(command)
    arguments = divide(tokens, options) if takes_config else Arguments(own=tuple(tokens))
    _refuse_mistyped_options(arguments, options, " ".join(path))
    try:
        with command.make_context(" ".join(path), list(arguments.own), obj=arguments) as context:
            command.invoke(context)
    except typer.Exit as leaving:
        return int(leaving.exit_code)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _UsageErrorBase as error:
        raise ConfigError(_usage_problem(error, " ".join(path), takes_config)) from None
    return 0


# The base of every complaint of the parser. Typer carries Click inside itself since 0.26, and imported it before: the
# one name both versions export tells which class that is.
_UsageErrorBase: type[Any] = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")


def _find_command(argv: list[str]) -> tuple[list[str], Any, list[str]]:
    """Walk down the groups: the names passed, the command found, and the tokens that are its own.

    Raises:
        ConfigError: a name that no group has.
    """
    path = ["whet"]
    command: Any = typer.main.get_command(build_app())
    tokens = argv
    while isinstance(command, typer.core.TyperGroup):
        known: Mapping[str, Any] = command.commands
        if not tokens or tokens[0].startswith("-"):
            return path, command, tokens or ["--help"]
        if tokens[0] not in known:
            advice = COMMANDS.get(tokens[0]) or suggestion(tokens[0], known)
            raise ConfigError(Problem(" ".join(path), f"there is no command '{tokens[0]}'", advice))
        command = known[tokens[0]]
        path.append(tokens[0])
        tokens = tokens[1:]
    return path, command, tokens


def _options_of(command: Any) -> dict[str, Takes]:
    options = {"--help": Takes.NOTHING}
    for parameter in command.params:
        if parameter.param_type_name != "option":
            continue
        for name in (*parameter.opts, *parameter.secondary_opts):
            if name in _VALUE_OPTIONAL:
                options[name] = Takes.PERHAPS_VALUE
            else:
                options[name] = Takes.NOTHING if parameter.is_flag else Takes.VALUE
    return options


def _refuse_mistyped_options(arguments: Arguments, options: Mapping[str, Takes], command: str) -> None:
    """An option that is neither the command's own nor a key of the YAML, and of which we know what was meant.

    Raises:
        ConfigError: names every such option.
    """
    meant = {name: advice for name in arguments.override_names() if (advice := _meant(name, options)) is not None}
    if not meant:
        return
    from whet.config.known_keys import every_name
    from whet.config.schema import fields

    keys = {f"--{key}".replace("_", "-") for key in {*fields(), *every_name()}}
    problems = [
        Problem(command, f"unknown option '{name}'", advice)
        for name, advice in meant.items()
        if name.replace("_", "-").replace("--no-", "--", 1) not in keys and name.replace("_", "-") not in keys
    ]
    if problems:
        raise ConfigError(problems)


def _meant(name: str, options: Mapping[str, Takes]) -> str | None:
    """What to write for an option that may be a slip of the hand, one cut short, or one of another program."""
    spelled = name.replace("_", "-")
    if spelled in OPTIONS:
        return OPTIONS[spelled]
    others = [option for option in options if option != "--help"]
    whole = [option for option in others if option.startswith(f"{spelled}-")]
    close = whole[0] if len(whole) == 1 else nearest(spelled, others)
    return f"did you mean '{close}'?" if close is not None else None


def _usage_problem(error: Any, command: str, takes_config: bool) -> Problem:
    found = str(error.format_message()).rstrip(".")
    if "CONFIG" in found and "issing" in found:
        return Problem(command, "no CONFIG was given", f"put the YAML file first: {command} my.yaml")
    if "RUN_JSON" in found and "issing" in found:
        return Problem(command, "no RUN_JSON was given", f"name the record of a run: {command} model-out/run.json")
    found = (found[:1].lower() + found[1:]).replace("Value error, ", "")
    return Problem(command, found, f"'{command} --help' shows what it takes")


def _print_version() -> None:
    from whet import __version__

    sys.stdout.write(f"whet {__version__}\n")
