"""``whet export-gguf``: the trained model as a GGUF file, with a Modelfile for Ollama."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


class OutType(Enum):
    """How weights are stored, by the names of llama.cpp's converter."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"


def export_gguf(
    context: typer.Context,
    config_file: ConfigFile,
    outtype: Annotated[
        OutType | None,
        typer.Option(
            "--outtype",
            help="How weights are stored; if not given, in the 16 bits nearest to the model's, an adapter in f32.",
        ),
    ] = None,
    model_dir: Annotated[
        Path | None,
        typer.Option(
            "--model-dir", metavar="FOLDER", help="The model; that of output_dir (or merged in it) if not given."
        ),
    ] = None,
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Write the adapter alone, to be put beside a GGUF of its base.")
    ] = False,
    lora_model_dir: Annotated[
        Path | None,
        typer.Option("--lora-model-dir", metavar="FOLDER", help="The adapter; the one in output_dir if not given."),
    ] = None,
    base_gguf: Annotated[
        str | None,
        typer.Option("--base-gguf", metavar="FILE", help="With --adapter: the base as GGUF, or its name in Ollama."),
    ] = None,
    gguf_dir: Annotated[
        Path | None,
        typer.Option("--gguf-dir", metavar="FOLDER", help="Where to write; 'gguf' in output_dir if not given."),
    ] = None,
) -> None:
    """Write the trained model as GGUF, for llama.cpp, Ollama and LM Studio.

    After the training of an adapter, it is merged into its base first (or, with --adapter, written alone). Beside the
    file lies an Ollama Modelfile with the training template and stop tokens.
    """
    from whet.cli.session import open_config
    from whet.exports import export_gguf as export

    config = open_config(config_file, arguments_of(context))
    folder = export(
        config,
        outtype=outtype.value if outtype else None,
        model_dir=model_dir,
        adapter=adapter,
        adapter_dir=lora_model_dir,
        base_gguf=base_gguf,
        output_dir=gguf_dir,
    )
    sys.stdout.write(f"{folder}\n")
