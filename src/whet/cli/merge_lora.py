"""``whet merge-lora``: an adapter folded into its base model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


def merge_lora(
    context: typer.Context,
    config_file: ConfigFile,
    lora_model_dir: Annotated[
        Path | None,
        typer.Option("--lora-model-dir", metavar="FOLDER", help="The adapter; the one in output_dir if not given."),
    ] = None,
    merged_dir: Annotated[
        Path | None,
        typer.Option("--merged-dir", metavar="FOLDER", help="Where to write; 'merged' in output_dir if not given."),
    ] = None,
) -> None:
    """Fold the LoRA or QLoRA adapter into its base model.

    The folder written holds a model that transformers loads alone, with its tokenizer, chat template and stop tokens.
    """
    from whet.cli.session import open_config
    from whet.run import merge

    config = open_config(config_file, arguments_of(context))
    folder = merge(config, adapter_dir=lora_model_dir, output_dir=merged_dir)
    sys.stdout.write(f"{folder}\n")
