"""benchmarks/gpu.py works from end to end, in little; its figures are for a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


def test_both_contestants_run_and_are_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)
    import gpu

    results = gpu.main(["--tiny", "--cases", "llama-8b-lora-4k"])
    for contestant in ("whet", "plain"):
        figures = results["llama-8b-lora-4k"][contestant]
        assert figures["tokens_per_step"] == 64
        assert figures["tokens_per_second"] == pytest.approx(64 / figures["step_seconds"])
    sys.modules.pop("gpu")


def test_operations_of_llama_8b_with_an_adapter() -> None:
    """4 a weight and token and attention's share: 16,000 tokens/s are 54% of an H200's 989 TFLOP/s."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from gpu_models import CASES, flops_per_token, sheet_tflops
    finally:
        sys.path.remove(str(BENCHMARKS))
    from transformers import LlamaConfig

    case = CASES["llama-8b-lora-4k"]
    config = LlamaConfig(**{name: value for name, value in case.shape.items() if name != "model_type"})
    num_active, num_trained = 7_504_658_432, 41_943_040  # without the embedding table; rank 16 on seven layers' kinds
    share = 16_000 * flops_per_token(config, case, num_active, num_trained) / 1e12 / sheet_tflops("NVIDIA H200")
    assert share == pytest.approx(0.54, abs=0.02)
