"""Building an optimizer from a config: arguments reach it, and a wrong one is an error that names the right ones."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config
from transformers import TrainingArguments

from whet.config import check_trainable
from whet.config.optimizers import unavailable
from whet.core.errors import ConfigError
from whet.training.arguments import _stock_optimizer
from whet.training.optimizers import build_optimizer
from whet.training.optimizers.dion import Dion
from whet.training.optimizers.gradient_filter import filter_gradients
from whet.training.optimizers.sinkgd import sinkhorn_normalised


def build(tmp_path: Path, optimizer: str, model: torch.nn.Module | None = None, **keys: Any) -> Any:
    config = make_config(optimizer=optimizer, **keys)
    args = TrainingArguments(str(tmp_path), optim=_stock_optimizer(optimizer), learning_rate=1e-2, use_cpu=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # of packages, when they are imported
        return build_optimizer(model or tiny_model(hidden_size=64), config, args)


@pytest.mark.parametrize(
    ("optimizer", "arguments"),
    [
        ("sgd", {"momentum": 0.9, "nesterov": True}),
        ("adamw_torch", {"amsgrad": True}),
        ("adafactor", {"clip_threshold": 0.5}),
        ("rmsprop", {"alpha": 0.95, "centered": True}),
        ("rmsprop_bnb_8bit", {"alpha": 0.95}),
    ],
)
def test_optim_args_reach_the_optimizer(tmp_path: Path, optimizer: str, arguments: dict[str, Any]) -> None:
    built = build(tmp_path, optimizer, optim_args=arguments)
    assert {name: built.defaults.get(name, built.param_groups[0].get(name)) for name in arguments} == arguments or all(
        value in (built.defaults.get("betas") or ()) for value in arguments.values()
    )


def test_adam_keys_reach_the_optimizer(tmp_path: Path) -> None:
    config = make_config(optimizer="adamw_torch_fused", adam_beta2=0.95)
    args = TrainingArguments(output_dir=str(tmp_path), optim="adamw_torch_fused", adam_beta2=0.95, use_cpu=True)
    built = build_optimizer(tiny_model(), config, args)
    assert built.defaults["betas"] == (0.9, 0.95)
    assert built.defaults["fused"]


def test_an_argument_the_optimizer_does_not_know_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'momentun' is no argument of SGD -> did you mean 'momentum'\?"):
        build(tmp_path, "sgd", optim_args={"momentun": 0.9})


def test_a_value_the_optimizer_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="SGD refuses its arguments: Nesterov momentum requires a momentum"):
        build(tmp_path, "sgd", optim_args={"nesterov": True})


def test_8_bit_optimizers_keep_embeddings_in_32_bits(tmp_path: Path) -> None:
    model = tiny_model(hidden_size=64)
    args = TrainingArguments(output_dir=str(tmp_path), optim="adamw_8bit", use_cpu=True)
    optimizer = build_optimizer(model, make_config(optimizer="adamw_8bit"), args)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    dtypes = {name: optimizer.state[parameter]["state1"].dtype for name, parameter in model.named_parameters()}
    assert dtypes["model.embed_tokens.weight"] == torch.float32
    assert dtypes["model.layers.0.mlp.up_proj.weight"] == torch.uint8


def test_what_cannot_be_used_here_says_why() -> None:
    assert unavailable("adamw_torch", "mps") is None
    assert unavailable("adamw_8bit", "mps") == "it runs on CPU and CUDA alone, and this run is on MPS"


def test_a_package_that_is_not_installed_is_told_with_its_command_before_torch_is_needed() -> None:
    """flashoptim runs on CUDA alone, and is not among what the tests install."""
    assert check_trainable(make_config(optimizer="adamw_torch")) == []
    (problem,) = check_trainable(make_config(optimizer="flash_adamw"))
    assert "which is not installed (pip install flashoptim)" in problem.found


def test_an_installed_triton_changes_nothing_on_a_cpu(tmp_path: Path) -> None:
    """torch-optimi would use it by itself, and find no driver."""
    for name in ("optimi_adamw", "stable_adamw"):
        assert [group["triton"] for group in build(tmp_path, name).param_groups] == [False]


def test_muon_takes_the_matrices_between_embeddings_and_head(tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=False)
    optimizer = build(tmp_path, "muon", model=model, weight_decay=0.1, adam_beta2=0.95, optim_args={"momentum": 0.9})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_muon = [names[id(each)] for group in optimizer.param_groups if "momentum" in group for each in group["params"]]
    assert by_muon == [name for name in names.values() if name.endswith("_proj.weight")]
    assert {group["betas"] for group in optimizer.param_groups if "betas" in group} == {(0.9, 0.95)}
    assert {group["momentum"] for group in optimizer.param_groups if "momentum" in group} == {0.9}


def test_muon_without_a_matrix_to_train_is_an_error(tmp_path: Path) -> None:
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("embed" in name)
    with pytest.raises(ConfigError, match="none of them is trained -> write adamw_torch_fused"):
        build(tmp_path, "muon", model=model)


def test_a_learning_rate_reaches_both_parts_of_a_combined_optimizer(tmp_path: Path) -> None:
    """A schedule sees one optimizer; a rate of 0 leaves every weight as it is, also after the state is loaded."""
    model = tiny_model()
    optimizer = build(tmp_path, "muon", model=model)
    optimizer.load_state_dict(optimizer.state_dict())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = torch.nn.utils.parameters_to_vector(model.parameters()).clone()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    assert torch.equal(torch.nn.utils.parameters_to_vector(model.parameters()), before)


def test_dion_at_full_rank_takes_the_orthogonal_factor_of_the_momentum() -> None:
    """With all of the rank the update is U V^T of the gradient's singular value decomposition, times sqrt(m / n)."""
    gradient = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    weight = torch.nn.Parameter(torch.zeros(6, 4, dtype=torch.float64))
    optimizer = Dion([{"params": [weight]}], lr=1.0, momentum=1 - 1e-9)
    optimizer.state[weight] = {"momentum": torch.zeros_like(weight), "basis": right.T.clone()}
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(-weight.detach(), (6 / 4) ** 0.5 * left @ right, atol=1e-9, rtol=0)


