"""How far llama.cpp's answers are from transformers', for each architecture and type of weights that whet writes.

    python benchmarks/gguf_parity.py [--write] [--rows FILE]

Tiny models with random weights, 40 tokens each. ``--write`` puts the table into docs/gguf.md. ``--rows`` has every
conversation of a JSONL file cut by llama.cpp and by each kind of tokenizer instead. Needs whet[llamacpp].
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.gguf_tokenizers import TOKENIZERS
from tests.models import save_tiny_model
from tests.promises.test_g6_gguf import IDS, MODELS, kl, made, written

from whet.artefacts.gguf.llama_cpp import LlamaCpp

TYPES = ("f32", "f16", "bf16", "q8_0")
BEGIN, END = "<!-- gguf parity -->", "<!-- /gguf parity -->"


def cut(rows: Path) -> None:
    """How many conversations llama.cpp cuts into the ids of training, for each kind of tokenizer."""
    chats = [json.loads(line)["messages"] for line in rows.read_text("utf-8").splitlines()]
    for kind, make in TOKENIZERS.items():
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = make()
            path = save_tiny_model(Path(folder), "llama", tokenizer=tokenizer, vocab_size=1100)
            run, same, tokens = LlamaCpp(written(path, tokenizer=tokenizer)), 0, 0
            for chat in chats:
                text = tokenizer.apply_chat_template(chat, tokenize=False)
                ids = tokenizer(text, add_special_tokens=False).input_ids
                same += run.cut(text, add_special=False) == ids
                tokens += len(ids)
        print(f"{kind}: {same:,} of {len(chats):,} conversations alike ({tokens:,} tokens)", flush=True)


def main() -> None:
    if "--rows" in sys.argv:
        cut(Path(sys.argv[sys.argv.index("--rows") + 1]))
        return
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
