"""Every optimizer of the table on a GPU, those that run nowhere else included: the loss falls, its state goes on."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_config
from transformers import TrainingArguments

from whet.config.optimizers import unavailable
from whet.training.arguments import _stock_optimizer
from whet.training.optimizers import OPTIMIZERS, build_optimizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: optimizers on a GPU NOT TESTED")

RATES = {"sgd": 0.3, "adagrad": 0.05, "lomo": 0.3, "schedule_free_sgd": 3.0, "flash_sgd": 0.3, "flash_sgdw": 0.3}


def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, number: int) -> list[float]:
    ids = torch.randint(5, 200, (4, 16), generator=torch.Generator().manual_seed(1)).cuda()
    losses = []
    for _ in range(number):
        if hasattr(optimizer, "train"):
            optimizer.train()
        loss = model(input_ids=ids, labels=ids).loss
        if hasattr(optimizer, "fused_backward"):
            optimizer.fused_backward(loss, optimizer.param_groups[0]["lr"])
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_the_optimizer_learns_on_cuda_and_goes_on_from_its_state(tmp_path: Path, name: str) -> None:
    reason = unavailable(name, "cuda")
    if reason is not None:
        pytest.skip(reason)
    config = make_config(optimizer=name, learning_rate=RATES.get(name, 5e-3), lr_scheduler="constant")
    args = TrainingArguments(str(tmp_path), optim=_stock_optimizer(name))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = tiny_model(hidden_size=64).cuda().train()
        optimizer = build_optimizer(model, config, args)
        losses = steps(model, optimizer, 4)
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        other = copy.deepcopy(model.state_dict())
        losses += steps(model, optimizer, 4)
        again = tiny_model(hidden_size=64).cuda().train()
        resumed = build_optimizer(again, config, args)
        again.load_state_dict(other)
        resumed.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        steps(again, resumed, 4)
    assert losses[-1] < losses[0] - 0.02
    for name_of, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), name_of
    if name not in ("apollo_adamw", "galore_adamw", "galore_adamw_8bit", "galore_adafactor"):  # they draw, or decompose
        torch.testing.assert_close(dict(again.named_parameters()), dict(model.named_parameters()), atol=1e-4, rtol=1e-3)
