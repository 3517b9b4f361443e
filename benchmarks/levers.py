"""What each memory lever saves and costs: bytes of tensors counted, and the time of a step against none.

Models in the shape of Llama, hidden 512, intermediate 1,408, 8 heads (4 of keys), vocabulary 8,192, float32, random
weights; one row of 2,048 tokens in documents of 250, half of them supervised. With 2 and 4 layers, so that what a layer
adds can be told from the rest. Trained in full and with LoRA (rank 16, all linear layers, whet's kernels).

Bytes are counted by operator (`whet.model.memory.accounting`): exact, and the same on a loaded machine. What a GPU
would offload is played by the CPU: what waits in host memory is counted apart.

Run: python benchmarks/levers.py              # all; some minutes, alone on the machine
     python benchmarks/levers.py --bytes-only # keeps the times that are there

The result, benchmarks/results/levers.json, is what docs/memory.md is made of, and for a planner to read:
`levers[].measured[full|lora]` has bytes, `levers[].formula` how they grow, `optimizers[]` bytes of state a weight.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, TrainingArguments
from transformers.training_args import OptimizerNames

from common import REPOSITORY, machine
from whet.config import Config
from whet.config.resolve import ResolvedRun, resolve
from whet.config.schema import SECTIONS, owner
from whet.core.types import Hardware
from whet.model.adapters import adapt
from whet.model.attention import NAME, register
from whet.model.levers import install_levers
from whet.model.loss import supervised_logits_loss
from whet.model.memory import layer_offloading, offloading
from whet.model.memory.accounting import LiveBytes, tensor_bytes
from whet.model.memory.stores import FileStore, HostStore
from whet.model.memory.transfers import Background
from whet.record import installed_versions
from whet.training.optimizers import build_optimizer
from whet.training.optimizers.each_parameter import EachParameter

RESULT = REPOSITORY / "benchmarks" / "results" / "levers.json"
HIDDEN, INTERMEDIATE, VOCABULARY, TOKENS, DOCUMENT = 512, 1408, 8192, 2048, 250
FEW, MANY = 2, 4
ROUNDS = 2
BOTH = ("full", "lora")
LORA = {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_linear": True}


@dataclass(frozen=True)
class Lever:
    """One row of the table.

    Attributes:
        name: in words.
        keys: what to write.
        formula: how its bytes follow from the model. T tokens of a row, L layers, H hidden, I intermediate, W trained
            weights, b bytes of a number (4 in float32, 2 in bfloat16).
        bits: whether results are the same "to the bit", "to rounding", or "otherwise".
        applies_to: "full", "lora".
        needs: what must be so, for a person.
        device: whose decisions the config is resolved for; "cuda" where a CPU would do nothing.
        needs_keys: further keys, which count as no lever.
    """

    name: str
    keys: dict[str, Any]
    formula: str
    bits: str = "to the bit"
    applies_to: tuple[str, ...] = BOTH
    needs: str = ""
    device: str = "cpu"
    needs_keys: dict[str, Any] = field(default_factory=dict)


_CHECKPOINTS = {"gradient_checkpointing": True}
LEVERS = (
    Lever("none", {}, "kept = T * (L * per layer + rest); the per-layer bytes are measured"),
    Lever("gradient checkpointing", _CHECKPOINTS, "kept per layer = T * H * b; one more forward pass; + one layer's"),
    Lever(
        "of every second layer",
        {**_CHECKPOINTS, "gradient_checkpointing_every": 2},
        "kept = (L/n) * T * H * b + (L - L/n) * a layer without checkpointing",
    ),
    Lever(
        "but for attention",
        {**_CHECKPOINTS, "selective_checkpointing": True},
        "kept per layer = T * 2 * H * b (input and attention's result) + T * heads * 4 (log-sum-exp)",
    ),
    Lever(
        "checkpoints on the host",
        {"gradient_checkpointing": "offload"},
        "kept on the device = rest + at most 4 layer inputs on their way; host = L * T * H * b",
        device="cuda",
        needs="CUDA",
    ),
    Lever(
        "checkpoints in files",
        {"gradient_checkpointing": "offload_disk"},
        "as on the host; files = L * T * H * b in output_dir",
    ),
    Lever(
        "inputs of layers on the host",
        {**_CHECKPOINTS, "activation_offloading": "hidden_states"},
        "as checkpoints on the host, and nothing but layers' inputs moves",
        device="cuda",
        needs="CUDA",
    ),
    Lever(
        "activations on the host",
        {"activation_offloading": True},
        "kept on the device = what is outside the layers; host = the rest of what none keeps",
        device="cuda",
        needs="CUDA",
    ),
    Lever("activations in files", {"activation_offloading": "disk"}, "as on the host, in files of output_dir"),
    Lever(
        "layers on the host",
        {**_CHECKPOINTS, "layer_offloading": True},
        "frozen weights on the device = two layers' instead of L; host = the frozen weights of L layers",
        applies_to=("lora",),
        device="cuda",
        needs="CUDA, an adapter, gradient_checkpointing",
    ),
    Lever(
        "MLP in parts",
        {"tiled_mlp": True},
        "kept per layer loses the MLP's inner tensors (at least 3 * T * I * b); they exist for T / shards tokens",
        bits="to rounding",
    ),
    Lever(
        "MLP in parts, checkpointed",
        {**_CHECKPOINTS, "tiled_mlp": True},
        "kept as gradient checkpointing; the peak loses the MLP's inner tensors of one layer but for a shard",
        bits="to rounding",
    ),
    Lever(
        "step in the backward pass",
        {"optimizer_in_backward": True, "max_grad_norm": 0.0},
        "gradients alive = the largest parameter's instead of W * b",
        applies_to=("full",),
        needs="one pass a step, max_grad_norm: 0, one process",
    ),
    Lever(
        "bfloat16 weights, rounded at random",
        {"stochastic_rounding": True, "bfloat16": True},
        "weights 2 W, gradients 2 W, Adam's states 8 W bytes; + 12 bytes of the largest parameter in its step",
        bits="otherwise",
        applies_to=("full",),
        needs="bfloat16: true; one of PyTorch's own optimizers",
    ),
)

OPTIMIZERS = (
    "adamw_torch_fused", "adamw_8bit", "adamw_torch_8bit", "adamw_torch_4bit", "ao_adamw_fp8", "lion_32bit",
    "lion_8bit", "ademamix", "ademamix_8bit", "rmsprop_bnb_8bit", "adafactor", "came_pytorch", "muon", "sgd",
)  # fmt: skip


# --- One model, one step ---------------------------------------------------------------------------------------------


def resolved_with(keys: dict[str, Any], device: str = "cpu") -> ResolvedRun:
    """A run of flat keys on this machine, decided as on ``device``."""
    flat = {"base_model": "random", "learning_rate": 1e-5, "sequence_len": TOKENS, "output_dir": "/tmp/levers", **keys}
    sections: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        sections.setdefault(owner(key), {})[key] = value
    config = Config.model_validate({name: sections[name] for name in SECTIONS if name in sections})
    return replace(resolve(config, Hardware(device, "", num_cpus=2)), device="cpu")


def make_model(layers: int, resolved: ResolvedRun) -> torch.nn.Module:
    """Random weights, with the config's adapter and levers."""
    register()
    shape = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=layers,
        num_attention_heads=8, num_key_value_heads=4, max_position_embeddings=TOKENS, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(shape, attn_implementation=NAME, dtype=getattr(torch, resolved.dtype))
    base.config.use_cache = False
    model = adapt(base, resolved.config, resolved)
    install_levers(model, resolved.config, resolved)
    return model.train()


