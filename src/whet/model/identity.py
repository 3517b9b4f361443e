"""Which base model it was, by its weights: what an adapter needs beneath it, wherever it goes.

Two digests, because reading a large model takes minutes and no step waits for it:

* ``weights``: SHA-256 over the digests of all weight files. Files of the hub's cache carry theirs in their name, small
  ones are read at once, and those of a large local model are read in the background and remembered (by path, size and
  time of change);
* ``sample``: SHA-256 over each file's size, header and 64 blocks spread evenly over it; some milliseconds, always
  there. Training in full changes nearly every weight, so another model differs in it.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from whet.config import Config
from whet.core.disk import replace_text
from whet.core.errors import ArtefactError, ModelError
from whet.model import digests
from whet.model.source import locate
from whet.model.weight_files import INDEX, PICKLED_INDEX, PICKLED_SINGLE, SINGLE, weight_files

IDENTITY_NAME = "whet-base.json"
"""Stands beside ``adapter_config.json``, in the output folder and in each checkpoint."""

_SCHEMA = 1
_PART = re.compile(r".*-\d{5}-of-\d{5}\.safetensors")


@dataclass(frozen=True, slots=True)
class BaseIdentity:
    """A model's weights.

    Attributes:
        name: what the config calls it.
        sample: see the top of this file.
        weights: the same; None until all bytes are read.
        num_bytes: of the weight files.
        revision: the commit of a hub model.
    """

    name: str
    sample: str
    weights: str | None
    num_bytes: int
    revision: str | None = None

    def __str__(self) -> str:
        digest = f"sha256 {self.weights[:16]}" if self.weights else f"sample {self.sample[:16]}"
        return f"'{self.name}' ({digest}, {self.num_bytes:,} bytes)"


def same_weights(one: BaseIdentity, other: BaseIdentity) -> bool:
    """Whether two identities are of the same weights, by all bytes where both know them, else by the sample."""
    if one.weights is not None and other.weights is not None:
        return one.weights == other.weights
    return one.sample == other.sample


def identify(config: Config, *, complete: bool = False) -> BaseIdentity | None:
    """The identity of the config's ``base_model``; None where it has no weights (``reinit_weights``), or none are here
    (a hub model that was not downloaded, or in part, or one that `locate` does not find).

    Args:
        complete: read all bytes, however long that takes; else only where it takes no time.

    Raises:
        ModelError: ``base_model`` can only be a folder, and there is none.
    """
    if config.model.reinit_weights:
        return None
    name = config.model.base_model
    kwargs = config.model.overrides_of_model_kwargs or {}
    return identify_weights(
        locate(name, config, "base_model"),
        name=name,
        revision=config.model.revision_of_model,
        subfolder=str(kwargs.get("subfolder") or ""),
        complete=complete,
    )


def base_folder(config: Config) -> Path | None:
    """Where the base model's files are on this machine; None where they are not.

    Raises:
        ModelError: ``base_model`` can only be a folder, and there is none.
    """
    return _folder(locate(config.model.base_model, config, "base_model"), config.model.revision_of_model, "")


def identify_weights(
    source: str | Path,
    *,
    name: str | None = None,
    revision: str | None = None,
    subfolder: str = "",
    complete: bool = False,
) -> BaseIdentity | None:
    """The identity of the weights in a folder, or in the hub's cache; nothing is downloaded.

    Args:
        source: a folder or hub id.
        name: how it is called; ``source`` if not given.
        revision: of a hub model.
        subfolder: inside it.
        complete: see `identify`.
    """
    folder = _folder(source, revision, subfolder)
    if folder is None:
        return None
    files = _loaded_files(folder)
    if not files:
        return None
    num_bytes = sum(file.stat().st_size for file in files)
    names = [file.name for file in files]
    is_read = complete or num_bytes <= digests.AT_ONCE_BYTES
    known = [digests.digest(file) if is_read else digests.known_digest(file) for file in files]
    return BaseIdentity(
        name=str(name or source),
        sample=_combined(names, [digests.sampled(file) for file in files]),
        weights=_combined(names, [each for each in known if each]) if all(known) else None,
        num_bytes=num_bytes,
        revision=_commit(folder),
    )


def identify_adapter(folder: Path) -> str | None:
    """SHA-256 over the digests of an adapter's config and weights, wherever it lies; None where there is no adapter."""
    names = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
    files = [folder / name for name in names if (folder / name).is_file()]
    return (
        _combined([file.name for file in files], [digests.digest(file) for file in files]) if len(files) > 1 else None
    )


