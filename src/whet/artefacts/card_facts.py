"""What a model card is made of: a run's record, and what the hub is told of it in the card's front matter."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from whet.config.files import is_local
from whet.config.source import MOST_BYTES, parse_yaml
from whet.core.disk import read_small
from whet.core.errors import ConfigError

CARD_NAME = "README.md"
_INSIDE_A_RUN = ("merged", "quantized", "adapter", "gguf", "gguf-adapter")
"""Names that say nothing without that of the folder they are in."""
_FROM_BASE = ("license", "license_name", "license_link", "language")


class CardFacts:
    """A record, and the record of the run that the folder's content was made of, where it is another one."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        self.folder, self.record = folder, record
        self.kind = str(record.get("kind", "train"))
        made_of = record.get("made_of") or {}
        self.made_of = str(made_of.get("folder", ""))
        self.run: Mapping[str, Any] = record if self.kind == "train" else made_of.get("run") or {}
        self.values: Mapping[str, Any] = self.run.get("values") or record.get("values") or {}
        self.base = str(self.values.get("base_model", ""))

    @property
    def title(self) -> str:
        name = self.folder.resolve().name
        return f"{self.folder.resolve().parent.name} ({name})" if name in _INSIDE_A_RUN else name

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file() or self.kind == "gguf-adapter"

    @property
    def base_is_on_hub(self) -> bool:
        is_id = re.fullmatch(r"[\w.-]+/[\w.-]+", self.base) is not None
        return is_id and not is_local(self.base) and not Path(self.base).exists()

    def of_resolved(self, name: str) -> Any:
        return (self.run.get("resolved") or {}).get(name)


def front_matter(facts: CardFacts, base_folder: Path | None) -> str:
    """YAML that the hub accepts: ids of the hub alone, and of the base what its own card says."""
    values: dict[str, Any] = {"library_name": "peft" if facts.is_adapter else "transformers"}
    if facts.kind.startswith("gguf"):
        values["library_name"] = "gguf"
    values["pipeline_tag"] = "text-generation"
    if facts.base_is_on_hub:
        values["base_model"] = facts.base
        values["base_model_relation"] = {"quantize": "quantized", "gguf": "quantized"}.get(
            facts.kind, "adapter" if facts.is_adapter else "finetune"
        )
    values |= _said_by_base(base_folder)
    rows = facts.values.get("datasets") or []
    hub = [row["path"] for row in rows if isinstance(row, Mapping) and _is_hub_dataset(str(row.get("path", "")))]
    if hub:
        values["datasets"] = list(dict.fromkeys(hub))
    method = facts.of_resolved("method")
    values["tags"] = ["whet", *([method] if method else []), *(["lora"] if facts.values.get("adapter") else [])]
    return "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in values.items())


def _said_by_base(folder: Path | None) -> dict[str, Any]:
    """Licence and language, as the base's own card has them. It is a stranger's, so it is read as configs are."""
    if folder is None:
        return {}
    try:
        text = read_small(folder / CARD_NAME, MOST_BYTES).decode("utf-8")
        root, _ = parse_yaml(_front_matter_of(text), CARD_NAME)
    except (OSError, UnicodeDecodeError, ConfigError):
        return {}
    said = {name: node.raw() for name, node in (root.entries or {}).items() if name in _FROM_BASE}
    return {name: value for name, value in said.items() if _is_words(value)}


def _front_matter_of(card: str) -> str:
    """The lines between the first two of ``---``; empty where a card does not begin with one."""
    lines = card.lstrip().splitlines()
    ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"][:2]
    return "\n".join(lines[1 : ends[1]]) if len(ends) == 2 and ends[0] == 0 else ""


def _is_words(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def _is_hub_dataset(path: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", path) is not None and not is_local(path) and not Path(path).exists()
