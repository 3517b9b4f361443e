"""What is made of a run's result: a merged or quantised model, one model of the parts of ranks, a GGUF file, a push.

Like the stories of `whet.run`, each is a list of stages.
"""

from __future__ import annotations

from pathlib import Path

from whet import export_stages, history, stages
from whet.config import Config
from whet.config.resolve import ResolvedRun


def merge(config: Config, *, adapter_dir: Path | None = None, output_dir: Path | None = None) -> Path:
    """Fold the run's adapter into its base model and write a folder that transformers loads alone.

    Args:
        adapter_dir: the adapter; if not given, that of the config's `output_dir`, or its `lora_model_dir` where the run
            has left none.
        output_dir: where to write; `merged` inside the config's `output_dir` if not given.
    """
    resolved = stages.resolve_run(config)
    return merge_run(resolved, adapter_dir or export_stages.adapter_of(resolved), output_dir)


def merge_run(resolved: ResolvedRun, adapter_dir: Path, output_dir: Path | None = None) -> Path:
    """As `merge`, for a run whose open values are decided."""
    with history.artefact("merge", resolved, adapter_dir) as record:
        return record.place(export_stages.merge_adapter(resolved, adapter_dir, output_dir))


def quantize(config: Config, *, model_dir: Path | None = None, output_dir: Path | None = None) -> Path:
    """Write the model that the config's run has made in the few bits of its block `quantization`, or `qat`.

    Args:
        model_dir: a full model to write instead.
        output_dir: where to write; `quantized` inside the config's `output_dir` if not given.
    """
    export_stages.refuse_unquantized(config)
    resolved = stages.resolve_run(config)
    model_dir = model_dir or export_stages.model_of(resolved)
    with history.artefact("quantize", resolved, model_dir) as record:
        return record.place(export_stages.quantize_model(resolved, model_dir, output_dir))


def gather(
    config: Config,
    *,
    checkpoint: Path | None = None,
    output_dir: Path | None = None,
    dtype: str | None = None,
    shard_bytes: int = 5 * 10**9,
) -> Path:
    """Make one folder that transformers (or PEFT, for an adapter) loads of the parts that FSDP's ranks wrote.

    Args:
        checkpoint: the folder with the parts; that of the config's `output_dir`, or of its newest checkpoint, if not
            given.
        output_dir: where to write; `merged` (an adapter: `adapter`) inside the config's `output_dir` if not given.
        dtype: of the weights: "float32", "bfloat16" or "float16"; as they were saved if not given.
        shard_bytes: largest size of a file, of more than one tensor.
    """
    # Only its facts are wanted: a run that needs eight GPUs is gathered on a machine without one.
    resolved = stages.resolve_run(config, computes=False)
    folder = export_stages.sharded_checkpoint_of(config, checkpoint)
    with history.artefact("gather", resolved, folder) as record:
        return record.place(export_stages.gather_model(config, folder, output_dir, dtype, shard_bytes))


def export_gguf(
    config: Config,
    *,
    outtype: str | None = None,
    model_dir: Path | None = None,
    adapter: bool = False,
    adapter_dir: Path | None = None,
    base_gguf: str | None = None,
    output_dir: Path | None = None,
) -> Path:
    """Write the model that the config's run has made as GGUF, with a Modelfile for Ollama.

    Args:
        outtype: "f32", "f16", "bf16" or "q8_0"; what fits the model if not given.
        model_dir: a full model to write instead.
        adapter: write the adapter alone; else it is merged first.
        adapter_dir: the adapter; that of the run if not given.
        base_gguf: with ``adapter``: its base as GGUF, or its name in Ollama.
        output_dir: where to write; `gguf` inside the config's `output_dir` if not given.
    """
    export_stages.require_gguf()  # before anything is merged for it
    resolved = stages.resolve_run(config)
    if adapter:
        folder = adapter_dir or export_stages.adapter_of(resolved)
        with history.artefact("gguf-adapter", resolved, folder) as record:
            return record.place(export_stages.export_gguf_adapter(resolved, folder, outtype, base_gguf, output_dir))
    model = model_dir or export_stages.merged_model_of(resolved, adapter_dir)
    if model is None:
        trained = adapter_dir or export_stages.adapter_of(resolved)
        export_stages.foresee_gguf(resolved, trained, output_dir)
        model = merge_run(resolved, trained)
    with history.artefact("gguf", resolved, model) as record:
        return record.place(export_stages.export_gguf_model(resolved, model, outtype, output_dir))


def push(config: Config) -> list[str]:
    """Give the hub, and trackers that were lost meanwhile, what the config's run has made; a sentence for each thing.

    Raises:
        WhetError: there is nothing to push, or no one takes it.
    """
    return export_stages.push_waiting(config)
