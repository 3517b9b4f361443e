"""Run by path in a process of its own (`whet.artefacts.fresh`): loads a model as anybody would, and says what it says.

Nothing of whet is imported here: an artefact must be loaded by transformers (and PEFT, for an adapter) alone. A line of
JSON on standard input is a job, a line on standard output its result. Each job runs in a fork of a process that has
imported torch and transformers and done nothing else, so that no job can leave anything behind for the next.
"""

from __future__ import annotations

import ctypes
import inspect
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

POSITIONS_AT_ONCE = 16
"""Distributions compared at a time: at 150,000 tokens of vocabulary, 10 MB in float32 for each tensor of them."""

ROOM = 1.3
"""Memory a model is expected to need, for each byte of its files."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints must not stand between the answers
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the process that started us decides
    # Asked in the usual way, whether there is a GPU would leave CUDA half started, and no fork could use it.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    import transformers.modeling_utils  # noqa: F401

    if "peft" in sys.argv:
        import peft  # noqa: F401

    for line in sys.stdin:
        answers.write(_in_a_fork(json.loads(line)) + "\n")
        answers.flush()


_PR_SET_PDEATHSIG = 1
"""As in `whet.core.parent`, whose function `end_with_parent` repeats: nothing of whet is imported here."""


def end_with_parent() -> None:
    """Let Linux kill this process when the one that started it ends, however that ended; a fork has to ask again.

    Elsewhere a job that has begun is finished first, and nobody reads its result.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _in_a_fork(job: dict[str, Any]) -> str:
    """The job's result, or how it failed: ``{"failed": ...}``, ``{"no_memory": ...}``, ``{"died": signal number}``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            end_with_parent()
            os.close(reading)
            with os.fdopen(writing, "w", encoding="utf-8") as pipe:
                pipe.write(json.dumps(_result(job)))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    if result:
        return result
    return json.dumps({"died": os.waitstatus_to_exitcode(status)})


def _result(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    started = time.monotonic()
    os.chdir(job["cwd"])
    try:
        return {**_do(job), "seconds": round(time.monotonic() - started, 2)}
    except (MemoryError, torch.OutOfMemoryError) as error:
        return {"no_memory": str(error) or type(error).__name__}
    except _NoBase as error:
        return {"no_base": _in_a_line(error.__cause__ or error)}
    except Exception as error:  # noqa: BLE001  # the model may come with code of its own: whatever goes wrong there is the answer
        return {"failed": _in_a_line(error)}


class _NoBase(Exception):
    """The base that an adapter stands beside cannot be loaded, which says nothing of the adapter."""


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    # torch and PEFT say in the first line that something is wrong, and what it is in the second.
    return f"{type(error).__name__}: {' '.join(lines[:2])}"


def _do(job: dict[str, Any]) -> dict[str, Any]:
    import torch

    with torch.no_grad():
        model = load(job["source"], job["device"])
        facts = {
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "loaded_by": type(model).__name__,
        }
        prompts = json.loads(Path(job["prompts"]).read_text("utf-8"))
        if job["do"] == "speak":
            speak(model, prompts, Path(job["logits"]))
            return facts
        return {**facts, **compare(model, prompts, Path(job["logits"]))}


def load(source: dict[str, Any], device: str) -> Any:
    """The model that ``source`` describes (fields of `whet.artefacts.fresh.Source`), in evaluation mode.

    On ``device`` if its memory has room for the files, else on the CPU.

    Raises:
        MemoryError: the CPU's memory has no room either.
    """
    if source["llama_cpp"]:
        from whet.artefacts.gguf.llama_cpp import LlamaCpp  # the program that will run the file; nothing else of whet

        return LlamaCpp(Path(source["folder"]) / source["gguf_file"], source["gguf_adapter"], **source["options"])
    if not source["adapter"]:
        return _load_model(source, source["folder"], device).eval()
    try:
        base = _load_model(source, source["base"], device)
    except (OSError, ValueError, RuntimeError, ImportError, TypeError, KeyError) as error:
        raise _NoBase from error
    from peft import PeftModel

    return PeftModel.from_pretrained(base, source["adapter"]).eval()


def _load_model(source: dict[str, Any], folder: str, device: str) -> Any:
    import torch
    import transformers

    options: dict[str, Any] = {"trust_remote_code": source["trust_remote_code"], **source["options"]}
    if source["revision"]:
        options["revision"] = source["revision"]
    if source["config"]:
        options["config"] = transformers.AutoConfig.from_pretrained(
            source["config"], trust_remote_code=source["trust_remote_code"]
        )
    if source["quantization"]:
        from transformers.quantizers.auto import AutoQuantizationConfig

        options["quantization_config"] = AutoQuantizationConfig.from_dict(source["quantization"])
    if source["gguf_file"]:
        options["gguf_file"] = source["gguf_file"]
    if (place := _place(Path(folder), device)) != "cpu":
        options["device_map"] = {"": place}
    dtype = source["dtype"]
    kind = getattr(transformers, source["model_class"])
    model = kind.from_pretrained(folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **options)
    if source["rows"] and source["rows"] != model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(source["rows"], mean_resizing=False)
    for module in model.modules():
        # bitsandbytes (0.50.2) repacks 4-bit weights for inference on some CPUs: rounded scales, and few widths fit.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def _place(folder: Path, device: str) -> str:
    """The device, or the CPU, whichever has memory for the files in ``folder``; a hub's model goes to the device."""
    import torch

    if not folder.is_dir():
        return device
    needed = ROOM * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    if device != "cpu" and torch.cuda.mem_get_info(device)[0] >= needed:
        return device
    available = _available_memory()
    if available is not None and available < needed:
        raise MemoryError(f"it needs {needed / 2**30:.1f} GiB, and {available / 2**30:.1f} GiB are free")
    return "cpu"


