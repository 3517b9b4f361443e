"""The stages of what is made of a run's result; `whet.exports` says in which order."""

from __future__ import annotations

from pathlib import Path

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, ConfigError, Problem
from whet.record import RECORD_NAME, read_record


def refuse_unquantized(config: Config) -> None:
    """For `whet quantize`, before torch is imported.

    Raises:
        ConfigError: the config does not say in which numbers.
    """
    if config.quant.quantization is None and config.quant.qat is None:
        found, fix = "nothing says in which numbers to write the model", "add `quantization: {weight_dtype: int8}`"
        raise ConfigError(Problem(config.where("quantization"), found, fix, "quantization"))


def push_waiting(config: Config) -> list[str]:
    """What a run has made and others do not have yet, for `whet push`; a sentence for each."""
    from whet.artefacts.push import push_waiting

    return push_waiting(config)


def adapter_of(resolved: ResolvedRun) -> Path:
    """Where the run's adapter is: in its output folder, or where the config says that one was trained before."""
    trained, named = Path(resolved.output_dir), resolved.config.adapter.lora_model_dir
    return Path(named) if named and not (trained / "adapter_config.json").is_file() else trained


def merge_adapter(resolved: ResolvedRun, adapter_dir: Path, output_dir: Path | None = None) -> Path:
    """The adapter folded into its base, in ``merged`` of the output folder if no other is given.

    Raises:
        ConfigError: under `relora` there is no adapter left.
    """
    if resolved.config.adapter.relora:
        found = f"with relora the result in '{resolved.output_dir}' is a full model: its adapters are merged already"
        raise ConfigError(Problem(resolved.config.where("relora"), found, "use that folder as it is", "relora"))
    from whet.artefacts.merge import merge_lora

    merged = merge_lora(resolved.config, resolved, adapter_dir, output_dir or Path(resolved.output_dir) / "merged")
    return Path(merged.folder)


def model_of(resolved: ResolvedRun) -> Path:
    """Where the run's full model is: its output folder, or the merged model in it after the training of an adapter.

    Raises:
        ArtefactError: an adapter was trained, and not merged yet; or nothing was trained.
    """
    from whet.serving.trained import find_trained

    config = resolved.config
    if config.adapter.adapter is None:
        trained = find_trained(config, takes_untrained=False)
        assert trained.folder is not None
        return trained.folder
    merged = Path(resolved.output_dir) / "merged"
    if not (merged / "config.json").is_file():
        found = f"there is no merged model in '{merged}', and an adapter is not quantised by itself"
        raise ArtefactError(Problem(config.where("output_dir"), found, f"whet merge-lora {config.file}", "output_dir"))
    return merged


def merged_model_of(resolved: ResolvedRun, adapter_dir: Path | None = None) -> Path | None:
    """Where the run's full model is; None where an adapter was trained that is still to be merged.

    A merged model whose record does not say that it is finished is of a command that was killed meanwhile.
    """
    if resolved.config.adapter.adapter is None or resolved.config.adapter.relora:
        return model_of(resolved)
    merged = Path(resolved.output_dir) / "merged"
    files = [adapter_of(resolved) / "adapter_model.safetensors", merged / "config.json"]
    if adapter_dir is None and all(file.is_file() for file in files):
        trained, made = (file.stat().st_mtime_ns for file in files)
        if made >= trained and (read_record(merged / RECORD_NAME) or {}).get("outcome") == "finished":
            return merged
    return None


def sharded_checkpoint_of(config: Config, folder: Path | None) -> Path:
    """Where the parts that FSDP's ranks wrote are: in the folder, or in the output folder or its newest checkpoint."""
    from whet.artefacts.sharded import find_checkpoint

    return find_checkpoint(config, folder)


def gather_model(
    config: Config, checkpoint: Path, output_dir: Path | None, dtype: str | None, shard_bytes: int
) -> Path:
    """The parts that FSDP's ranks wrote, as one model (or adapter)."""
    from whet.artefacts.sharded import gather

    return Path(gather(config, output_dir, checkpoint=checkpoint, dtype=dtype, shard_bytes=shard_bytes).folder)


def require_gguf() -> None:
    """Raises a ModelError where the package that writes GGUF is missing."""
    from whet.artefacts.gguf.writing import require_gguf

    require_gguf()


def foresee_gguf(resolved: ResolvedRun, adapter_dir: Path, output_dir: Path | None) -> None:
    """Before an adapter is merged for it: everything that GGUF would refuse of the merged model."""
    from whet.artefacts.gguf.foresee import foresee

    foresee(resolved.config, adapter_dir, output_dir or Path(resolved.output_dir) / "gguf")


def export_gguf_model(resolved: ResolvedRun, model_dir: Path, outtype: str | None, output_dir: Path | None) -> Path:
    """The model as GGUF, in ``gguf`` of the output folder if no other is given."""
    from whet.artefacts.gguf.export import export_model

    output = output_dir or Path(resolved.output_dir) / "gguf"
    return Path(export_model(resolved.config, model_dir, output, outtype).folder)


def export_gguf_adapter(
    resolved: ResolvedRun, adapter_dir: Path, outtype: str | None, base_gguf: str | None, output_dir: Path | None
) -> Path:
    """The adapter alone as GGUF, in ``gguf-adapter`` of the output folder if no other is given."""
    from whet.artefacts.gguf.export import export_adapter

    output = output_dir or Path(resolved.output_dir) / "gguf-adapter"
    return Path(export_adapter(resolved.config, adapter_dir, output, outtype, base_gguf).folder)


def quantize_model(resolved: ResolvedRun, model_dir: Path, output_dir: Path | None = None) -> Path:
    """The model in few bits, in ``quantized`` of the output folder if no other is given."""
    from whet.artefacts.quantize import quantize_model

    output = output_dir or Path(resolved.output_dir) / "quantized"
    return Path(quantize_model(resolved.config, resolved, model_dir, output).folder)
