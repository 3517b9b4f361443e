"""What GGUF cannot hold of a model that is still to be merged: known in seconds, from names and the tokenizer."""

from __future__ import annotations

from pathlib import Path

from whet.artefacts.gguf.architectures import architecture_of
from whet.artefacts.gguf.export import MARKER, gguf_name
from whet.artefacts.gguf.tensors import opened, plan
from whet.artefacts.gguf.vocabulary import name_for, vocabulary_of
from whet.artefacts.publish import check_replaceable
from whet.config import Config
from whet.model.adapters import trained_rows
from whet.model.load import empty_model, load_model_config
from whet.model.saved import saved_tokenizer
from whet.model.source import locate
from whet.model.stored import stored_format
from whet.model.tokenizer import load_tokenizer
from whet.model.weight_files import weight_files


def foresee(config: Config, adapter: Path, output: Path) -> None:
    """Refuse now what `export_model` would refuse of the base with ``adapter`` merged into it.

    Not foreseen: tensors of a base that is on the hub alone, pickled or stored in few bits, and numbers too large for
    float16.

    Raises:
        ArtefactError: the architecture, the tokenizer or a tensor has no place in GGUF, or ``output`` holds something.
    """
    check_replaceable(output, MARKER, "GGUF export")
    model_config = load_model_config(config)
    row = architecture_of(model_config, config.model.base_model)
    base = empty_model(config, model_config)
    rows = trained_rows(base, adapter) or int(base.get_input_embeddings().weight.shape[0])
    trust = config.model.trust_remote_code
    is_saved = (adapter / "tokenizer_config.json").is_file()
    tokenizer = saved_tokenizer(adapter, trust_remote_code=trust) if is_saved else load_tokenizer(config)
    vocabulary_of(tokenizer, rows)
    name_for(gguf_name(config), tokenizer)
    folder = Path(locate(config.model.base_model, config, "base_model"))
    if folder.is_dir() and stored_format(model_config) is None and weight_files(folder):
        with opened(folder) as files:
            plan(files, model_config, row)
