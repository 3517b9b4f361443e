"""The model card: ``README.md`` made of a run's record and of nothing else. What is not known is not said."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.config.files import is_local
from whet.config.schema import fields
from whet.config.source import MOST_BYTES, parse_yaml
from whet.core.disk import read_small, replace_text
from whet.core.errors import ConfigError
from whet.core.foreign import OF_ANOTHER_SHAPE
from whet.core.log import warn
from whet.core.secrets import redact

CARD_NAME = "README.md"
MARK = "<!-- Written by whet from run.json; a card of your own without this line is left alone. -->"

_METHODS = {"sft": "supervised fine-tuning", "dpo": "direct preference optimisation (DPO)"}
_KINDS = {
    "merge": "The adapter of a training run, merged into its base model",
    "quantize": "A trained model, written in few bits",
    "gather": "What the ranks of a sharded run wrote, in one",
    "gguf": "A trained model in the GGUF format",
    "gguf-adapter": "A LoRA adapter in the GGUF format",
}
_INSIDE_A_RUN = ("merged", "quantized", "adapter", "gguf", "gguf-adapter")
"""Names that say nothing without that of the folder they are in."""
_FROM_BASE = ("license", "license_name", "license_link", "language")
_NOT_SHOWN = frozenset({"base_model", "datasets", "test_datasets", "output_dir"})


def write_card(folder: Path, record: Mapping[str, Any], base_folder: Path | None = None) -> bool:
    """Write the card of a folder, unless its README.md is the user's own.

    Args:
        record: what the folder's ``run.json`` holds.
        base_folder: where the base model's own README.md is, for its licence.

    Returns:
        Whether it was written.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / CARD_NAME
    if path.exists() and not may_be_replaced(path):
        return False
    replace_text(path, card(folder, record, base_folder))
    return True