def _loaded_files(folder: Path) -> list[Path]:
    """The files that transformers loads, else all safetensors; none unless every one of them is there.

    A download that was cut leaves some: what they hold would be taken for another model once the rest has come.
    """
    try:
        named = weight_files(folder, pickled=True)
    except ArtefactError:  # whoever loads the model says so
        return []
    if named:
        return named if all(file.is_file() for file in named) else []
    if _commit(folder) is not None:
        return []  # the index, or the single file, may be what has not come yet
    others = sorted(folder.glob("*.safetensors"))
    return [] if any(_PART.fullmatch(file.name) for file in others) else others


class Identifying:
    """An identity that becomes complete in the background.

    Args:
        identity: what is known at once; None until `look_again` finds one.
        config: of the run, to read the rest by.
    """

    def __init__(self, identity: BaseIdentity | None, config: Config) -> None:
        self._identity, self._config = identity, config
        self._thread: threading.Thread | None = None
        self._complete_later()

    @property
    def so_far(self) -> BaseIdentity | None:
        """What is known now; waits for nothing."""
        return self._identity

    def look_again(self) -> bool:
        """After the model is loaded, when a hub model's files have come; whether it is known as another one now."""
        found = _identify_if_there(self._config)
        known = self._identity
        if found is None or (known is not None and found.sample == known.sample):
            return False
        self._identity = found  # a thread that still reads the files of before sees that, and leaves it alone
        self._complete_later()
        return True

    def result(self) -> BaseIdentity | None:
        """The complete identity, once it is known; the sample alone where the files can no longer be read."""
        if self._thread is not None:
            self._thread.join()
        return self._identity

    def _complete_later(self) -> None:
        if self._identity is not None and self._identity.weights is None:
            self._thread = threading.Thread(target=self._complete, daemon=True, name="whet-identity")
            self._thread.start()

    def _complete(self) -> None:
        complete = _identify_if_there(self._config, complete=True)
        if complete is not None and self._identity is not None and complete.sample == self._identity.sample:
            self._identity = replace(self._identity, weights=complete.weights)


def _identify_if_there(config: Config, *, complete: bool = False) -> BaseIdentity | None:
    """`identify`; None where the weights were moved away under the run, which knows them as it did before."""
    try:
        return identify(config, complete=complete)
    except (OSError, ModelError):
        return None


def write_identity(folder: Path, identity: BaseIdentity) -> Path:
    """Put an identity beside an adapter."""
    path = folder / IDENTITY_NAME
    replace_text(path, json.dumps({"schema": _SCHEMA, **asdict(identity)}, indent=1) + "\n")
    return path


def read_identity(folder: Path) -> BaseIdentity | None:
    """The identity that stands beside an adapter; None where there is none, or none that can be read."""
    try:
        return identity_of(json.loads((folder / IDENTITY_NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError):
        return None


def identity_of(values: Mapping[str, Any] | None) -> BaseIdentity | None:
    """An identity as JSON has it, in `IDENTITY_NAME`, a checkpoint or a run's record; None where it is none."""
    if not isinstance(values, Mapping):
        return None
    known = {name: values.get(name) for name in ("name", "sample", "weights", "num_bytes", "revision")}
    is_whole = all(
        isinstance(known[name], kind) for name, kind in (("name", str), ("sample", str), ("num_bytes", int))
    ) and all(known[name] is None or isinstance(known[name], str) for name in ("weights", "revision"))
    return BaseIdentity(**known) if is_whole else None  # type: ignore[arg-type]


def _folder(source: str | Path, revision: str | None, subfolder: str) -> Path | None:
    if Path(source).is_dir():
        return Path(source) / subfolder
    for name in ("config.json", INDEX, SINGLE, PICKLED_INDEX, PICKLED_SINGLE):
        inside = f"{subfolder}/{name}" if subfolder else name
        try:
            found = try_to_load_from_cache(str(source), inside, revision=revision)
        except HFValidationError:  # a path, and there is nothing
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def _commit(folder: Path) -> str | None:
    """The commit in ``models--org--name/snapshots/<commit>/<subfolder>``, the layout of the hub's cache."""
    parts = folder.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else None


def _combined(names: Sequence[str], digests: Sequence[str]) -> str:
    lines = "".join(f"{name} {each}\n" for name, each in zip(names, digests, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()