def test_sinkgd_sees_no_scale_of_the_gradient() -> None:
    gradient = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    scaled = sinkhorn_normalised(gradient, 5)
    torch.testing.assert_close(sinkhorn_normalised(100 * gradient, 5), scaled)
    torch.testing.assert_close(scaled.square().mean(dim=0), torch.ones(5))


def test_the_keys_of_dion_and_came_reach_them(tmp_path: Path) -> None:
    dion = build(tmp_path, "dion", dion_lr=5e-2, dion_momentum=0.8, learning_rate=1e-2)
    assert [group["lr"] for group in dion.param_groups if "momentum" in group] == [pytest.approx(5e-2)]
    assert [group["lr"] for group in dion.param_groups if "betas" in group] == [1e-2]
    assert Dion([torch.nn.Parameter(torch.zeros(1))], rank_fraction=0.3, rank_multiple_of=4).rank(64, 32) == 12
    came = build(tmp_path, "came_pytorch", adam_beta3=0.99, adam_epsilon2=1e-10).param_groups[0]
    assert (came["betas"], came["eps"]) == ((0.9, 0.999, 0.99), (1e-30, 1e-10))


def test_low_rank_optimizers_project_the_modules_asked_for(tmp_path: Path) -> None:
    optimizer = build(tmp_path, "galore_adamw", optim_target_modules=("mlp",), optim_args={"rank": 4})
    sizes = [len(group["params"]) for group in optimizer.param_groups if group.get("rank") == 4]
    assert sizes == [6]
    with pytest.raises(ConfigError, match="'mlq' is in the name of no trainable matrix"):
        build(tmp_path, "apollo_adamw", optim_target_modules=("mlq",))


