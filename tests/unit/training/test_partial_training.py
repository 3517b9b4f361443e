"""A part of the model at a time: layers drawn anew (LISA), adapters merged and started anew (ReLoRA)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.models import tiny_model, tiny_tokenizer
from tests.tiny_training import make_config, make_resolved, make_trainer, random_samples, write_prepared
from torch.nn.utils import parameters_to_vector
from transformers import AutoModelForCausalLM, TrainerCallback

from whet import export_stages, stages
from whet.core.errors import ArtefactError, ConfigError
from whet.data.store import PreparedSet
from whet.model.adapters import adapt
from whet.model.attention import NAME
from whet.serving.trained import as_trained, find_trained
from whet.training.callbacks.layer_sampling import LayerSampling, layer_sampling
from whet.training.callbacks.relora import ReLoRA, prune
from whet.training.fit import fit

KEYS: dict[str, Any] = {
    "micro_batch_size": 4,
    "max_steps": 8,
    "save_steps": 5,
    "logging_steps": 1,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "lr_scheduler": "constant",
    "optimizer": "adamw_torch_fused",
}
LISA = {"lisa_n_layers": 1, "lisa_step_interval": 2}
RELORA = {
    "adapter": "lora",
    "lora_r": 2,
    "lora_target_modules": ("q_proj", "down_proj"),
    "relora": True,
    "jagged_restart_steps": 3,
    "jagged_restart_warmup_steps": 1,
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedSet:
    return write_prepared(tmp_path_factory.mktemp("partial") / "prepared", random_samples(8, seed=4))


def test_a_step_moves_the_drawn_layers_and_no_other(prepared: PreparedSet, tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, **KEYS, **LISA)
    trainer = make_trainer(prepared, resolved, tiny_model(attention=NAME, num_hidden_layers=4))
    layers = trainer.model.model.layers
    moved: list[list[int]] = []
    states: list[set[int]] = []
    before = [parameters_to_vector(layer.parameters()).detach().clone() for layer in layers]

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            now = [parameters_to_vector(layer.parameters()).detach().clone() for layer in layers]
            moved.append([n for n, (old, new) in enumerate(zip(before, now, strict=True)) if not torch.equal(old, new)])
            before[:] = now
            held = kwargs["optimizer"].state
            states.append({n for n, layer in enumerate(layers) for each in layer.parameters() if each in held})

    trainer.add_callback(Look())
    fit(trainer, resolved)
    drawn = LayerSampling(list(layers), 1, 2, resolved.seed)
    assert moved == [drawn.trained_at(step) for step in range(8)]
    assert [sorted(held) for held in states] == moved, "only the trained layers have optimizer states"
    assert moved[0] == moved[1]
    assert len({tuple(each) for each in moved}) > 1


@pytest.mark.parametrize("keys", [LISA, RELORA, {**RELORA, "relora_prune_method": "random"}], ids=["lisa", "re", "re2"])
def test_a_resumed_run_is_bit_for_bit_the_other(prepared: PreparedSet, tmp_path: Path, keys: dict[str, Any]) -> None:
    """Stopped in the middle of an interval, after base weights and layers have changed."""
    ends = []
    for resume_from in (None, tmp_path / "checkpoint-5"):
        resolved = make_resolved(tmp_path, **KEYS, **keys)
        model = tiny_model(attention=NAME, num_hidden_layers=4, hidden_size=32)
        trainer = make_trainer(prepared, resolved, adapt(model, resolved.config, resolved))
        fit(trainer, resolved, resume_from)
        ends.append(parameters_to_vector(trainer.model.parameters()).detach().clone())
    assert torch.equal(*ends)


def test_layers_that_are_not_there_are_told() -> None:
    model = tiny_model()
    with pytest.raises(ConfigError, match=r"no list of layers 'transformer.h' -> write model.layers"):
        layer_sampling(model, make_config(**LISA, lisa_layers_attribute="transformer.h"))
    with pytest.raises(ConfigError, match=r"lisa_n_layers is 3, and 'model.layers' has 2 layers -> write at most 2"):
        layer_sampling(model, make_config(**{**LISA, "lisa_n_layers": 3}))


def test_a_restart_changes_the_base_and_no_logit(prepared: PreparedSet, tmp_path: Path) -> None:
    """Merging B A into the base and starting with B = 0 is the same function; the rank of what was learnt may grow."""
    resolved = make_resolved(tmp_path, **KEYS, **RELORA)
    model = adapt(tiny_model(attention=NAME), resolved.config, resolved)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    ids = torch.arange(10, 20)[None]
    optimizer = torch.optim.AdamW([each for each in model.parameters() if each.requires_grad])
    callback = ReLoRA(model, 3)
    base_before = {name: weight.clone() for name, weight in callback._weights().items()}
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        callback.restart(optimizer)
        after = model(ids, use_cache=False).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert all(not torch.equal(weight, base_before[name]) for name, weight in callback._weights().items())
    assert all(not each.any() for name, each in model.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("on_cpu", [False, True])
def test_the_result_is_the_full_model_that_was_trained(prepared: PreparedSet, tmp_path: Path, on_cpu: bool) -> None:
    keys = {**KEYS, **RELORA, "relora_cpu_offload": on_cpu, "parity": False, "output_dir": str(tmp_path)}
    resolved = make_resolved(tmp_path, **{k: v for k, v in keys.items() if k != "output_dir"})
    trainer = make_trainer(prepared, resolved, adapt(tiny_model(attention=NAME), resolved.config, resolved))
    fit(trainer, resolved)
    ids = torch.arange(10, 20)[None]
    with torch.no_grad():
        live = trainer.model.eval()(ids, use_cache=False).logits
        stages.save(resolved, trainer.model, tiny_tokenizer(), tmp_path)
        still = trainer.model(ids, use_cache=False).logits
    torch.testing.assert_close(still, live, atol=1e-4, rtol=0)  # G6
    trained = find_trained(resolved.config)
    assert (trained.kind, trained.folder) == ("full", tmp_path)
    assert as_trained(resolved.config, trained).adapter.adapter is None
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=NAME)
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, use_cache=False).logits, live, atol=1e-4, rtol=0)
    with pytest.raises(ConfigError, match="is a full model: its adapters are merged already -> use that folder"):
        export_stages.merge_adapter(resolved, tmp_path)

    saved = load_file(tmp_path / "checkpoint-5" / "relora" / "base.safetensors")
    assert len(saved) == 4
    with pytest.raises(ArtefactError, match=r"has no relora.base.safetensors, so it is not of a run with relora"):
        ReLoRA(tiny_model(), 3).restore(tmp_path)


def test_pruning_keeps_the_share_it_says() -> None:
    state = torch.randn(100, 10, generator=torch.Generator().manual_seed(0))
    for method, tolerance in (("magnitude", 0), ("random", 60), ("reset", 60)):
        pruned = state.clone()
        prune(pruned, 0.9, method)
        assert abs(int((pruned == 0).sum()) - 900) <= tolerance
        assert torch.equal(pruned[pruned != 0], state[pruned != 0])
    prune(by_size := state.clone(), 0.9, "magnitude")
    assert by_size[by_size != 0].abs().min() >= state[by_size == 0].abs().max()
