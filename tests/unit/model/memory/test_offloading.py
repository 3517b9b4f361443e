"""What is offloaded comes back the same, and is not on the device meanwhile."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.levers import Outcome, assert_same, model_with, resolved_with, step, under

from whet.core.errors import ModelError
from whet.model.levers import install_levers
from whet.model.memory import offloading, stores
from whet.model.memory.offloading import Offloader, around_forward
from whet.model.memory.stores import FileStore, HostStore
from whet.model.memory.transfers import Background, Waiting

CHECKPOINTED = {"gradient_checkpointing": True}
LEVERS: dict[str, dict[str, Any]] = {
    "all": {"activation_offloading": True},
    "disk": {"activation_offloading": "disk"},
    "checkpoints": {"gradient_checkpointing": "offload"},
    "checkpoints on disk": {"gradient_checkpointing": "offload_disk"},
    "legacy": {**CHECKPOINTED, "activation_offloading": "legacy"},
    "hidden states": {**CHECKPOINTED, "activation_offloading": "hidden_states"},
    "hidden states beside selection": {
        **CHECKPOINTED,
        "activation_offloading": "hidden_states",
        "selective_checkpointing": True,
    },
    "every second": {"gradient_checkpointing": "offload", "gradient_checkpointing_every": 2},
}


@pytest.fixture(autouse=True)
def small_tensors_move_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offloading, "SMALLEST", 64)


@pytest.fixture(scope="module")
def plain() -> dict[bool, Outcome]:
    return {lora: under({}, model_with(lora, dropout=0.1)) for lora in (False, True)}


@pytest.mark.parametrize("lever", LEVERS)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_gradients_are_those_without_it(plain: dict[bool, Outcome], lever: str, lora: bool, tmp_path: Path) -> None:
    """As on a GPU, but that the device is the host."""
    model = model_with(lora, dropout=0.1)
    assert_same(under({**LEVERS[lever], "output_dir": str(tmp_path)}, model, device="cuda"), plain[lora])
    assert_same(step(model), plain[lora])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("store", [HostStore(pinned=False), FileStore], ids=["host", "files"])
def test_what_waits_on_the_host_is_not_on_the_device(store: Any, tmp_path: Path) -> None:
    """Of what a step keeps for its backward pass, nearly all; and nothing is left behind."""
    store = store(tmp_path) if store is FileStore else store
    model = model_with()
    offloader = Offloader(
        store, Background() if isinstance(store, FileStore) else Waiting(), offloading._never_moved(model), smallest=64
    )
    around_forward(model.base_model, offloader)
    held: list[int] = []
    plain = step(model_with())
    model.base_model.register_forward_hook(lambda *_: held.append(store.held))
    assert_same(step(model), plain)
    assert held[-1] > 0.8 * plain.saved  # the first forward is the probe of the logits
    assert max(held) > 0.8 * plain.saved
    assert store.held == 0


def test_a_storage_is_copied_once_however_many_views_are_saved() -> None:
    store = HostStore(pinned=False)
    offloader = Offloader(store, Waiting(), smallest=64)
    x = torch.randn(8, 16)
    packed = [offloader.pack(view) for view in (x, x.t(), x.view(4, 32), x[:, 4:12], x[:, 4:12])]
    assert store.held == x.nbytes + x[:, 4:12].numel() * 4
    for view, again in zip((x, x.t(), x.view(4, 32), x[:, 4:12]), map(offloader.unpack, packed), strict=False):
        assert torch.equal(view, again)
    assert [offloader.unpack(each).stride() for each in packed[:3]] == [(16, 1), (1, 16), (32, 1)]
    x += 1
    changed = offloader.pack(x)
    assert torch.equal(offloader.unpack(changed), x)
    assert not torch.equal(offloader.unpack(packed[0]), x)
    del packed, changed
    assert store.held == 0


def test_parameters_and_small_tensors_stay() -> None:
    weight, small = torch.nn.Parameter(torch.randn(64, 64)), torch.randn(4)
    offloader = Offloader(HostStore(pinned=False), Waiting(), lambda: {weight.untyped_storage()._cdata}, 64)
    offloader.begin_pass()
    transposed = weight.detach().t()
    assert offloader.pack(weight) is weight
    assert offloader.pack(transposed) is transposed
    assert offloader.pack(small) is small


def test_room_in_files_is_used_again_and_has_no_name(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    first = store.room(4096)
    address = first.data_ptr()
    store.take_back(first)
    assert store.room(4096).data_ptr() == address
    assert store.room(4096).data_ptr() != address
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stores, "_claim", full)
    with pytest.raises(ModelError, match="No space left on device"):
        under({"activation_offloading": "disk", "output_dir": str(tmp_path)}, model_with())
    assert not list(tmp_path.iterdir())


def test_evaluation_and_failed_passes_leave_nothing_behind() -> None:
    model = model_with()
    store = HostStore(pinned=False)
    around_forward(model.base_model, Offloader(store, Waiting(), smallest=64))
    with pytest.raises(IndexError):
        model(torch.tensor([[10**6]]))
    model.eval()
    output = model(torch.tensor([[1, 2, 3]])).logits.sum()
    assert store.held == 0
    output.backward()
    model.zero_grad()
    model.train()
    assert_same(step(model), step(model_with()))


def test_a_cpu_has_nothing_to_offload_to() -> None:
    for keys in ({"gradient_checkpointing": "offload"}, {"activation_offloading": True, **CHECKPOINTED}):
        resolved = resolved_with("cpu", **keys)
        assert resolved.activation_offloading == "none"
        assert resolved.gradient_checkpointing
    assert resolved.choices["activation_offloading"] == "true -> off: the memory of a CPU is host memory"
    model = model_with()
    assert not any("offloading" in said for said in install_levers(model, resolved.config, resolved))
