"""``whet quantize``: the trained model, written in few bits."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


def quantize(
    context: typer.Context,
    config_file: ConfigFile,
    model_dir: Annotated[
        Path | None,
        typer.Option(
            "--model-dir", metavar="FOLDER", help="The model; that of output_dir (or merged in it) if not given."
        ),
    ] = None,
    quantized_dir: Annotated[
        Path | None,
        typer.Option(
            "--quantized-dir", metavar="FOLDER", help="Where to write; 'quantized' in output_dir if not given."
        ),
    ] = None,
) -> None:
    """Write the trained model in few bits, by torchao.

    In which numbers, the block 'quantization' of CONFIG says, or 'qat' if the model was trained for them. The folder
    written holds a model that transformers loads alone; how far its answers are from the model's is printed.
    """
    from whet.cli.session import open_config
    from whet.run import quantize as quantize_run

    config = open_config(config_file, arguments_of(context))
    sys.stdout.write(f"{quantize_run(config, model_dir=model_dir, output_dir=quantized_dir)}\n")
