"""How far llama.cpp's answers are from transformers', for each architecture and type of weights that whet writes.

    python benchmarks/gguf_parity.py [--write]

Tiny models with random weights, 40 tokens each. ``--write`` puts the table into docs/gguf.md. Needs whet[llamacpp].
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.promises.test_g6_gguf import IDS, MODELS, kl, made, written

from whet.artefacts.gguf.llama_cpp import LlamaCpp

TYPES = ("f32", "f16", "bf16", "q8_0")
BEGIN, END = "<!-- gguf parity -->", "<!-- /gguf parity -->"


def main() -> None:
    lines = [f"| model | {' | '.join(TYPES)} |", f"|---|{'---|' * len(TYPES)}"]
    for kind in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            model, path = made(kind, Path(folder))
            found = [max(kl(model, LlamaCpp(written(path, each)).distributions(IDS))) for each in TYPES]
        lines.append(f"| {kind} | {' | '.join(f'{value:.1e}' for value in found)} |")
        print(lines[-1], flush=True)
    if "--write" in sys.argv:
        page = Path(__file__).parents[1] / "docs" / "gguf.md"
        before, _, rest = page.read_text("utf-8").partition(BEGIN)
        table = "\n".join(lines)
        page.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.partition(END)[2]}", "utf-8")


if __name__ == "__main__":
    main()
