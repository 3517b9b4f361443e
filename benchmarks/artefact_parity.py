"""How far what whet writes is from the model that was trained: kinds of artefact x architectures, in a fresh process.

    python benchmarks/artefact_parity.py [--write]

Tiny models with random weights, three steps of training with a large learning rate, the 8 prompts of every parity
record. ``--write`` keeps the numbers in benchmarks/results/artefacts/parity.json and the table in docs/artefacts.md.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.models import ARCHITECTURES, MIXTURES, save_tiny_model
from tests.promises.test_g6_artefact import LORA, Run

from whet.artefacts import merge, prove_saved
from whet.artefacts.fresh import FreshProcess
from whet.artefacts.parity import RECORD_NAME
from whet.artefacts.save import save_files
from whet.record import versions_of

ROOT = Path(__file__).resolve().parents[1]

EXPERTS = {
    "lora_target_linear": False,
    "lora_target_modules": ["o_proj"],
    "lora_target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}
KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({}, {}),
    "LoRA": (LORA, {}),
    "DoRA": ({**LORA, "peft_use_dora": True}, {}),
    "rsLoRA": ({**LORA, "peft_use_rslora": True}, {}),
    "modules_to_save": ({**LORA, "lora_modules_to_save": ["embedding", "lm_head"]}, {}),
    "experts": ({**LORA, **EXPERTS}, {}),
    "LoRA, bf16": (LORA, {"precision": {"torch_dtype": "bfloat16"}}),
    "LoRA on nf4": (LORA, {"quant": {"load_in_4bit": True}}),
}
"""Name -> what the adapter's section says ({} for none), and other sections."""

LEFT_OUT: dict[str, Collection[str]] = {"experts": ARCHITECTURES, "DoRA": ("deepseek_v3",)}
"""No experts; and PEFT refuses DoRA there, for its stacked experts."""

BEGIN, END = "<!-- artefact parity -->", "<!-- /artefact parity -->"


def main() -> None:
    rows = []
    with FreshProcess(adapter=True) as fresh, _used_by_all(fresh):
        for kind in KINDS:
            for architecture in (*ARCHITECTURES, *MIXTURES):
                if architecture in LEFT_OUT.get(kind, ()):
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    rows += measure(fresh, kind, architecture, Path(folder))
                    print(rows[-1], flush=True)
    if "--write" in sys.argv:
        write(rows)


@contextmanager
def _used_by_all(fresh: FreshProcess) -> Iterator[None]:
    @contextmanager
    def the_same(**_: bool) -> Iterator[FreshProcess]:
        yield fresh

    merge.FreshProcess = the_same  # type: ignore[misc, assignment]
    yield


def measure(fresh: FreshProcess, kind: str, architecture: str, folder: Path) -> list[dict[str, Any]]:
    """The records of one run: of what it saves, and of the merged model where it has an adapter."""
    adapter, sections = KINDS[kind]
    if "lora_modules_to_save" in adapter:
        embedding = "wte" if architecture == "gpt2" else "embed_tokens"
        adapter = {**adapter, "lora_modules_to_save": [embedding, "lm_head"]}
    run = Run(save_tiny_model(folder / "base", architecture), folder, adapter, **sections)
    saved = folder / "saved"
    names = save_files(run.model, run.tokenizer, saved)
    prove_saved.prove_saved(fresh, run.resolved, run.model, run.tokenizer, saved, names)
    rows = [_row(kind, architecture, saved)]
    if adapter:
        merge.merge_lora(run.config, run.resolved, saved, folder / "merged")
        rows.append(_row(kind, architecture, folder / "merged"))
    return rows


def _row(kind: str, architecture: str, artefact: Path) -> dict[str, Any]:
    record = json.loads((artefact / RECORD_NAME).read_text("utf-8"))
    return {
        "training": kind,
        "architecture": architecture,
        "artefact": record["artefact"]["kind"],
        "mean_kl": record["kl"]["mean"],
        "max_kl": record["kl"]["max"],
        "limit": record["limit"],
        "outcome": record["outcome"],
    }


def write(rows: list[dict[str, Any]]) -> None:
    """The numbers, and the page's table."""
    results = ROOT / "benchmarks" / "results" / "artefacts" / "parity.json"
    results.parent.mkdir(exist_ok=True)
    versions = versions_of(("torch", "transformers", "peft", "bitsandbytes"))
    results.write_text(json.dumps({"versions": versions, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    page = ROOT / "docs" / "artefacts.md"
    before, _, rest = page.read_text("utf-8").partition(BEGIN)
    page.write_text(f"{before}{BEGIN}\n{table(rows)}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table(rows: list[dict[str, Any]]) -> str:
    """One line for each kind of training and artefact, one column for each architecture: the largest KL at a token."""
    architectures = (*ARCHITECTURES, *MIXTURES)
    lines = [f"| trained | artefact | {' | '.join(architectures)} |", f"|---|---|{'---|' * len(architectures)}"]
    found = {(row["training"], row["artefact"], row["architecture"]): row for row in rows}
    for training, artefact in dict.fromkeys((row["training"], row["artefact"]) for row in rows):
        cells = [found.get((training, artefact, architecture)) for architecture in architectures]
        shown = ["" if row is None else f"{row['mean_kl']:.0e} / {row['max_kl']:.0e}" for row in cells]
        lines.append(f"| {training} | {artefact} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
