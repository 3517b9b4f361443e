"""``whet merge-sharded-fsdp-weights``: the parts that FSDP's ranks wrote, made one model."""

from __future__ import annotations

import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.options import ConfigFile, arguments_of


class WeightType(Enum):
    """The numbers to store the weights in."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


def merge_sharded_fsdp_weights(
    context: typer.Context,
    config_file: ConfigFile,
    model_dir: Annotated[
        Path | None,
        typer.Option(
            "--model-dir",
            metavar="FOLDER",
            help="The sharded checkpoint; that of output_dir, or of its newest checkpoint, if not given.",
        ),
    ] = None,
    merged_dir: Annotated[
        Path | None,
        typer.Option("--merged-dir", metavar="FOLDER", help="Where to write; 'merged' in output_dir if not given."),
    ] = None,
    weight_type: Annotated[
        WeightType | None,
        typer.Option("--dtype", help="The numbers of the written weights; as they were saved if not given."),
    ] = None,
    max_shard_gb: Annotated[
        float, typer.Option("--max-shard-gb", min=0.001, help="Largest size of a written file, in GB.")
    ] = 5.0,
) -> None:
    """Make a model of the parts that the ranks of an FSDP run wrote (SHARDED_STATE_DICT).

    The folder written holds safetensors that transformers loads alone (PEFT, where an adapter was trained), with the
    tokenizer, chat template and stop tokens. One file of it is in memory at a time.
    """
    from whet.cli.session import open_config
    from whet.exports import gather

    config = open_config(config_file, arguments_of(context))
    folder = gather(
        config,
        checkpoint=model_dir,
        output_dir=merged_dir,
        dtype=weight_type.value if weight_type else None,
        shard_bytes=int(max_shard_gb * 1e9),
    )
    sys.stdout.write(f"{folder}\n")