def _available_memory() -> int | None:
    """Bytes that Linux could give; without this question, its way to say no is to kill the largest process."""
    try:
        lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def speak(model: Any, prompts: list[list[int]], folder: Path) -> None:
    """Write the logits of each prompt, in the dtype they are computed in, to ``folder/<number>.safetensors``."""
    from safetensors.torch import save_file

    for number, ids in enumerate(prompts):
        save_file({"logits": logits_of(model, ids).cpu().contiguous()}, folder / f"{number}.safetensors")


def compare(model: Any, prompts: list[list[int]], folder: Path) -> dict[str, Any]:
    """KL divergence of the model's distributions from those in ``folder``, over every position of every prompt."""
    from safetensors import safe_open

    divergences: list[float] = []
    same = 0
    for number, ids in enumerate(prompts):
        found_TV = logits_of(model, ids)
        with safe_open(folder / f"{number}.safetensors", framework="pt") as file:
            expected = file.get_slice("logits")
            shape = tuple(expected.get_shape())
            if shape != tuple(found_TV.shape):
                raise ValueError(f"its logits have the shape {tuple(found_TV.shape)}, the live model's {shape}")
            for start in range(0, shape[0], POSITIONS_AT_ONCE):
                rows = slice(start, start + POSITIONS_AT_ONCE)
                kl, agreeing = divergence(expected[rows].float(), found_TV[rows].float().cpu())
                divergences += kl
                same += agreeing
    return {
        "mean_kl": sum(divergences) / len(divergences),
        "max_kl": max(divergences),
        "positions": len(divergences),
        "same_first_choice": same / len(divergences),
    }


def divergence(expected_TV: Any, found_TV: Any) -> tuple[list[float], int]:
    """KL from the expected distribution to the one found, in nats, of each position; and how many first choices agree.

    In float64: the sum over 150,000 tokens must not add a rounding of its own. NaN counts as infinitely far.
    """
    import torch

    expected, found = expected_TV.double().log_softmax(-1), found_TV.double().log_softmax(-1)
    kl = (expected.exp() * (expected - found)).sum(-1)
    kl = torch.where(kl.isnan(), torch.full_like(kl, torch.inf), kl.clamp(min=0.0))
    return kl.tolist(), int((expected_TV.argmax(-1) == found_TV.argmax(-1)).sum())


def logits_of(model: Any, ids: list[int]) -> Any:
    """The logits [T, V] of one prompt."""
    import torch

    if hasattr(model, "distributions"):
        return model.distributions(ids)
    device = model.get_input_embeddings().weight.device
    takes_cache = "use_cache" in inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    return model(torch.tensor([ids], device=device), **({"use_cache": False} if takes_cache else {})).logits[0]


if __name__ == "__main__":
    main()
