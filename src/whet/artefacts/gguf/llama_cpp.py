"""A GGUF file run by llama.cpp itself (package xllamacpp), for proofs: what it says, and how it cuts text.

The package holds llama.cpp's server and speaks to it in this process; only the cutting of text goes over the server's
own port of this machine.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

LONGEST = 256
"""Tokens of context: the prompts of proofs have at most 128. llama.cpp takes LongRoPE's factors for long texts where
more is asked for than the model was first trained with, whatever the text's length."""


def is_installed() -> bool:
    """Whether llama.cpp can be asked on this machine."""
    return find_spec("xllamacpp") is not None


class LlamaCpp:
    """A model that llama.cpp has loaded.

    Attributes:
        dtype, device: of its arithmetic.

    Args:
        file: the model.
        adapter: path of an adapter to apply, or "".
        texts: with the ids that llama.cpp has to cut them into.

    Raises:
        ValueError: llama.cpp does not load the file, or cuts one of the texts otherwise.
    """

    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, file: Path, adapter: str = "", texts: Sequence[tuple[str, list[int]]] = ()) -> None:
        import xllamacpp

        settings = xllamacpp.CommonParams()
        settings.model.path = str(file)
        settings.n_ctx, settings.n_parallel, settings.n_gpu_layers, settings.port = LONGEST, 1, 0, 0
        settings.warmup, settings.fit_params, settings.verbosity = False, False, -1
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.cpuparams.n_threads = torch.get_num_threads()
        if adapter:
            settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
        with _silence():
            try:
                self._server = xllamacpp.Server(settings)
            except RuntimeError as error:
                raise ValueError(f"llama.cpp does not load {file.name}: {error}") from error
        self._rows, self._plain = _facts(file)
        for text, ids in texts:
            if (found := self.cut(text, add_special=False)) != ids:
                place = next((n for n, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]), -1)
                raise ValueError(
                    f"llama.cpp cuts {text[:60]!r} into other tokens (at number {place}: {found[place : place + 3]} "
                    f"where the tokenizer has {ids[place : place + 3]})"
                )

    def distributions(self, ids: Sequence[int]) -> torch.Tensor:
        """Logarithms of the probabilities of every next token after each of ``ids``: float32[T, V]."""
        rows = torch.full((len(ids), self._rows), -1e4)
        for position in range(len(ids)):
            request = {
                "prompt": list(ids[: position + 1]),
                "n_predict": 1,
                "n_probs": self._rows,
                "temperature": 0.0,
                # The answer is fixed, as the end of a text has no probabilities; they are those before this.
                "logit_bias": [[self._plain, 1e6]],
                "cache_prompt": True,
            }
            answer = self._server.handle_completions(request)
            answer = answer if isinstance(answer, dict) else json.loads(answer)
            if "choices" not in answer:
                raise ValueError(f"llama.cpp refuses: {str(answer)[:200]}")
            found = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
            indices = torch.tensor([each["id"] for each in found])
            rows[position, indices] = torch.tensor([each["logprob"] for each in found], dtype=torch.float32)
        return rows

    def cut(self, text: str, *, add_special: bool) -> list[int]:
        """The token ids of a text, special tokens in it recognised."""
        body = json.dumps({"content": text, "add_special": add_special, "parse_special": True}).encode()
        request = urllib.request.Request(
            f"{self._server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            tokens: list[int] = json.loads(answer.read())["tokens"]
        return tokens


def _facts(file: Path) -> tuple[int, int]:
    """The number of tokens, and one of them that is ordinary."""
    from gguf import GGUFReader

    kinds = GGUFReader(file).fields["tokenizer.ggml.token_type"].contents()
    tokens = GGUFReader(file).fields["tokenizer.ggml.tokens"].contents()
    plain = next(n for n, kind in enumerate(kinds) if kind == 1 and tokens[n].isascii() and tokens[n].isalpha())
    return len(kinds), plain


@contextmanager
def _silence() -> Iterator[None]:
    """llama.cpp writes to the process's own standard error, whatever Python says."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