def may_be_replaced(path: Path) -> bool:
    """Whether a README.md was written by whet, or is a form that PEFT or transformers left to be filled in."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    is_form = "# Model Card for Model ID" in text and "[More Information Needed]" in text
    return MARK in text or is_form or "This model card has been generated automatically" in text or not text.strip()


def card(folder: Path, record: Mapping[str, Any], base_folder: Path | None = None) -> str:
    """The text of the card."""
    try:
        return _card(_Facts(folder, record), base_folder)
    except OF_ANOTHER_SHAPE as error:
        if "made_of" not in record:
            raise
        warn(f"what '{folder}' is made of has a run.json that is not as whet writes it: its card says little ({error})")
        own = {name: section for name, section in record.items() if name != "made_of"}
        return _card(_Facts(folder, own), base_folder)


def _card(facts: _Facts, base_folder: Path | None) -> str:
    sections = [
        _summary(facts),
        _use(facts),
        _data(facts),
        _training(facts),
        _results(facts),
        _parity(facts),
        _provenance(facts),
        _config(facts),
    ]
    body = "\n\n".join(section for section in sections if section)
    text = f"---\n{_front_matter(facts, base_folder)}---\n{MARK}\n\n# {facts.title}\n\n{body}\n"
    return redact(text)


class _Facts:
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


def _front_matter(facts: _Facts, base_folder: Path | None) -> str:
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


def _summary(facts: _Facts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_is_on_hub else f"`{facts.base}`"
    version = (facts.record.get("versions") or {}).get("whet", "")
    if facts.kind != "train":
        what = f"{_KINDS.get(facts.kind, facts.kind)}: made of `{facts.made_of}`, base {base}, by whet {version}."
    else:
        method = facts.of_resolved("method")
        by = f", by {_METHODS.get(method, method)}" if method else ""
        what = f"A LoRA adapter for {base}" if facts.is_adapter else f"A model trained from {base}"
        what = f"{what}{by}, with whet {version}".rstrip() + "."
    identity = (facts.run.get("identities") or {}).get("base_model") or {}
    weights = identity.get("weights")
    told = (
        f"\n\nThe base model's weights have SHA-256 `{weights}` (over the digests of their files)." if weights else ""
    )
    return what + told


def _use(facts: _Facts) -> str:
    folder = facts.folder.name
    if facts.kind.startswith("gguf"):
        return ""
    loading = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        f'model = AutoPeftModelForCausalLM.from_pretrained("{folder}")\n'
        if facts.is_adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{folder}")\n'
    )
    tokenizer = f'tokenizer = AutoTokenizer.from_pretrained("{folder}")\n'
    lines = [f"## Use\n\n```python\n{loading}{tokenizer}```"]
    file = facts.run.get("config_file")
    if file:
        lines.append(f"Or, where it was trained: `whet chat {Path(str(file)).name}`.")
    lines += _template_and_stops(facts)
    return "\n\n".join(lines)


def _template_and_stops(facts: _Facts) -> Iterator[str]:
    generation = facts.record.get("generation") or facts.run.get("generation") or {}
    name = facts.of_resolved("chat_template")
    if name:
        known = {"tokenizer_default": "the tokenizer's own", "jinja": "the config's own"}.get(name, f"`{name}`")
        yield f"Chat template: {known}; it is saved with the tokenizer."
    stops = generation.get("stop_tokens")
    if stops:
        yield "An answer ends at " + " or ".join(f"`{stop}`" for stop in stops) + "."


def _data(facts: _Facts) -> str:
    manifest = (facts.run.get("data") or {}).get("manifest") or {}
    ledgers, rows = manifest.get("ledgers") or [], facts.values.get("datasets") or []
    if not ledgers:
        names = ", ".join(f"`{row.get('path')}`" for row in rows if isinstance(row, Mapping))
        return f"## Data\n\n{names}" if names else ""
    lines = ["## Data", "", "| dataset | rows read | samples | left out | cut |", "|---|---|---|---|---|"]
    lines += [
        f"| {entry['name']} | {entry['read']:,} | {entry['samples']:,} | {_tallies(entry['dropped'])} "
        f"| {_tallies(entry['cut'])} |"
        for entry in ledgers
    ]
    paths = ", ".join(f"`{row.get('path')}`" for row in rows if isinstance(row, Mapping))
    identity = (facts.run.get("identities") or {}).get("data")
    lines += ["", f"From {paths}." + (f" SHA-256 of the prepared samples: `{identity}`." if identity else "")]
    return "\n".join(lines)


def _tallies(entries: Mapping[str, Any]) -> str:
    found = [f"{entry['count']:,} ({reason})" for reason, entry in entries.items()]
    return "; ".join(found).replace("|", "\\|") or "none"


def _training(facts: _Facts) -> str:
    plan, hardware = facts.run.get("plan") or {}, facts.run.get("hardware") or {}
    times = facts.run.get("times") or {}
    told = {
        "optimiser steps": plan.get("total_steps"),
        "rows of a step": plan.get("rows_per_step"),
        "tokens": plan.get("tokens"),
        "supervised tokens": plan.get("supervised_tokens"),
        "weights in": facts.of_resolved("dtype"),
        "mixed precision": facts.of_resolved("autocast_dtype"),
        "base quantised to": facts.of_resolved("quantization"),
        "hardware": _machine(hardware),
        "training took": f"{times['training']:,.4g} s" if times.get("training") else None,
        "seed": facts.of_resolved("seed"),
    }
    rows = [f"| {name} | {_shown(value)} |" for name, value in told.items() if value not in (None, "", "none")]
    if not rows:
        return ""
    changed = [f"| `{key}` | `{_spelt(value)}` |" for key, value in _beside_defaults(facts.values)]
    table = ["", "Settings that differ from whet's defaults:", "", "| key | value |", "|---|---|", *changed]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *rows, *(table if changed else [])])


def _machine(hardware: Mapping[str, Any]) -> str | None:
    name = hardware.get("device_name") or hardware.get("device")
    count = hardware.get("world_size", 1)
    return f"{count} x {name}" if name and count and count > 1 else name


def _beside_defaults(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, field in fields().items():
        if key not in values or key in _NOT_SHOWN:
            continue
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        default = list(default) if isinstance(default, tuple) else default
        if values[key] != default:
            yield key, values[key]


def _results(facts: _Facts) -> str:
    result = facts.run.get("result") or {}
    told: dict[str, Any] = {}
    metrics = result.get("metrics") or {}
    if "train_loss" in metrics:
        told["mean training loss (nats per supervised token)"] = metrics["train_loss"]
    evaluation = facts.run.get("evaluation") or {}
    told |= {name: value for name, value in evaluation.items() if name.startswith("eval_") or name == "step"}
    for moment in ("before", "after"):
        score = result.get(f"score_{moment}")
        if isinstance(score, Mapping):
            told[f"exact answers {moment} training"] = f"{score.get('num_correct')} of {score.get('num_rows')}"
    rows = [f"| {name} | {_shown(value)} |" for name, value in told.items() if value is not None]
    return "\n".join(["## Results", "", "| | |", "|---|---|", *rows]) if rows else ""


def _parity(facts: _Facts) -> str:
    record = facts.record.get("parity")
    if not isinstance(record, Mapping):
        return ""
    kl, outcome = record.get("kl") or {}, record.get("outcome")
    if kl.get("mean") is None:
        return f"## Parity\n\n{str(outcome).capitalize()}."
    far = f"{kl['mean']:.2g} nats per token on average, {kl.get('max') or 0:.2g} at most"
    return (
        "## Parity\n\nThese files, loaded by a fresh process, against the model that they were made of: KL divergence "
        f"{far}, over {kl.get('positions')} tokens ({outcome})."
    )


def _provenance(facts: _Facts) -> str:
    versions = facts.record.get("versions") or {}
    git = facts.run.get("git") or {}
    lines = ["## Provenance"]
    if versions:
        lines += ["", ", ".join(f"{name} {number}" for name, number in versions.items()) + "."]
    if git.get("commit"):
        state = " with changes that were not committed" if git.get("dirty") or not git.get("file_is_committed") else ""
        lines += ["", f"Config at commit `{git['commit']}`{state}."]
    sessions = facts.run.get("sessions") or []
    if len(sessions) > 1:
        lines += ["", f"The run had {len(sessions)} sessions; `run.json` tells of each."]
    again = "" if facts.kind != "train" else " `whet rerun run.json` does it again."
    lines += ["", f"`run.json` has everything else.{again}"]
    return "\n".join(lines)


def _config(facts: _Facts) -> str:
    written = facts.run.get("written")
    if not isinstance(written, Mapping):
        return ""
    text = "".join(f"{key}: {_spelt(value)}\n" for key, value in written.items())
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall(r"`+", text)), 3)
    return f"## Config\n\n{fence}yaml\n{text}{fence}"


def _spelt(value: Any) -> str:
    """A value as YAML reads it; JSON is YAML."""
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z_./][\w./-]*", value) is not None
    return str(value) if is_word and value.lower() not in _OTHER_THINGS else json.dumps(value, ensure_ascii=False)


_OTHER_THINGS: Sequence[str] = ("true", "false", "null", "yes", "no", "on", "off", "y", "n", ".nan", ".inf")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
