"""Ollama's Modelfile: the file, the training template in Go's template language, stop tokens, sampling."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig, PreTrainedTokenizerBase

from whet.artefacts.gguf.go_template import NotInGo, Pieces, is_kept, learn
from whet.config import Config

_SAMPLING = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
"""transformers' name -> Ollama's."""


def write_modelfile(
    path: Path,
    model: str,
    adapter: str | None,
    tokenizer: PreTrainedTokenizerBase,
    generation: GenerationConfig,
    config: Config,
    *,
    adds_bos: bool,
) -> str:
    """Write the Modelfile beside a GGUF.

    Args:
        model: a file beside it, a path, or a name of Ollama's.
        adapter: a file beside it.
        adds_bos: the GGUF says that the BOS is to be put in front of every text.

    Returns:
        a sentence on what became of the template.
    """
    source = model if "/" in model or not model.endswith(".gguf") else f"./{model}"
    lines = ["# ollama create my-model -f Modelfile", f"FROM {source}"]
    if adapter:
        lines.append(f"ADAPTER ./{adapter}")
    kwargs = config.template.chat_template_kwargs or {}
    try:
        pieces = learn(tokenizer, kwargs, adds_bos=adds_bos)
        said = "with the training template in Go, compared with the Jinja render of conversations"
        lines += [f"# {each}" for each in _notes(pieces)]
        lines.append(f'TEMPLATE """{pieces.in_go()}"""')
    except NotInGo as error:
        reason = " ".join(str(error).split())
        said = f"without TEMPLATE, as {reason}; Ollama then knows the template in the GGUF only if it is one of its own"
        lines.append(f"# no TEMPLATE: {reason}.")
        lines.append("# Ollama looks whether the template in the GGUF is one of its own, and else writes bare texts.")
    if system := config.template.default_system_message:
        can_stand = '"""' not in system and not system.endswith('"') and is_kept(system)
        lines.append(f'SYSTEM """{system}"""' if can_stand else f"# the system message of training: {system!r}")
    lines += [f'PARAMETER stop "{text}"' for text in _stops(tokenizer, generation)]
    lines += _sampling(generation)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return said


def _notes(pieces: Pieces) -> list[str]:
    """What a reader must know of the template that follows, each in one line: a token in it may be a stranger's."""
    notes = [" ".join(each.split()) for each in pieces.differences]
    if pieces.system is None:
        notes.append("the chat template of training takes no system message: Ollama's is left out")
    return [*notes, "tools are not written: with this template Ollama refuses requests that have some"]


def _stops(tokenizer: PreTrainedTokenizerBase, generation: GenerationConfig) -> list[str]:
    """The texts of the tokens that end an answer; those that a Modelfile cannot say are in the GGUF all the same."""
    said = generation.eos_token_id
    ids = [said] if isinstance(said, int) else list(said or ())
    if tokenizer.eos_token_id is not None and tokenizer.eos_token_id not in ids:
        ids.append(tokenizer.eos_token_id)
    added = tokenizer.added_tokens_decoder
    texts = [added[each].content if each in added else str(tokenizer.decode([each])) for each in ids]
    return [text for text in texts if text and not {'"', "\n", "\ufffd"} & set(text) and is_kept(text)]


def _sampling(generation: GenerationConfig) -> list[str]:
    if not generation.do_sample:
        return []
    values = {ours: getattr(generation, theirs, None) for theirs, ours in _SAMPLING.items()}
    return [f"PARAMETER {name} {value:g}" for name, value in values.items() if value is not None]
