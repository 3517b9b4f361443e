"""What machine this is, asked once at the start of a run. PyTorch is imported when it is asked, not before."""

from __future__ import annotations

import os
import platform
import resource
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from whet.core.types import Hardware

_CPU_FLAGS = Path("/proc/cpuinfo")
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def probe() -> Hardware:
    """The device that this process will use, and its place among the processes a launcher started.

    Ranks come from the environment that torchrun sets; no process group is joined.
    """
    device, name, num_devices, bf16, memory_bytes = _accelerator() or _cpu()
    return Hardware(
        device=device,
        device_name=name,
        num_devices=num_devices,
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        rank=int(os.environ.get("RANK", "0")),
        local_rank=_local_rank(),
        bf16=bf16,
        num_cpus=num_cpus(),
        memory_bytes=memory_bytes,
        compute_capability=_compute_capability(device),
    )


def num_cpus() -> int:
    """Cores that this process may run on, which a container or a scheduler may have made fewer than the machine's."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_memory_bytes() -> int:
    """Memory of the host, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *_cgroup_limits()])


def available_memory_bytes() -> int:
    """Memory of the host that could be had now without swapping; in a container, what its limit leaves."""
    found = [_meminfo_available()]
    for limit, used in ((_CGROUP_LIMITS[0], "memory.current"), (_CGROUP_LIMITS[1], "memory.usage_in_bytes")):
        path = limit.with_name(used)
        if limit.exists() and path.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
            in_use = int(path.read_text(encoding="utf-8")) - _reclaimable(path.with_name("memory.stat"))
            found.append(max(0, int(text) - in_use))
    return min(found)


def _reclaimable(statistics: Path) -> int:
    """Bytes that a container has of files that were read or written; its limit counts them, and the kernel takes them
    back when they are needed. Without them a container has no memory left after the first few checkpoints."""
    lines = statistics.read_text(encoding="utf-8").splitlines() if statistics.exists() else []
    entries = dict(line.split() for line in lines)
    whole = "total_" if "total_inactive_file" in entries else ""  # of version 1, which counts its children besides
    return sum(int(entries.get(f"{whole}{each}_file", 0)) for each in ("active", "inactive"))


def _meminfo_available() -> int:
    path = Path("/proc/meminfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kilobytes = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return host_memory_bytes() if kilobytes is None else kilobytes * 1024


def described(hardware: Hardware) -> dict[str, Any]:
    """The hardware and what decides how its threads add up."""
    import torch

    found = {
        **asdict(hardware),
        "machine": platform.machine(),
        "host_memory_bytes": host_memory_bytes(),
        "threads": torch.get_num_threads(),
    }
    if hardware.device == "cuda":
        devices = range(torch.cuda.device_count())
        found["gpus"] = [torch.cuda.get_device_name(index) for index in devices]
        found |= {"cuda": torch.version.cuda, "driver": _driver(), "cudnn": torch.backends.cudnn.version()}  # type: ignore[no-untyped-call]
    return found


def peak_memory() -> dict[str, int]:
    """Most bytes that this process has had: of the host, and of each accelerator that it used."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = {"host_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            found[f"cuda:{index}_bytes"] = torch.cuda.max_memory_allocated(index)
    return found


def _accelerator() -> tuple[str, str, int, bool, int] | None:
    """Device, name, number, native bfloat16, memory; None where there is a CPU only."""
    import torch

    if torch.cuda.is_available():
        index = _local_rank()
        properties = torch.cuda.get_device_properties(index)
        # Ampere brought bfloat16; before it PyTorch emulates, and says that it is supported.
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "cuda", properties.name, torch.cuda.device_count(), native, properties.total_memory
    if torch.backends.mps.is_available():
        return "mps", platform.processor(), 1, True, torch.mps.recommended_max_memory()
    return None


def _cpu() -> tuple[str, str, int, bool, int]:
    text = _CPU_FLAGS.read_text(encoding="utf-8", errors="replace") if _CPU_FLAGS.exists() else ""
    fields = dict(line.split(":", 1) for line in text.partition("\n\n")[0].splitlines() if ":" in line)
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    flags = facts.get("flags", facts.get("Features", "")).split()
    name = facts.get("model name") or platform.processor() or platform.machine()
    return "cpu", name, 1, bool({"avx512_bf16", "amx_bf16", "bf16"} & set(flags)), host_memory_bytes()


def _compute_capability(device: str) -> tuple[int, int] | None:
    if device != "cuda":
        return None
    import torch

    major, minor = torch.cuda.get_device_capability(_local_rank())
    return major, minor


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def _cgroup_limits() -> list[int]:
    limits = []
    for path in _CGROUP_LIMITS:
        if path.exists():
            text = path.read_text(encoding="utf-8").strip()
            if text.isdigit():
                limits.append(int(text))
    return limits


def _driver() -> str | None:
    """Version of NVIDIA's kernel driver."""
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return " ".join(text.partition("\n")[0].split()[:9])
