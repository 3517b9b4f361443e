"""Sharded checkpoints as FSDP runs leave them: two processes over gloo, torch's own `fully_shard` and DCP.

``python -m tests.sharded_checkpoints FOLDER`` imports once and forks the ranks. It writes ``<kind>/dcp`` for each kind
below, and beside it ``<kind>/whole.safetensors``: the same tensors, gathered by torch itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.models import save_tiny_model, tiny_model, tiny_tokenizer
from tests.ports import free_port

LORA = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["lm_head"]}


def make(folder: Path) -> None:
    """Run this file; the base models are written to ``<kind>/base`` first."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.sharded_checkpoints", str(folder)]
    subprocess.run(command, check=True, env=environment, timeout=240, stderr=subprocess.DEVNULL)


def _sharded(model: torch.nn.Module, layers: Any) -> torch.nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _step(model: Any) -> torch.optim.Optimizer:
    """The ranks see different tokens, so that what they hold is made together."""
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad], lr=0.01)
    ids = torch.arange(20)[None] + 20 * dist.get_rank()
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    return optimizer


def _keep_whole(model: Any, folder: Path, adapter: bool = False) -> None:
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    whole = get_model_state_dict(model, options=options)
    if dist.get_rank() == 0:
        if adapter:
            whole = get_peft_model_state_dict(model, state_dict=whole, save_embedding_layers=False)
        save_file({name: tensor.clone() for name, tensor in whole.items()}, folder / "whole.safetensors")


def _model(folder: Path, architecture: str, **size: Any) -> None:
    """As accelerate writes it, below ``model``; and with the optimizer, wrapped names and bfloat16 beside it."""
    model = tiny_model(architecture, **size).train()
    optimizer = _step(_sharded(model, model.model.layers))
    _keep_whole(model, folder)
    state = get_model_state_dict(model)
    dcp.save({"model": state}, checkpoint_id=folder / "dcp")
    wrapped = {f"_orig_mod.{_wrapped(name)}": tensor for name, tensor in state.items()}
    dcp.save({**wrapped, "step": 3}, checkpoint_id=folder / "wrapped")
    everything = {"model": state, "optim": get_optimizer_state_dict(model, optimizer)}
    dcp.save(everything, checkpoint_id=folder / "with_optimizer")


def _wrapped(name: str) -> str:
    return name.replace(".self_attn.", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn.")


def _adapter(folder: Path) -> None:
    model = get_peft_model(tiny_model("llama"), LoraConfig(task_type="CAUSAL_LM", **LORA)).train()
    _step(_sharded(model, model.base_model.model.model.layers))
    _keep_whole(model, folder, adapter=True)
    state = get_model_state_dict(model)
    dcp.save({"model": state}, checkpoint_id=folder / "dcp")  # base weights are in it too
    alone = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    dcp.save({"model": alone}, checkpoint_id=folder / "alone")


def _untied(folder: Path) -> None:
    """An embedding and its tied head that a run has moved apart."""
    model = tiny_model("llama", tie_word_embeddings=False)
    _sharded(model, model.model.layers)
    _keep_whole(model, folder)
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=folder / "dcp")


def _rank(rank: int, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    _model(folder / "llama", "llama", tie_word_embeddings=True)
    _model(folder / "mixtral", "mixtral")
    _adapter(folder / "adapter")
    _untied(folder / "untied")
    dist.barrier()
    dist.destroy_process_group()


def main(folder: Path) -> None:
    bases: dict[str, tuple[str, dict[str, Any]]] = {
        "llama": ("llama", {"tie_word_embeddings": True}),
        "mixtral": ("mixtral", {}),
        "adapter": ("llama", {}),
        "untied": ("llama", {"tie_word_embeddings": True}),
    }
    for kind, (architecture, size) in bases.items():
        save_tiny_model(folder / kind / "base", architecture, tokenizer=tiny_tokenizer(), **size)
    port = free_port()
    ranks = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                _rank(rank, folder, port)
                code = 0
            finally:
                sys.stdout.flush()
                os._exit(code)
        ranks.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks]
    raise SystemExit(max(map(abs, codes)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
