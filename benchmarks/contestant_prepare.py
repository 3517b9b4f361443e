"""Preparing conversations for training, by whet or by TRL: `contestant_prepare.py whet|trl ...`.

The clock runs from the tokenizer in hand to the last byte written: libraries are imported and the tokenizer is loaded
before it starts, and everything else counts: JSON reading, rendering, encoding, labels, writing, child processes.

Prints one JSON object: CPU and wall seconds, rows, tokens, peak memory. `--digests FILE` keeps 16 bytes of hash of
every row's ids and supervised tokens, by which two contestants are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import pkgutil
import resource
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

SPENT: dict[str, float] = {}


@contextlib.contextmanager
def measured(name: str) -> Iterator[None]:
    """Add the seconds of a block, of this process and its finished children, to SPENT."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    yield
    SPENT[f"{name}wall_seconds"] = SPENT.get(f"{name}wall_seconds", 0.0) + time.perf_counter() - wall
    SPENT[f"{name}cpu_seconds"] = SPENT.get(f"{name}cpu_seconds", 0.0) + _cpu_seconds() - cpu


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _forget_peak() -> None:
    """Let the peak of this process begin anew, at what it holds now; elsewhere than on Linux it does not."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> int:
    """Most memory of this process, and of its largest child on top."""
    return sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * 1024


def whet(options: argparse.Namespace) -> Iterable[tuple[Any, Any]]:
    """Prepare with whet; or, with --again, find the set prepared."""
    import whet as package
    from whet.data.store import open_prepared
    from whet.training import tokenizer as tokenizers

    _import_all("whet.data")
    config = package.load_config(options.config)
    loaded = tokenizers.run_tokenizer(config)
    tokenizers.run_tokenizer = lambda config: loaded  # the tokenizer is in hand
    _forget_peak()
    before = _peak_bytes()
    with measured(""):
        prepared, _ = package.preprocess(config)
    SPENT["peak_bytes"], SPENT["start_bytes"] = _peak_bytes(), before
    if options.again:
        with measured("open_"):
            opened = open_prepared(prepared.path)
            assert len(opened.train.lengths) == len(opened.train)
    split = prepared.train
    return (split.tokens(index) for index in range(len(split)))


def _import_all(name: str) -> None:
    """Import every module of a package, and of the packages in it."""
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        with contextlib.suppress(ImportError):  # an optional extra that is not installed
            importlib.import_module(module.name)


def trl(options: argparse.Namespace) -> Iterable[tuple[Any, Any]]:
    """Prepare as SFTTrainer does, with a model that is never trained."""
    os.environ["HF_DATASETS_CACHE"] = str(Path(options.output) / "cache")
    import numpy as np
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    class Measured(SFTTrainer):
        """Of all that the constructor does, only what prepares the dataset is measured."""

        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            with measured(""):
                return super()._prepare_dataset(*args, **kwargs)

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model)
    _forget_peak()
    before = _peak_bytes()
    with measured(""):
        rows = load_dataset("json", data_files=options.rows, split="train")
    trainer = Measured(
        model=model,
        processing_class=tokenizer,
        args=SFTConfig(
            output_dir=options.output,
            assistant_only_loss=True,
            packing=False,
            max_length=options.sequence_len,
            report_to="none",
            use_cpu=True,
            bf16=False,
        ),
        train_dataset=rows,
    )
    SPENT["peak_bytes"], SPENT["start_bytes"] = _peak_bytes(), before
    prepared = trainer.train_dataset.with_format("numpy")
    batches = prepared.select_columns(["input_ids", "labels"]).iter(batch_size=1000)
    return (
        (np.asarray(ids), np.asarray(labels) != -100)
        for batch in batches
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True)
    )


def _summary(samples: Iterable[tuple[Any, Any]], digests: Path | None) -> dict[str, int]:
    """Count rows and tokens, and write each row's digest."""
    import numpy as np

    num_rows = num_tokens = num_supervised = 0
    found = []
    for ids, supervised in samples:
        targets = np.asarray(supervised, dtype=np.bool_).copy()
        targets[:1] = False  # nothing predicts the first token
        num_rows, num_tokens, num_supervised = num_rows + 1, num_tokens + len(ids), num_supervised + int(targets.sum())
        content = np.asarray(ids, dtype=np.int32).tobytes() + targets.tobytes()
        found.append(hashlib.blake2b(content, digest_size=16).digest())
    if digests is not None:
        digests.write_bytes(b"".join(found))
    return {"rows": num_rows, "tokens": num_tokens, "supervised_tokens": num_supervised}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    contestants = arguments.add_subparsers(dest="contestant", required=True)
    ours = contestants.add_parser("whet")
    ours.add_argument("--config", required=True)
    ours.add_argument("--again", action="store_true", help="the set is there already: a hit, and opening it")
    peer = contestants.add_parser("trl")
    peer.add_argument("--model", required=True)
    peer.add_argument("--rows", required=True)
    peer.add_argument("--output", required=True)
    peer.add_argument("--sequence-len", type=int, help="cut rows here; not at all by default")
    for parser in (ours, peer):
        parser.add_argument("--digests", type=Path)
    options = arguments.parse_args()
    samples = {"whet": whet, "trl": trl}[options.contestant](options)
    counted = {} if options.contestant == "whet" and options.again else _summary(samples, options.digests)
    print(json.dumps({**SPENT, **counted}))


if __name__ == "__main__":
    main()
