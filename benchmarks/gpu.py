"""Tokens per second, share of the peak (MFU) and peak memory on one GPU, whet against a plain Trainer with PEFT.

Needs a GPU and no network: the models have true shapes and random weights, the rows are random ids, the same for both.
Each measurement is a process of its own. Results are kept in benchmarks/results/gpu-<case>.json.

    python benchmarks/gpu.py                         # every case, until --minutes are over
    python benchmarks/gpu.py --cases llama-8b-lora-4k qwen3-0.6b-full-4k
    python benchmarks/gpu.py --together 6            # build six models at once, then measure one after the other
    python benchmarks/gpu.py --profile 2             # and which kernels two more steps spend their time in
    python benchmarks/gpu.py --tiny                  # on the CPU, in this process: proves that the script works
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import report  # noqa: E402
from gpu_models import (  # noqa: E402
    CASES,
    EXPERTS,
    TINY,
    TINY_MOE,
    Case,
    active_weights,
    build_model,
    flops_per_token,
    sheet_tflops,
)

WARMUP = 2


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    parser.add_argument("--minutes", type=float, default=9.5, help="begin nothing new after so long")
    parser.add_argument("--rows", type=int, help="of a forward pass, instead of the case's")
    parser.add_argument("--profile", type=int, default=0, help="so many more steps, under PyTorch's profiler")
    parser.add_argument("--together", type=int, default=1, help="models built at once; they must fit beside one run")
    parser.add_argument("--logs", type=Path, help="folder for what each process writes to its standard error")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--one", action="store_true", help="measure the first case and contestant in this process")
    options = parser.parse_args(arguments)
    if options.one:
        case = replace(CASES[options.cases[0]], profiled=options.profile)
        measured = measure(case, options.contestants[0], options.rows, wait_for_turn)
        print(json.dumps(measured))
        return measured
    jobs = [(name, contestant) for name in options.cases for contestant in options.contestants]
    began, results = time.monotonic(), dict[str, dict[str, Any]]()
    started: dict[tuple[str, str], Built] = {}
    for number, (name, contestant) in enumerate(jobs):
        if (time.monotonic() - began) / 60 > options.minutes:
            figures: dict[str, Any] = {"error": f"not begun: {options.minutes:.1f} minutes were over"}
        elif options.tiny:
            figures = measure(tiny(CASES[name], options.profile), contestant, options.rows)
        else:
            if not started:
                together = jobs[number : number + options.together]
                started = {job: start(*job, options) for job in together}
                for built in started.values():
                    built.wait()
            figures = finish(started.pop((name, contestant)), name, contestant, options)
        print(f"{name} {contestant}: {json.dumps(figures)}", flush=True)
        results.setdefault(name, {})[contestant] = figures
        if not options.tiny:
            keep(name, results[name])
    for built in started.values():
        built.process.kill()
    return results


def tiny(case: Case, profiled: int = 0) -> Case:
    """The same job in little, for a CPU."""
    shape = {**case.shape, **TINY, **(TINY_MOE if "num_experts" in case.shape else {})}
    return replace(case, shape=shape, sequence_len=64, steps=2, profiled=profiled)


@dataclass
class Built:
    """A process that has built its model, or is about to, and waits for its turn to train it."""

    process: subprocess.Popen[str]
    said: Path

    def wait(self) -> None:
        """Until the model is there, or the process is over."""
        assert self.process.stdout is not None
        while self.process.stdout.readline() not in (BUILT, ""):
            pass


BUILT = "built\n"


def start(case: str, contestant: str, options: argparse.Namespace) -> Built:
    command = [sys.executable, __file__, "--one", "--cases", case, "--contestants", contestant]
    command += ["--profile", str(options.profile)]
    command += ["--rows", str(options.rows)] if options.rows else []
    logs = options.logs or Path(tempfile.mkdtemp())
    logs.mkdir(parents=True, exist_ok=True)
    said = logs / f"{case}-{contestant}.log"
    with said.open("w") as file:
        pipe = subprocess.PIPE
        return Built(subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=file, text=True), said)


def wait_for_turn() -> None:
    """In the process of one measurement: the model is built; the GPU is not yet ours alone."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    assert sys.__stdout__ is not None
    sys.__stdout__.write(BUILT)
    sys.__stdout__.flush()
    sys.stdin.readline()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def finish(built: Built, case: str, contestant: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the process measures; its error where it fails."""
    began = time.monotonic()
    try:
        out, _ = built.process.communicate("go\n")
    except BrokenPipeError:
        out = ""
    print(f"{case} {contestant}: trained and read in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if built.process.wait():
        last = [line for line in built.said.read_text().strip().splitlines() if line][-1:] or ["no message"]
        return {"error": last[0][:300]}
    measured: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return measured


def keep(name: str, measured: dict[str, dict[str, Any]]) -> None:
    """One JSON line, and the file."""
    ours, peer = (measured.get(who, {}).get("tokens_per_second") for who in ("whet", "plain"))
    if ours is None and peer is None:
        return
    report(
        f"gpu-{name}",
        ours=ours,
        peer=peer,
        ratio=ours / peer if ours and peer else None,
        goal=CASES[name].goal or "faster than the plain Trainer, in no more memory",
        unit="tokens/s",
        peer_name="transformers Trainer and PEFT, sdpa, the same ids",
        date=time.strftime("%Y-%m-%d"),
        device=measured.get("whet", {}).get("device") or measured.get("plain", {}).get("device"),
        **{f"{who}_measured": figures for who, figures in measured.items()},
    )


# --- One measurement -------------------------------------------------------------------------------------------------


def measure(
    case: Case, contestant: str, rows: int | None = None, wait: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Train ``WARMUP + case.steps`` steps; figures of the latter.

    Args:
        wait: called when the model is built and training is about to begin.
    """
    import torch

    case = replace(case, rows=rows or case.rows)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        clock = Clock(case, wait)
        model, said = CONTESTANTS[contestant](case, Path(folder), device, clock)
    seconds = clock.seconds()
    tokens = case.rows * case.sequence_len * case.steps
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops = flops_per_token(model.config, case, active_weights(model), trained) * tokens / seconds
    figures: dict[str, Any] = {
        "tokens_per_second": tokens / seconds,
        "step_seconds": seconds / case.steps,
        "tflops": flops / 1e12,
        "tokens_per_step": case.rows * case.sequence_len,
        "said": said,
    }
    if device == "cpu":
        return {**figures, "device": "cpu"}
    name = torch.cuda.get_device_name()
    sheet, product = sheet_tflops(name), measured_product()
    return {
        **figures,
        "device": name,
        "mfu_of_data_sheet": flops / 1e12 / sheet if sheet else None,
        "mfu_of_measured_product": flops / 1e12 / product,
        "measured_product_tflops": product,
        "peak_gib": clock.peak_bytes / 2**30,
        "reserved_gib": clock.reserved_bytes / 2**30,
        **profiled_figures(clock),
    }


def profiled_figures(clock: Clock) -> dict[str, Any]:
    """Of the steps under the profiler: seconds of each, of them in kernels, and the kernels that took longest."""
    if clock.profiled_seconds is None:
        return {}
    return {
        "profiled_step_seconds": clock.profiled_seconds,
        "kernel_seconds": sum(milliseconds for *_, milliseconds in clock.kernels) / 1e3,
        "kernels": clock.kernels[:12],
    }


def measured_product(size: int = 8192, rounds: int = 20) -> float:
    """TFLOP/s of a square bfloat16 product, the best of three timings."""
    import torch

    left, right = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(4):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(rounds):
            left @ right
        end.record()
        torch.cuda.synchronize()
        best = min(best, begin.elapsed_time(end) / 1e3 / rounds)
    return 2 * size**3 / best / 1e12


class Clock:
    """When each step ended, and what the steps after the timed ones did.

    Attributes:
        kernels: name, calls and milliseconds of each kernel in a profiled step, the longest first.
        profiled_seconds: of a profiled step; what no kernel accounts for is the device waiting.
        peak_bytes: allocated at most, up to the last timed step.
    """

    def __init__(self, case: Case, wait: Callable[[], None]) -> None:
        self.begin = wait
        self._case, self._times = case, list[float]()
        self._profile: Any = None
        self._profile_began = 0.0
        self.kernels: list[tuple[str, float, float]] = []
        self.profiled_seconds: float | None = None
        self.peak_bytes = self.reserved_bytes = 0

    def seconds(self) -> float:
        """Of the timed steps together."""
        return self._times[total_steps(self._case, profiled=False) - 1] - self._times[WARMUP - 1]

    def step_ended(self) -> None:
        import torch

        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.synchronize()
        self._times.append(time.perf_counter())
        ended, timed = len(self._times), total_steps(self._case, profiled=False)
        if ended == timed:
            if on_gpu:
                self.peak_bytes, self.reserved_bytes = (
                    torch.cuda.max_memory_allocated(),
                    torch.cuda.max_memory_reserved(),
                )
            if self._case.profiled:
                self._profile = torch.profiler.profile()
                self._profile.__enter__()
                self._profile_began = time.perf_counter()
        elif ended == timed + self._case.profiled:
            self._profile.__exit__(None, None, None)
            self.profiled_seconds = (self._times[-1] - self._profile_began) / self._case.profiled
            self._read_profile(self._case.profiled)

    def _read_profile(self, steps: int) -> None:
        on_device = [event for event in self._profile.key_averages() if event.device_type.name == "CUDA"]
        on_device.sort(key=lambda event: -event.self_device_time_total)
        self.kernels = [
            (event.key[:120], event.count / steps, round(event.self_device_time_total / 1e3 / steps, 3))
            for event in on_device
        ]


def total_steps(case: Case, profiled: bool = True) -> int:
    return WARMUP + case.steps + (case.profiled if profiled else 0)


def clock_callback(clock: Clock) -> Any:
    from transformers import TrainerCallback

    class Callback(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            clock.step_ended()

    return Callback()


def random_rows(case: Case) -> list[Any]:
    """Ids int32[sequence_len] of every row of the run."""
    import numpy as np

    random = np.random.default_rng(0)
    num = case.rows * total_steps(case)
    return [random.integers(8, case.shape["vocab_size"], case.sequence_len).astype(np.int32) for _ in range(num)]


def run_whet(case: Case, folder: Path, device: str, clock: Clock) -> tuple[Any, list[str]]:
    """As `whet train` goes on from a loaded model: adapter, levers, the method's trainer."""
    import numpy as np
    import torch
    from tests.tiny_training import make_config, make_inputs, write_prepared

    from whet.config.resolve import resolve
    from whet.core.types import Hardware
    from whet.methods.sft import build_trainer
    from whet.model.adapters import adapt
    from whet.model.attention import NAME
    from whet.model.attention_choice import choose_attention
    from whet.model.levers import install_levers
    from whet.model.quantize import prepare_quantized

    on_gpu = device == "cuda"
    keys: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "sequence_len": case.sequence_len,
        "sample_packing": True,
        "micro_batch_size": case.rows,
        "max_steps": total_steps(case),
        "optimizer": case.optimizer,
        "learning_rate": 1e-5,
        "gradient_checkpointing": case.recompute,
        "save_strategy": "no",
        "logging_steps": total_steps(case),
        "shuffle_merged_datasets": False,
    }
    if case.lora:
        keys |= {"adapter": "lora", "lora_r": 16, "lora_alpha": 32, "lora_target_modules": case.targets}
        keys |= {"lora_target_parameters": EXPERTS} if case.experts else {}
        keys |= {"load_in_4bit": True} if case.nf4 else {}
    keys |= {"bfloat16" if case.pure else "bf16": True} if on_gpu else {"bf16": False}
    capability = torch.cuda.get_device_capability() if on_gpu else None
    name = torch.cuda.get_device_name() if on_gpu else "a CPU"
    hardware = Hardware(device, name, bf16=on_gpu, num_cpus=2, compute_capability=capability)
    resolved = resolve(make_config(**keys), hardware)
    model = build_model(case, device, getattr(torch, resolved.dtype), NAME)
    if case.nf4:
        prepare_quantized(model)
    if case.recompute:
        _enable_recompute(model)
    said = [choose_attention("auto", model.config, device).why]
    model = adapt(model, resolved.config, resolved)
    said += install_levers(model, resolved.config, resolved)
    every_token = np.ones(case.sequence_len, dtype=bool)
    every_token[0] = False
    prepared = write_prepared(folder / "prepared", [(ids, every_token) for ids in random_rows(case)])
    trainer = build_trainer(make_inputs(prepared, resolved, model))
    trainer.add_callback(clock_callback(clock))
    trainer.train()
    return model, said


def run_plain(case: Case, folder: Path, device: str, clock: Clock) -> tuple[Any, list[str]]:
    """transformers.Trainer with PEFT and sdpa, the same rows in the same order."""
    import torch
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, default_data_collator

    on_gpu = device == "cuda"
    half = on_gpu and (case.lora or case.pure)
    model = build_model(case, device, torch.bfloat16 if half else torch.float32, "sdpa")
    if case.lora:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

        if case.nf4:
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        experts = {"target_parameters": list(EXPERTS)} if case.experts else {}
        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=list(case.targets), **experts))
    if case.recompute:
        _enable_recompute(model)
    rows = [ids.tolist() for ids in random_rows(case)]
    arguments = TrainingArguments(
        output_dir=str(folder / "plain"),
        per_device_train_batch_size=case.rows,
        max_steps=total_steps(case),
        optim=case.optimizer,
        learning_rate=1e-5,
        bf16=on_gpu and not case.pure,
        use_cpu=not on_gpu,
        save_strategy="no",
        report_to=[],
        logging_steps=total_steps(case),
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        data_collator=default_data_collator,
        callbacks=[clock_callback(clock)],
    )
    trainer.train()
    return model, []


def _enable_recompute(model: Any) -> None:
    # Renamed in transformers 5.23.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.enable_input_require_grads()


CONTESTANTS = {"whet": run_whet, "plain": run_plain}


if __name__ == "__main__":
    main()
