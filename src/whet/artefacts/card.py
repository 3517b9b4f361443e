"""The model card: ``README.md`` made of a run's record and of nothing else. What is not known is not said."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from whet.artefacts.card_facts import CARD_NAME, CardFacts, front_matter
from whet.artefacts.markdown import code, plain
from whet.config.schema import fields
from whet.core.disk import replace_text
from whet.core.foreign import OF_ANOTHER_SHAPE
from whet.core.log import warn
from whet.core.printable import printable
from whet.core.secrets import redact

MARK = "<!-- Written by whet from run.json; a card of your own without this line is left alone. -->"

_METHODS = {"sft": "supervised fine-tuning", "dpo": "direct preference optimisation (DPO)"}
_UNITS_OF_LOSS = {"sft": "nats per supervised token", "dpo": "of DPO, for each pair"}
_KINDS = {
    "merge": "The adapter of a training run, merged into its base model",
    "quantize": "A trained model, written in few bits",
    "gather": "What the ranks of a sharded run wrote, in one",
    "gguf": "A trained model in the GGUF format",
    "gguf-adapter": "A LoRA adapter in the GGUF format",
}
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
        return _card(CardFacts(folder, record), base_folder)
    except OF_ANOTHER_SHAPE as error:
        if "made_of" not in record:
            raise
        warn(f"what '{folder}' is made of has a run.json that is not as whet writes it: its card says little ({error})")
        own = {name: section for name, section in record.items() if name != "made_of"}
        return _card(CardFacts(folder, own), base_folder)


def _card(facts: CardFacts, base_folder: Path | None) -> str:
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
    text = f"---\n{front_matter(facts, base_folder)}---\n{MARK}\n\n# {plain(facts.title)}\n\n{body}\n"
    return printable(redact(text))


def _summary(facts: CardFacts) -> str:
    base = f"[{facts.base}](https://huggingface.co/{facts.base})" if facts.base_is_on_hub else code(facts.base)
    version = plain((facts.record.get("versions") or {}).get("whet", ""))
    if facts.kind != "train":
        kind = _KINDS.get(facts.kind, plain(facts.kind))
        what = f"{kind}: made of {code(facts.made_of)}, base {base}, by whet {version}."
    else:
        method = facts.of_resolved("method")
        by = f", by {_METHODS.get(method, plain(method))}" if method else ""
        what = f"A LoRA adapter for {base}" if facts.is_adapter else f"A model trained from {base}"
        what = f"{what}{by}, with whet {version}".rstrip() + "."
    identity = (facts.run.get("identities") or {}).get("base_model") or {}
    weights = identity.get("weights")
    told = (
        f"\n\nThe base model's weights have SHA-256 {code(weights)} (over the digests of their files)."
        if weights
        else ""
    )
    return what + told


def _use(facts: CardFacts) -> str:
    folder = json.dumps(facts.folder.name, ensure_ascii=False)
    if facts.kind.startswith("gguf"):
        return ""
    loading = (
        "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer\n\n"
        f"model = AutoPeftModelForCausalLM.from_pretrained({folder})\n"
        if facts.is_adapter
        else "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"model = AutoModelForCausalLM.from_pretrained({folder})\n"
    )
    tokenizer = f"tokenizer = AutoTokenizer.from_pretrained({folder})\n"
    lines = [f"## Use\n\n```python\n{loading}{tokenizer}```"]
    file = facts.run.get("config_file")
    if file and facts.kind == "train" and not facts.run.get("repeats"):  # whose YAML may say something else by now
        lines.append("Or, where it was trained: " + code(f"whet chat {Path(str(file)).name}{_same_place(facts)}") + ".")
    lines += _template_and_stops(facts)
    return "\n\n".join(lines)


def _same_place(facts: CardFacts) -> str:
    """The option that leads to the folder, where the file alone does not."""
    said_elsewhere = (facts.run.get("where") or {}).get("output_dir") == "--output-dir"
    return f" --output-dir {shlex.quote(str(facts.values['output_dir']))}" if said_elsewhere else ""


def _template_and_stops(facts: CardFacts) -> Iterator[str]:
    generation = facts.record.get("generation") or facts.run.get("generation") or {}
    name = facts.of_resolved("chat_template")
    if name:
        known = {"tokenizer_default": "the tokenizer's own", "jinja": "the config's own"}.get(name, code(name))
        yield f"Chat template: {known}; it is saved with the tokenizer."
    stops = generation.get("stop_tokens")
    if stops:
        yield "An answer ends at " + " or ".join(code(stop) for stop in stops) + "."


def _data(facts: CardFacts) -> str:
    manifest = (facts.run.get("data") or {}).get("manifest") or {}
    ledgers, rows = manifest.get("ledgers") or [], facts.values.get("datasets") or []
    if not ledgers:
        names = ", ".join(code(row.get("path")) for row in rows if isinstance(row, Mapping))
        return f"## Data\n\n{names}{_streamed(facts)}" if names else ""
    lines = ["## Data", "", "| dataset | rows read | samples | left out | cut |", "|---|---|---|---|---|"]
    lines += [
        f"| {plain(entry['name'])} | {entry['read']:,} | {entry['samples']:,} | {_tallies(entry['dropped'])} "
        f"| {_tallies(entry['cut'])} |"
        for entry in ledgers
    ]
    paths = ", ".join(code(row.get("path")) for row in rows if isinstance(row, Mapping))
    identity = (facts.run.get("identities") or {}).get("data")
    lines += ["", f"From {paths}." + (f" SHA-256 of the prepared samples: {code(identity)}." if identity else "")]
    return "\n".join(lines)


def _streamed(facts: CardFacts) -> str:
    """What a run has read of each dataset of a stream."""
    read = [f"{each['rows_read']:,} rows of {plain(each['name'])}" for each in facts.run.get("stream") or []]
    return f"\n\nRead as it trained: {', '.join(read)}." if read else ""


def _tallies(entries: Mapping[str, Any]) -> str:
    found = [f"{entry['count']:,} ({plain(reason)})" for reason, entry in entries.items()]
    return "; ".join(found) or "none"


def _training(facts: CardFacts) -> str:
    plan, hardware = facts.run.get("plan") or {}, facts.run.get("hardware") or {}
    result = facts.run.get("result") or {}
    planned = " of the whole plan" if result.get("stopped_early") else ""
    told = {
        "optimiser steps": _steps(plan, result),
        "weights of": Path(str(result["best_checkpoint"])).name if result.get("best_checkpoint") else None,
        "rows of a step": plan.get("rows_per_step"),
        f"tokens{planned}": plan.get("tokens"),
        f"supervised tokens{planned}": plan.get("supervised_tokens"),
        "weights in": facts.of_resolved("dtype"),
        "mixed precision": facts.of_resolved("autocast_dtype"),
        "base quantised to": facts.of_resolved("quantization"),
        "hardware": _machine(hardware),
        "training took": _seconds_of_training(facts.run),
        "seed": facts.of_resolved("seed"),
    }
    rows = [_row(name, value) for name, value in told.items() if value not in (None, "", "none")]
    if not rows:
        return ""
    changed = [
        f"| {code(key)} | {code(_spelt(value), in_table=True)} |" for key, value in _beside_defaults(facts.values)
    ]
    table = ["", "Settings that differ from whet's defaults:", "", "| key | value |", "|---|---|", *changed]
    return "\n".join(["## Training", "", "| | |", "|---|---|", *rows, *(table if changed else [])])


def _steps(plan: Mapping[str, Any], result: Mapping[str, Any]) -> int | str | None:
    """Those done, and those that were to be done where these are more."""
    done, planned = result.get("steps"), plan.get("total_steps")
    if done is None or planned is None:
        return planned
    return f"{done:,} of {planned:,}: it was stopped early" if result.get("stopped_early") else int(done)


def _seconds_of_training(run: Mapping[str, Any]) -> str | None:
    """Over all sessions; of one that was killed nobody knows how long it trained."""
    times = [(session.get("times") or {}).get("training") for session in run.get("sessions") or [run]]
    if not any(times):
        return None
    unknown = " and an unknown time in sessions that were killed" if not all(times) else ""
    return f"{sum(filter(None, times)):,.4g} s{unknown}"


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


def _results(facts: CardFacts) -> str:
    result = facts.run.get("result") or {}
    told: dict[str, Any] = {}
    metrics = result.get("metrics") or {}
    if "train_loss" in metrics:
        unit = _UNITS_OF_LOSS.get(facts.of_resolved("method"))
        told[f"mean training loss ({unit})" if unit else "mean training loss"] = metrics["train_loss"]
    evaluation = facts.run.get("evaluation") or {}
    if "step" in evaluation:
        told["evaluated after step"] = evaluation["step"]
    told |= {name: value for name, value in evaluation.items() if name.startswith("eval_")}
    for moment in ("before", "after"):
        score = result.get(f"score_{moment}")
        if isinstance(score, Mapping):
            told[f"exact answers {moment} training"] = f"{score.get('num_correct')} of {score.get('num_rows')}"
    rows = [_row(name, value) for name, value in told.items() if value is not None]
    return "\n".join(["## Results", "", "| | |", "|---|---|", *rows]) if rows else ""


def _parity(facts: CardFacts) -> str:
    record = facts.record.get("parity")
    if not isinstance(record, Mapping):
        return ""
    kl, outcome = record.get("kl") or {}, record.get("outcome")
    if kl.get("mean") is None:
        return f"## Parity\n\n{plain(str(outcome).capitalize())}."
    far = f"{kl['mean']:.2g} nats per token on average, {kl.get('max') or 0:.2g} at most"
    return (
        "## Parity\n\nThese files, loaded by a fresh process, against the model that they were made of: KL divergence "
        f"{far}, over {plain(kl.get('positions'))} tokens ({plain(outcome)})."
    )


def _provenance(facts: CardFacts) -> str:
    versions = facts.record.get("versions") or {}
    git = facts.run.get("git") or {}
    lines = ["## Provenance"]
    if versions:
        lines += ["", ", ".join(plain(f"{name} {number}") for name, number in versions.items()) + "."]
    repeated = facts.run.get("repeats")
    if repeated:
        lines += [
            "",
            f"The run of {code(repeated.get('path'))}, begun at {plain(repeated.get('started'))}, done again.",
        ]
    elif git.get("commit"):
        state = " with changes that were not committed" if git.get("dirty") or not git.get("file_is_committed") else ""
        lines += ["", f"Config at commit {code(git['commit'])}{state}.{_given_beside(facts)}"]
    sessions = facts.run.get("sessions") or []
    if len(sessions) > 1:
        lines += ["", f"The run had {len(sessions)} sessions; `run.json` tells of each."]
    again = "" if facts.kind != "train" else " `whet rerun run.json` does it again."
    lines += ["", f"`run.json` has everything else.{again}"]
    return "\n".join(lines)


def _given_beside(facts: CardFacts) -> str:
    """The keys whose values are not the file's."""
    places = (facts.run.get("where") or {}).items()
    beside = [code(key) for key, place in places if not re.search(r":\d+:\d+$", str(place))]
    return f" On the command line or in the environment: {', '.join(beside)}." if beside else ""


def _config(facts: CardFacts) -> str:
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


def _row(name: str, value: Any) -> str:
    return f"| {plain(name)} | {plain(_shown(value))} |"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