def batch() -> dict[str, Any]:
    lengths = [DOCUMENT] * (TOKENS // DOCUMENT) + ([TOKENS % DOCUMENT] if TOKENS % DOCUMENT else [])
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(VOCABULARY, (1, TOKENS), generator=random)
    labels = ids.where(torch.rand(ids.shape, generator=random) < 0.5, torch.tensor(-100))
    edges = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    labels[0, edges[:-1].long()] = -100
    return {
        "input_ids": ids, "labels": labels, "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "cu_seq_lens_q": edges, "cu_seq_lens_k": edges, "max_length_q": max(lengths), "max_length_k": max(lengths),
    }  # fmt: skip


def make_optimizer(model: torch.nn.Module, resolved: ResolvedRun) -> torch.optim.Optimizer:
    known = {each.value for each in OptimizerNames}
    stock = resolved.optimizer if resolved.optimizer in known else "adamw_torch"
    args = TrainingArguments(output_dir="/tmp/levers", optim=stock, learning_rate=1e-5, use_cpu=True)
    return build_optimizer(model, resolved.config, args)


class Stores:
    """The stores that an offloading lever opens, so that what waits on the host can be told from the rest."""

    def __init__(self) -> None:
        self.opened: list[Any] = []
        self.writers: list[Any] = []
        for kind, into in ((HostStore, self.opened), (FileStore, self.opened), (Background, self.writers)):
            setattr(offloading, kind.__name__, self._recorded(kind, into))

    def _recorded(self, kind: type[Any], into: list[Any]) -> Callable[..., Any]:
        def make(*arguments: Any, **keywords: Any) -> Any:
            made = kind(*arguments, **keywords)
            into.append(made)
            return made

        return make

    def held(self) -> int:
        """Bytes in the stores, after every write has come to its end."""
        for writer in self.writers:
            writer._thread.submit(lambda: None).result()
        return sum(store.held for store in self.opened)

    def counted(self) -> int:
        """Those of them that were made while the step was watched: room in files is of an earlier step."""
        return sum(store.held for store in self.opened if isinstance(store, HostStore))


class Fetches(layer_offloading.PlainFetcher):
    """Weights that a lever has brought back, most bytes at once."""

    def __init__(self) -> None:
        self._alive, self.most, self.kept = LiveBytes(), 0, 0

    def keep(self, on_device: torch.Tensor) -> torch.Tensor:
        self.kept += on_device.nbytes
        return super().keep(on_device)

    def begin(self, on_host: torch.Tensor, device: torch.device) -> torch.Tensor:
        with self._alive:
            back = super().begin(on_host, device)
        self.most = max(self.most, self._alive.now())
        return back


def count(lever: Lever, kind: str, layers: int) -> dict[str, Any]:
    """Bytes of one step, by term."""
    stores, fetches = Stores(), Fetches()
    layer_offloading.PlainFetcher = lambda: fetches  # type: ignore[misc,assignment]
    resolved = resolved_with({**(LORA if kind == "lora" else {}), **lever.keys}, lever.device)
    model = make_model(layers, resolved)
    optimizer, gradients = make_optimizer(model, resolved), GradientBytes(model)
    rows = batch()
    supervised_logits_loss(model, rows).total.backward()  # layers go to the host in their first pass
    optimizer.step()
    model.zero_grad()
    gradients.most, fetches.most = 0, 0
    with LiveBytes(known=[*model.state_dict().values(), *state_tensors(optimizer)]) as alive:
        loss = supervised_logits_loss(model, rows).total
        host = stores.held()
        kept = alive.now() - stores.counted()
        loss.backward()
    optimizer.step()
    parameters = tensor_bytes(model.parameters())
    return {
        "kept": kept,
        "host": host or fetches.kept,
        # What waits on the host is in the CPU's peak too, so there is none to tell for a GPU.
        "peak": None if stores.opened or fetches.kept else alive.peak,
        "parameters": parameters - fetches.kept + fetches.most,
        "gradients": gradients.most,
        "states": tensor_bytes(state_tensors(optimizer)),
    }


class GradientBytes:
    """Most bytes of gradients alive at once, looked at whenever one is complete."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.most = 0
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in self._trained:
            # Registered after an optimizer's own, so what that has freed is gone; its own gradient counts.
            parameter.register_hook(self._look)

    def _look(self, gradient: torch.Tensor) -> None:
        complete = sum(p.grad.nbytes for p in self._trained if p.grad is not None)
        self.most = max(self.most, complete + gradient.nbytes)


def state_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of an optimizer's state; of torchao's quantised ones, what they are made of."""
    if isinstance(optimizer, EachParameter):
        return optimizer.state_tensors()
    found = []
    for state in optimizer.state.values():
        for value in state.values():
            if hasattr(value, "__tensor_flatten__"):
                found += [getattr(value, name) for name in value.__tensor_flatten__()[0]]
            elif isinstance(value, torch.Tensor):
                found.append(value)
    return found


# --- All of them -----------------------------------------------------------------------------------------------------


def count_lever(lever: Lever, kind: str) -> dict[str, Any]:
    """Bytes with 4 layers, and of what is kept, the part that each layer and the rest have for each token."""
    few, many = (count(lever, kind, layers) for layers in (FEW, MANY))
    per_layer = (many["kept"] - few["kept"]) / (MANY - FEW)
    rest = many["kept"] - MANY * per_layer
    host_per_layer = (many["host"] - few["host"]) / (MANY - FEW)
    return {
        **many,
        "kept_per_token_and_layer": round(per_layer / TOKENS, 1),
        "kept_per_token": round(rest / TOKENS, 1),
        "host_per_layer": round(host_per_layer),
    }


def count_optimizers() -> list[dict[str, Any]]:
    """Bytes of state for each trained weight of the 2-layer model, after a step."""
    # torchao compiles its step, which takes a minute and changes no state's size.
    torch.compiler.set_stance("force_eager")
    rows = []
    for name in OPTIMIZERS:
        resolved = resolved_with({"optimizer": name})
        model = make_model(FEW, resolved)
        try:
            optimizer = make_optimizer(model, resolved)
            for parameter in model.parameters():
                parameter.grad = torch.randn_like(parameter)
            optimizer.step()
        except Exception as error:  # noqa: BLE001  # told in the table: some need a package or a device
            rows.append({"name": name, "failed": f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"})
            continue
        num_weights = sum(parameter.numel() for parameter in model.parameters())
        num_bytes = tensor_bytes(state_tensors(optimizer))
        rows.append({"name": name, "states": num_bytes, "bytes_per_weight": round(num_bytes / num_weights, 3)})
    torch.compiler.set_stance("default")
    return rows


def time_kind(kind: str) -> dict[str, float]:
    """Seconds of a step with 4 layers under each lever, the median over rounds in which they take turns."""
    chosen = [lever for lever in LEVERS if kind in lever.applies_to]
    steps = {lever.name: make_step(lever, kind) for lever in chosen}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS + 1):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if number:  # the first fills caches
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def make_step(lever: Lever, kind: str) -> Callable[[], None]:
    resolved = resolved_with({**(LORA if kind == "lora" else {}), **lever.keys}, lever.device)
    model, rows = make_model(MANY, resolved), batch()
    optimizer = make_optimizer(model, resolved)

    def step() -> None:
        supervised_logits_loss(model, rows).total.backward()
        optimizer.step()
        model.zero_grad()

    return step


def main() -> None:
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes-only", action="store_true", help="count, and keep the times of the last result")
    bytes_only = parser.parse_args().bytes_only
    before = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    times: dict[str, dict[str, float]] = before.get("step_seconds", {})
    if not bytes_only:
        times = {kind: time_kind(kind) for kind in BOTH}
    levers = []
    for lever in LEVERS:
        measured = {kind: count_lever(lever, kind) for kind in lever.applies_to}
        for kind, figures in measured.items():
            own, none = (times.get(kind, {}).get(name) for name in (lever.name, "none"))
            figures["time_factor"] = round(own / none, 3) if own and none else None
        levers.append(
            {
                "lever": lever.name, "keys": lever.keys, "applies_to": lever.applies_to, "needs": lever.needs,
                "results_are_the_same": lever.bits, "played_by_a_cpu": lever.device != "cpu",
                "formula": lever.formula, "measured": measured,
            }
        )  # fmt: skip
        print(json.dumps({"lever": lever.name, "measured": measured}), flush=True)
    result = {
        "name": "levers",
        "machine": machine(),
        "versions": installed_versions(),
        "shape": {
            "layers": MANY, "hidden": HIDDEN, "intermediate": INTERMEDIATE, "heads": 8, "key_value_heads": 4,
            "vocabulary": VOCABULARY, "tokens": TOKENS, "document": DOCUMENT, "dtype": "float32", "lora_r": 16,
                    },
        "step_seconds": times,
        "levers": levers,
        "optimizers": count_optimizers(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({"name": "levers", "written": str(RESULT)}))


if __name__ == "__main__":
    main()
