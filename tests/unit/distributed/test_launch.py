"""The command that starts the ranks, and the facts of the machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from whet.core.errors import ConfigError
from whet.distributed import hardware
from whet.distributed.launch import torchrun_command


def test_this_machine_alone_is_standalone() -> None:
    command = torchrun_command(["train", "a.yaml", "--seed", "1"], num_processes=2)
    assert command[:3] == [sys.executable, "-m", "whet.distributed.elastic"]
    assert command[3:] == ["--standalone", "--nproc-per-node=2", "-m", "whet", "train", "a.yaml", "--seed", "1"]


@pytest.mark.parametrize("given", ["--nnodes=2", "--rdzv_endpoint=host:1", "--master-addr=host"])
def test_arguments_about_other_machines_replace_ours(given: str) -> None:
    command = torchrun_command(["train"], num_processes=2, launcher_args=[given])
    assert "--standalone" not in command
    assert given in command


def test_the_number_of_processes_is_said_once() -> None:
    assert "--nproc-per-node=2" not in torchrun_command(["train"], launcher_args=["--nproc_per_node=4"])
    with pytest.raises(ConfigError, match="the number of processes is given twice"):
        torchrun_command(["train"], num_processes=2, launcher_args=["--nproc-per-node=4"])


def test_ranks_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    found = hardware.probe()
    assert (found.world_size, found.rank) == (4, 3)


def test_a_container_limits_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text("1000000\n")
    monkeypatch.setattr(hardware, "_CGROUP_LIMITS", (limit, tmp_path / "none"))
    assert hardware.host_memory_bytes() == 1_000_000
    (tmp_path / "memory.current").write_text("900000\n")
    assert hardware.available_memory_bytes() == 100_000
    (tmp_path / "memory.stat").write_text("anon 100000\nactive_file 300000\ninactive_file 500000\n")
    assert hardware.available_memory_bytes() == 900_000, "files that were read are given up when memory is needed"
    limit.write_text("max\n")
    assert hardware.host_memory_bytes() > 1_000_000
