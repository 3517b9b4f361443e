"""``whet inference`` (``whet chat``): talk to the model a run has made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


def inference(
    context: typer.Context,
    config_file: ConfigFile,
    prompt: Annotated[str | None, typer.Option("--prompt", metavar="TEXT", help="Answer this and leave.")] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", help="Begins each conversation; default_system_message if not given."),
    ] = None,
    base_model: Annotated[
        str | None,
        typer.Option(
            "--base-model", metavar="MODEL", help="The model to load or to put the adapter on; CONFIG's if not given."
        ),
    ] = None,
    lora_model_dir: Annotated[
        Path | None,
        typer.Option("--lora-model-dir", metavar="FOLDER", help="The adapter; the one in output_dir if not given."),
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="The base model as it was before the run.")] = False,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temperature", metavar="NUMBER", help="0 takes the likeliest token; the model's own if not given."
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option("--max-new-tokens", metavar="N", help="The longest answer; 1024 if not given.")
    ] = None,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Whether a prompt sees the turns before it.")
    ] = True,
) -> None:
    """Chat with the model that CONFIG trained.

    The prompt's tokens are those of training: same template, same ids. In a terminal the answer streams and
    /help lists the commands; from a pipe each line is a prompt and each answer is printed plainly.
    """
    from whet.cli.session import open_config
    from whet.serving.sampling import Sampling

    settings = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    Sampling().with_values(**settings)
    arguments = arguments_of(context)
    if base_model is not None:
        arguments = replace(arguments, overrides=(*arguments.overrides, "--base-model", base_model))
    config = open_config(config_file, arguments)
    # After the config is known to be right: what follows imports torch.
    from whet.cli.chat_terminal import chat
    from whet.serving.chat import load_engine

    names_the_model_itself = base_model is not None and config.adapter.adapter is None and lora_model_dir is None
    engine = load_engine(config, lora_model_dir=lora_model_dir, untrained=untrained or names_the_model_itself)
    sampling = engine.default_sampling.with_values(**settings)
    if system is None:
        system = config.template.default_system_message
    raise typer.Exit(chat(engine, sampling, prompt=prompt, system=system, keep_history=history))
