"""What the libraries below would tell or ask the network without being asked to: switched off.

Each reads its variable when it is imported or first used. A value that the user has set stays: whoever wants to send
figures to a project may.
"""

from __future__ import annotations

import os
import sys

SILENT = {
    # Figures about the user: transformers, datasets, TRL, PEFT (all through huggingface_hub), and whoever honours the
    # common variable (https://donottrack.sh).
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "VLLM_NO_USAGE_STATS": "1",
    "ANONYMIZED_TELEMETRY": "False",
    # W&B sends reports of its own faults to its maker.
    "WANDB_ERROR_REPORTING": "false",
    # For a model of the hub without safetensors, transformers starts a thread that asks a service of the hub to convert
    # it; and it fetches compiled code for some layers where the package `kernels` is installed.
    "DISABLE_SAFETENSORS_CONVERSION": "1",
    "USE_HUB_KERNELS": "0",
    # gradio and Ray would look for a newer version of themselves.
    "GRADIO_CHECK_VERSION": "False",
}


def keep_quiet() -> None:
    """Set the variables, before the libraries are imported; where huggingface_hub was, its switch itself."""
    for name, value in SILENT.items():
        os.environ.setdefault(name, value)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None and os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1":
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
