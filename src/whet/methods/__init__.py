"""The training methods, by name. A method is one file with ``build_trainer`` and one line here.

    build_trainer(MethodInputs) -> transformers.Trainer

`rl` of the config names the method; without it, it is "sft".
"""

from __future__ import annotations

from whet.core.registry import Registry

METHODS = Registry(
    "methods",
    {
        "sft": "whet.methods.sft:build_trainer",
        "dpo": "whet.methods.dpo:build_trainer",
    },
)