def test_grokfast_adds_the_running_mean_of_the_gradient(tmp_path: Path) -> None:
    """SGD with the filter against the formula, and the means are part of what is saved."""
    gradients = [torch.randn(2, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    config = make_config(optimizer="sgd", grokfast_alpha=0.5, grokfast_lamb=3.0)
    weight, other = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    optimizers = [torch.optim.SGD([each], lr=1.0) for each in (weight, other)]
    for optimizer in optimizers:
        filter_gradients(optimizer, config)
    mean, expected = gradients[0].clone(), torch.zeros(2)
    for step, gradient in enumerate(gradients):
        if step == 2:
            other.data.copy_(weight)
            optimizers[1].load_state_dict(optimizers[0].state_dict())
        mean = 0.5 * mean + 0.5 * gradient
        expected -= gradient + 3.0 * mean
        for parameter, optimizer in zip((weight, other), optimizers, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)
    torch.testing.assert_close(other, weight)


def test_an_optimizer_without_hooks_keeps_the_means_of_grokfast(tmp_path: Path) -> None:
    """bitsandbytes' load_state_dict calls none."""
    models = [tiny_model(hidden_size=64) for _ in range(2)]
    one, other = (build(tmp_path, "adamw_8bit", model=each, grokfast_alpha=0.5) for each in models)
    for parameter in models[0].parameters():
        parameter.grad = torch.ones_like(parameter)
    one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    means, loaded = one.state_dict()["grokfast"], other.state_dict()["grokfast"]
    assert means
    torch.testing.assert_close(loaded, means, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["dion", "adafactor", "sinkgd", "muon", "came_pytorch", "adamw_8bit"])
def test_a_resumed_optimizer_of_bfloat16_weights_is_the_optimizer(tmp_path: Path, name: str) -> None:
    """State in float32 comes back in float32, so the next step is the same to the bit."""

    def step(model: torch.nn.Module, optimizer: Any, number: int) -> None:
        random = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=random).to(parameter)
        optimizer.step()

    model = tiny_model(hidden_size=64).to(torch.bfloat16)
    whole = build(tmp_path, name, model=model, bfloat16=True)
    step(model, whole, 1)
    saved, copied = copy.deepcopy(whole.state_dict()), copy.deepcopy(model)
    step(model, whole, 2)
    resumed = build(tmp_path, name, model=copied, bfloat16=True)
    resumed.load_state_dict(saved)
    step(copied, resumed, 2)
    for (each, one), other in zip(model.named_parameters(), copied.named_parameters(), strict=True):
        assert torch.equal(one, other[1]), each
    for one, other in zip(model.parameters(), copied.parameters(), strict=True):
        torch.testing.assert_close(whole.state[one], resumed.state[other], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["muon", "schedule_free_adamw", "galore_adamw", "came_pytorch", "lion"])
def test_groups_hold_for_every_kind_of_optimizer(tmp_path: Path, name: str) -> None:
    """Embeddings with a rate of their own, and no decay of norms."""
    model = tiny_model(tie_word_embeddings=False)
    optimizer = build(tmp_path, name, model=model, embedding_lr=7e-4, weight_decay=0.1)
    found = {id(each): group for group in optimizer.param_groups for each in group["params"]}
    for each, parameter in model.named_parameters():
        group = found[id(parameter)]
        assert group["lr"] == (7e-4 if "embed" in each or "head" in each else 1e-2), each
        assert group["weight_decay"] == (0.0 if "norm" in each else 0.1), each


@pytest.mark.parametrize(("decay", "calls"), [(0.0, 1), (0.1, 2)])
def test_the_default_is_one_fused_kernel_for_each_group(tmp_path: Path, decay: float, calls: int) -> None:
    """Groups exist only where rates or decays differ; each is one call of PyTorch's fused kernel, on a CPU too."""
    model = tiny_model()
    optimizer = build(tmp_path, "adamw_torch_fused", model=model, weight_decay=decay)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        optimizer.step()
    found = {event.key: event.count for event in profile.key_averages()}
    assert found["aten::_fused_adamw_"] == calls


@pytest.mark.parametrize("name", ["adamw_torch", "lion", "muon"])
def test_a_rate_among_the_arguments_is_an_error_and_not_ignored(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"optim_args.lr would change nothing -> write learning_rate"):
        build(tmp_path, name, optim_args={"lr": 5.0})
