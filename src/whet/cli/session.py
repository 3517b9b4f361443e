"""What every command that reads a config does first: quiet the libraries, read the file, say what was odd in it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from whet.cli.arguments import Arguments
from whet.core.log import show_on_terminal, warn
from whet.core.network import keep_quiet
from whet.core.parent import signal_at_parents_end

if TYPE_CHECKING:
    from whet.config import Config

# Libraries below us speak to developers at import and at load: welcome banners, "you may want to", deprecations of
# calls that are not the user's. Their errors still reach us as exceptions. A value the user has set stays.
_QUIET_ENVIRONMENT = {
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "BITSANDBYTES_NOWELCOME": "1",
    "TOKENIZERS_PARALLELISM": "true",
    "TF_CPP_MIN_LOG_LEVEL": "3",
}
# How the libraries below us use the processor; read when they are loaded. A value the user has set stays.
_PROCESSOR_ENVIRONMENT = {
    # Threads that wait for one another sleep. Spinning, 200 short answers took 81 s instead of 24 on two cores that
    # were shared with other work (torch 2.13, GNU OpenMP).
    "OMP_WAIT_POLICY": "PASSIVE",
    # A CPU's bfloat16 products are compiled for each shape, and 1,024 are kept in each of two caches: gigabytes, as
    # documents have many lengths. With 64, 40 steps of examples/base_model took 1.3 GiB instead of 3.0, and no longer.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}
# Loggers that tell of kernels they would rather have.
_QUIET_LOGGERS = (
    "bitsandbytes",
    "accelerate",
    "peft",
    "torch.distributed.elastic.multiprocessing.redirects",
    "torch.utils._pytree",
    "torchao",
)
_QUIET_MODULES = "accelerate|bitsandbytes|datasets|peft|torch|torchao|transformers|trl|huggingface_hub|mlflow|wandb"


def open_config(path: Path, arguments: Arguments) -> Config:
    """Read the config with the overrides of the command line, and print its warnings once.

    Raises:
        ConfigError: every problem of the file, the environment and the command line.
    """
    from whet.config import load_config

    prepare_session()
    config = load_config(path, arguments.overrides)
    for problem in config.warnings:
        warn(problem)
    return config


def prepare_session() -> None:
    """Let whet speak, and the libraries be quiet."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # A launcher that is killed tells no rank: they would train on, unseen, and keep others out of output_dir.
        signal_at_parents_end(signal.SIGTERM)
    show_on_terminal(rank=int(os.environ.get("RANK", "0")))
    quiet_libraries()
    keep_quiet()
    settle_on_processor()


def settle_on_processor() -> None:
    """Say how waiting threads and caches behave, before the libraries that ask for it are imported."""
    for name, value in _PROCESSOR_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """Silence chatter that says nothing to the person at the terminal; ``python -W`` brings it back."""
    for name, value in _QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        for category in (UserWarning, FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category, module=rf"({_QUIET_MODULES})(\.|$)")
