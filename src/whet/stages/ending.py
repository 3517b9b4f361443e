"""The end: the result written and proved, and what is said of it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from whet.training.scoring import Score


def save(resolved: ResolvedRun, model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, output_dir: Path) -> None:
    """What was trained, by the first rank; proved to be what stands in memory, unless `parity` is off.

    Raises:
        ParityError: what was saved is another model.
    """
    from whet.artefacts.prove_saved import prove_saved, proving
    from whet.artefacts.save import save_files

    if resolved.config.adapter.relora:
        from whet.model.adapters import merged_in_place

        model = merged_in_place(model)  # the base has taken in earlier adapters, so the last one belongs there too
    if resolved.hardware.rank != 0:
        return
    with proving(resolved.config) as fresh:
        with _result_kept(resolved, output_dir):
            names = save_files(model, tokenizer, output_dir, resolved.config.template.eot_tokens or ())
        if fresh is not None:
            prove_saved(fresh, resolved, model, tokenizer, output_dir, names)


@contextmanager
def _result_kept(resolved: ResolvedRun, output_dir: Path) -> Iterator[None]:
    """Where the result cannot be written, say which checkpoint has it, and how it gets its place."""
    from safetensors import SafetensorError

    from whet.core.disk import refused_write
    from whet.training.checkpoint import newest_complete

    try:
        yield
    except (OSError, SafetensorError, RuntimeError, ArtefactError) as error:  # torch's refusals are RuntimeErrors
        reason = refused_write(error.__cause__ if isinstance(error, ArtefactError) and error.__cause__ else error)
        if reason is None:
            raise
        newest = newest_complete(output_dir).path
        found = f"the trained model cannot be written to '{output_dir}': {reason}"
        fix = f"make room there, then: whet train {resolved.config.file} --resume-from-checkpoint"
        if newest is None:
            kept, fix = "no checkpoint holds it", "make room, and train again with save_strategy: epoch"
        else:
            kept = f"{newest} holds it"
        raise ArtefactError(
            Problem(resolved.config.where("output_dir"), f"{found}; {kept}", fix, "output_dir")
        ) from error


def merges(resolved: ResolvedRun) -> bool:
    """Whether this process merges the adapter after training: under `merge_adapters`, the first rank."""
    return resolved.config.adapter.merge_adapters and resolved.hardware.rank == 0


def say_what_next(config: Config, before: Score | None, after: Score | None, merged_dir: Path | None) -> None:
    """The last words of a run: scores, where the result is, and the commands to try next."""
    if before is not None and after is not None:
        say(f"score on held-out rows: before {before}, after {after}")
    say(f"saved: {config.output.output_dir}")
    if not Path(config.file).is_file():
        return  # a run done again from its record, and the YAML is elsewhere by now
    words = ["chat"] if not config.adapter.adapter or config.adapter.relora or merged_dir else ["chat", "merge-lora"]
    say(
        "try next: " + "   or   ".join(f"whet {word} {shlex.quote(config.file)}{_same_place(config)}" for word in words)
    )


def _same_place(config: Config) -> str:
    """The option that leads another command to the same output folder, where the file alone does not."""
    said_elsewhere = config.origin("output_dir").kind == "command line"
    return f" --output-dir {shlex.quote(config.output.output_dir)}" if said_elsewhere else ""
