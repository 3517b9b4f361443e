"""Whether a model's embedding still has the rows it has on disk; if not, an adapter must bring all of them along."""

from __future__ import annotations

from transformers import PreTrainedModel


def is_resized(base: PreTrainedModel) -> bool:
    """Whether the embedding has other rows than on disk; also True where that cannot be told.

    The hub is not asked: the model was loaded a moment ago, so its config is on this machine. A model without a name
    was made here, and nothing is on disk.
    """
    if not base.name_or_path:
        return False
    try:
        on_disk = type(base.config).from_pretrained(
            base.name_or_path, local_files_only=True, revision=getattr(base.config, "_commit_hash", None) or "main"
        )
        rows = getattr(on_disk.get_text_config(decoder=True), "vocab_size", None)
    except (OSError, ValueError):
        return True
    return bool(base.get_input_embeddings().weight.shape[0] != rows)
