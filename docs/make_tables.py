"""Write the pages that can be read off the code: docs/config-keys.md, performance.md, memory.md, and README's table.

python docs/make_tables.py            # write them
python docs/make_tables.py --check    # exit code 1, naming the files, if any is out of date
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo

from whet.config import known_keys, names
from whet.config.fitting import shape_of
from whet.config.optimizers import PACKAGES
from whet.config.schema import (
    SECTIONS,
    DatasetConfig,
    FsdpConfig,
    LrGroup,
    Phase,
    PromptFormat,
    QatConfig,
    QuantizationConfig,
    Section,
    SelectiveCheckpointing,
    SpecialTokens,
    TrackingSection,
)
from whet.config.validation import REQUIRED
from whet.data.compression import COMPRESSIONS
from whet.data.formats import FORMATS, PREFERENCE_FORMATS
from whet.data.formats.instruction import TYPES
from whet.data.readers import ENDINGS
from whet.data.templates.resolve import shipped
from whet.methods import METHODS
from whet.training.optimizers import OPTIMIZERS
from whet.training.schedules import SCHEDULERS

DOCS = Path(__file__).resolve().parent
REPOSITORY = DOCS.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
GENERATED = "<!-- Written by docs/make_tables.py (`make docs`); do not edit. -->"

CHOICES: Mapping[str, Collection[str]] = {
    "adapter": names.ADAPTERS,
    "attn_implementation": names.ATTENTION,
    "dpo_loss_type": names.DPO_LOSSES,
    "lr_scheduler": names.SCHEDULERS,
    "optimizer": names.OPTIMIZERS,
    "rl": (*names.METHODS, *names.METHODS_PREPARED),
}
"""Keys whose values are names of a table."""

BLOCKS: tuple[tuple[str, type[Section]], ...] = (
    ("A row of `datasets` and `test_datasets`", DatasetConfig),
    ("`type` of a dataset, as a mapping", PromptFormat),
    ("`special_tokens`", SpecialTokens),
    ("A row of `phases`", Phase),
    ("A row of `lr_groups`", LrGroup),
    ("`quantization`", QuantizationConfig),
    ("`qat`", QatConfig),
    ("`fsdp_config`", FsdpConfig),
    ("`selective_checkpointing`, as a mapping", SelectiveCheckpointing),
)
"""Keys inside keys."""


def main(argv: Sequence[str] | None = None) -> int:
    """Write the pages, or say which are out of date; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    check = parser.parse_args(argv).check
    stale = [path for path, text in pages().items() if not path.is_file() or path.read_text("utf-8") != text]
    for path in stale:
        if check:
            sys.stderr.write(f"{path.relative_to(REPOSITORY)} is out of date: run `make docs`\n")
        else:
            path.write_text(pages()[path], encoding="utf-8")
            sys.stdout.write(f"wrote {path.relative_to(REPOSITORY)}\n")
    return 1 if check and stale else 0


def pages() -> dict[Path, str]:
    """Every generated file and what should be in it."""
    readme, formats = REPOSITORY / "README.md", DOCS / "formats.md"
    reliability, resuming = DOCS / "reliability.md", DOCS / "resuming.md"
    return {
        DOCS / "config-keys.md": config_keys(),
        DOCS / "performance.md": performance(),
        DOCS / "memory.md": memory(),
        readme: with_block(readme.read_text(encoding="utf-8"), "supported", supported()),
        reliability: with_block(reliability.read_text(encoding="utf-8"), "survive", survived()),
        formats: with_block(formats.read_text(encoding="utf-8"), "instruction types", instruction_types()),
        resuming: with_block(resuming.read_text(encoding="utf-8"), "resumed", resumed()),
    }


def with_block(text: str, name: str, block: str) -> str:
    """The text with what stands between the markers of this name replaced.

    >>> with_block("a\\n<!-- x -->\\nold\\n<!-- /x -->\\nb\\n", "x", "new")
    'a\\n<!-- x -->\\nnew\\n<!-- /x -->\\nb\\n'
    """
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, marker, rest = text.partition(begin)
    _, closing, after = rest.partition(end)
    assert marker, f"there is no line {begin}"
    assert closing, f"there is no line {end}"
    return f"{before}{begin}\n{block.strip()}\n{end}{after}"


# --- docs/resuming.md -------------------------------------------------------------------------------------------------


def resumed() -> str:
    """What `make survive` has resumed after every step, as its report has it."""
    report = RESULTS / "resume-exact.jsonl"
    if not report.is_file():
        return "No report yet: `make survive` writes it."
    steps = {line["name"]: line["resumed_after_steps"] for line in map(json.loads, report.read_text().splitlines())}
    kinds = {"optimizer": "optimizers", "schedule": "schedules"}
    rows = [(name, str(count)) for name, count in steps.items() if name.partition(" ")[0] not in kinds]
    for kind, title in kinds.items():
        names_of_kind = [name.removeprefix(f"{kind} ") for name in steps if name.startswith(f"{kind} ")]
        counts = sorted({steps[f"{kind} {name}"] for name in names_of_kind})
        if names_of_kind:
            rows.append((f"{title}: {', '.join(names_of_kind)}", " to ".join(map(str, {counts[0]: 0, counts[-1]: 0}))))
    return _table(("case", "resumed after each of its steps, bit for bit"), rows)


# --- README ----------------------------------------------------------------------------------------------------------


def supported() -> str:
    """What whet does, one line a subject, with the names that go into the YAML."""
    stock = [name for name in OPTIMIZERS.names() if name not in PACKAGES]
    packaged = "; ".join(f"from {pip} {_codes(brought)}" for pip, brought in by_package().items())
    methods = [f"rl: {name}" for name in METHODS.names() if name != "sft"]
    rows = [
        ("methods", f"supervised fine-tuning; {_codes(methods)}"),
        (
            "what is trained",
            f"every weight, some (`unfrozen_parameters`), or {_codes(names.ADAPTERS)}; DoRA, rsLoRA, LoRA+; "
            "ReLoRA, LISA, Spectrum; experts (`lora_target_parameters`)",
        ),
        ("quantised base", "`load_in_4bit` (nf4, fp4, double quantisation) and `load_in_8bit`, by bitsandbytes"),
        (
            "precision",
            "float32; mixed precision in bfloat16 or float16; pure bfloat16 or float16; "
            "`fp8` (torchao; on GPUs of compute capability 8.9); `qat`, `whet quantize`",
        ),
        ("rows", f"{_codes(supervised_types())}, token ids"),
        ("preference rows", f"`prompt`, `chosen`, `rejected`; {_codes(preference_types())}"),
        (
            "formats of your own",
            "a mapping of prompt formats, or a Python function ([how](docs/formats.md#a-function-of-your-own))",
        ),
        (
            "data alone, not training",
            f"{_codes(f'rl: {name}' for name in names.METHODS_PREPARED)}, `reward_model`, `process_reward_model`",
        ),
        ("sources", f"{_codes(sorted(ENDINGS))}, each also {_codes(COMPRESSIONS)}; folders, globs, URLs, the hub"),
        ("chat templates", f"the model's own, your own Jinja, {_codes(shipped())}"),
        ("packing", "`sample_packing`; documents of a row never see each other, on a CPU too"),
        ("optimizers", f"{_codes(stock)}; {packaged}"),
        ("schedulers", _codes(SCHEDULERS.names())),
        ("devices", "CPU, CUDA, Apple MPS; several processes with `--launcher torchrun` (DDP)"),
        ("trackers", f"`metrics.jsonl` always; {_codes(trackers())}"),
    ]
    table = _table(("", ""), rows)
    return f"{table}\n\nWhat is refused, and what to write instead: [every key](docs/config-keys.md#not-supported-yet)."


def by_package() -> dict[str, list[str]]:
    """Package to install -> the optimizers it brings."""
    found: dict[str, list[str]] = {}
    for name, package in sorted(PACKAGES.items()):
        found.setdefault(package.pip, []).append(name)
    return found


def supervised_types() -> list[str]:
    """Types that a row of `datasets` may name, each family once."""
    return list(dict.fromkeys(name.partition(".")[0] for name in FORMATS.names() if name != "tokens"))


def preference_types() -> list[str]:
    """The families of types under `rl: dpo`."""
    families = dict.fromkeys(name.partition(".")[0] for name in PREFERENCE_FORMATS.names() if name != "prompt_pairs")
    return [f"{name}.*" for name in families]


def trackers() -> list[str]:
    """The trackers, by the switches that turn them on."""
    return [key.removeprefix("use_") for key in TrackingSection.model_fields if key.startswith("use_")]


# --- docs/formats.md -------------------------------------------------------------------------------------------------


def instruction_types() -> str:
    """Which fields each type of instructions reads, and its style."""
    rows = []
    for name, form in TYPES.items():
        bare = name.removesuffix(".load")
        fields = [form.system, form.instruction, f"{form.input}?" if form.input else None, form.answer]
        opening = "" if form.system or any(form.opening) else ", without the opening sentence"
        shown = ", ".join(
            f"`{field.rstrip('?')}`{' (optional)' if field.endswith('?') else ''}" for field in fields if field
        )
        rows.append((_codes(dict.fromkeys([bare, name])), shown, f"`{form.style}`{opening}"))
    styles = _codes(f":{style}" for style in names.STYLES)
    table = _table(("type", "columns", "style"), rows)
    return f"{table}\n\nBehind each type may stand another style: {styles}, as in `type: alpaca:chat`."


# --- docs/reliability.md ---------------------------------------------------------------------------------------------


def survived() -> str:
    """Fault and moment, how often it was tried, what was lost, and the command that tries it again."""
    path = RESULTS / "survive.jsonl"
    if not path.is_file():
        return "There is no result of `make survive` yet."
    entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    groups: dict[tuple[str, str, str], list[str]] = {}
    for entry in entries:
        groups.setdefault((entry["fault"], entry["when"], entry["test"]), []).append(entry["lost"])
    rows = [
        (fault, when, str(len(lost)), "; ".join(dict.fromkeys(lost)), f"`SURVIVE=all pytest {test}`")
        for (fault, when, test), lost in sorted(groups.items())
    ]
    seeds = ", ".join(str(seed) for seed in sorted({entry["seed"] for entry in entries}))
    table = _table(("fault", "during", "tried", "lost", "tried again by"), rows)
    return f"{len(entries)} cases, each of which went on; seed {seeds}.\n\n{table}"


# --- docs/config-keys.md ---------------------------------------------------------------------------------------------


def config_keys() -> str:
    """Every key: what it takes, its default and meaning; then the keys that are refused, with their advice."""
    parts = [
        "# Every key",
        GENERATED,
        "Keys are Axolotl's; those that are ours are `dataset_near_deduplication`, `eval_overlap`, "
        "`mixing_by`, `mixing_temperature`, `on_bad_row`, `order`, `phases`, `sample_packing_balance`, "
        "`score_dataset`, `score_max_new_tokens` and `score_max_rows`, and `weight` and `epochs` in a dataset's row. "
        "An empty value is the same as no line. `whet config explain my.yaml` shows what each key of a file is and "
        "where it came from; `whet config schema` gives the same list to an editor.",
        "Any key can be set on the command line (`--learning-rate 1e-4`, `--lora.r 8`, `--no-bf16`) and in the "
        "environment or a `.env` file (`WHET_LEARNING_RATE=1e-4`). The command line wins over the environment, the "
        "environment over the file.",
        "On this page: "
        + ", ".join(f"[{name}](#{name})" for name in SECTIONS)
        + ", [keys inside keys](#keys-inside-keys), [other spellings](#other-spellings), "
        "[refused](#not-supported-yet), [without effect](#without-effect).",
    ]
    for name, section in SECTIONS.items():
        parts += [f"## {name}", _module_sentence(section), fields_table(section.model_fields)]
    parts.append("## Keys inside keys")
    for title, block in BLOCKS:
        parts += [f"### {title}", fields_table(block.model_fields)]
    parts += _other_spellings() + _refused() + _without_effect()
    return "\n\n".join(parts) + "\n"


def fields_table(fields: Mapping[str, FieldInfo]) -> str:
    """A table of keys."""
    rows = [
        (f"`{key}`", _accepts(key, field), _default(key, field), _cell(field.description or ""))
        for key, field in fields.items()
    ]
    return _table(("key", "takes", "default", "what it does"), rows)


def _accepts(key: str, field: FieldInfo) -> str:
    if key in CHOICES:
        listed = _codes(CHOICES[key])
        return f"a list of {listed}" if shape_of(field.annotation).items else listed
    bounds = [text for item in field.metadata for text in _bounds(item)]
    shape = shape_of(field.annotation)
    words = str(shape)
    if shape.literals:
        words = " or ".join([*(f"`{word}`" for word in shape.literals), *_kinds(shape, words)])
    return " ".join([words, *bounds])


def _kinds(shape: Any, words: str) -> list[str]:
    """What a shape takes beside its literals."""
    rest = words.split(" or ")[len(shape.literals) :]
    return [" or ".join(rest)] if rest else []


def _bounds(item: Any) -> Iterable[str]:
    spelled = {"gt": "above", "ge": "from", "lt": "below", "le": "up to"}
    for name, word in spelled.items():
        bound = getattr(item, name, None)
        if bound is not None:
            yield f"{word} {bound:,}" if bound < 2**31 else f"{word} 2^{bound.bit_length() - 1}"
    for inner in getattr(item, "metadata", ()):
        yield from _bounds(inner)


def _default(key: str, field: FieldInfo) -> str:
    if key in REQUIRED or field.is_required():
        return "**required**"
    value = field.default
    if value is None or value == ():
        return ""
    return f"`{json.dumps(value)}`" if not isinstance(value, str) else f"`{value}`"


def _other_spellings() -> list[str]:
    switches = {old: f"attn_implementation: {new}" for old, new in known_keys.ATTENTION_SWITCHES.items()
                if new not in names.ATTENTION_REFUSED}  # fmt: skip
    rows = [
        *((f"`{old}`", f"`{new}`", "as good") for old, new in known_keys.ALIASES.items()),
        *((f"`{old}`", f"`{new}`", "old; a warning says so") for old, new in known_keys.RENAMED.items()),
        *((f"`{old}: true`", f"`{new}`", "old; a warning says so") for old, new in switches.items()),
    ]
    return ["## Other spellings", _table(("written", "means", ""), rows)]


def _refused() -> list[str]:
    values = {
        "peft_init_lora_weights": dict.fromkeys(
            names.LORA_STARTS_NOT_YET,
            "write true, gaussian or orthogonal",
        ),
        "attn_implementation": dict.fromkeys(names.ATTENTION_REFUSED, "write sdpa, or remove the line"),
        "chat_template": dict.fromkeys(names.CHAT_TEMPLATES_NOT_YET, "write tokenizer_default, or jinja with its text"),
        "optimizer": {name: f"{reason}: {fix}" for name, (reason, fix) in names.OPTIMIZERS_REFUSED.items()},
        "rl": {
            **dict.fromkeys(names.METHODS_NOT_YET, "write rl: dpo, or leave it out"),
            **dict.fromkeys(names.METHODS_PREPARED, "prepare the data (`whet preprocess`); training is not built"),
        },
        "type of a dataset": dict.fromkeys(
            names.DATASET_TYPES_NOT_YET, "write the rows as messages, with `type: chat_template`"
        ),
    }
    rows = [(key, _codes(group), _cell(advice)) for key, table in values.items() for advice, group in _grouped(table)]
    return [
        "## Not supported yet",
        "These keys of Axolotl are known and refused, for nothing that was asked for is ignored in silence. One that "
        "is written as off (empty, `false`, or Axolotl's own default) passes.",
        _advice_table({**known_keys.REFUSED, **dict.fromkeys(_switches_not_yet(), "write attn_implementation: sdpa")}),
        "Keys of a dataset's row:",
        _advice_table(known_keys.ROW_REFUSED),
        "Values:",
        _table(("key", "values", "what to do"), rows),
        "`fsdp`, `fsdp_config`, `fsdp_version` and `deepspeed` are checked with the file; a run with them is refused. "
        f"Keys that the run finds out by itself are refused too: {_codes(sorted(known_keys.INTERNAL))}.",
    ]


def _switches_not_yet() -> list[str]:
    return [old for old, new in known_keys.ATTENTION_SWITCHES.items() if new in names.ATTENTION_REFUSED]


def _without_effect() -> list[str]:
    return [
        "## Without effect",
        "These are accepted with a warning: what they are for is met without them.",
        _advice_table(known_keys.NO_EFFECT, "why"),
        f"In a dataset's row: {_codes(known_keys.ROW_NO_EFFECT)}, which were never read.",
    ]


def _advice_table(table: Mapping[str, str], title: str = "what to do") -> str:
    return _table(("keys", title), [(_codes(group), _cell(advice)) for advice, group in _grouped(table)])


def _grouped(table: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Advice -> its keys, in the order of the table."""
    groups: dict[str, list[str]] = {}
    for key, advice in table.items():
        groups.setdefault(advice, []).append(key)
    return list(groups.items())


def _module_sentence(section: type[Section]) -> str:
    """The first sentence of the file that the section is in."""
    module = inspect.getmodule(section)
    assert module is not None
    return (module.__doc__ or "").strip().splitlines()[0]


# --- docs/performance.md ---------------------------------------------------------------------------------------------


def performance() -> str:
    """The figures that the scripts in benchmarks/ have left."""
    lines = [
        "# Performance",
        GENERATED,
        "Every figure here was measured by a script in [benchmarks/](../benchmarks); nothing is claimed without one. "
        "`make bench` runs them all, each ends with one JSON line, and `make docs` writes this page again. Contestants "
        "run in turn (ours, peer, ours, peer ...), each in a process of its own; a figure is the median. A ratio above "
        "1 is in our favour.",
    ]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    results = [result for result in results if "levers" not in result]  # has a page of its own
    if not results:
        return "\n\n".join([*lines, "There is no result yet: `benchmarks/results/` is empty."]) + "\n"
    training = [result for result in results if "memory_ratio" in result]
    on_gpu = [result for result in results if result["name"].startswith("gpu-")]
    results = [result for result in results if result not in training and result not in on_gpu]
    rows = [
        (
            f"[{result['name']}](../benchmarks/{_script_of(result['name'])})",
            _figure(result.get("ours"), result),
            _figure(result.get("peer"), result),
            "" if result.get("ratio") is None else f"{result['ratio']:.2f}",
            _cell(str(result.get("goal", ""))),
        )
        for result in results
    ]
    lines.append(_table(("benchmark", "ours", "peer", "ratio", "goal"), rows))
    lines += _training(training) + _on_gpu(on_gpu)
    for result in results:
        lines += [f"## {result['name']}", *_details(result)]
    return "\n\n".join(lines) + "\n"


def _training(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of benchmarks/train.py side by side."""
    if not results:
        return []
    machines = sorted({str(result["machine"]) for result in results})
    versions = ", ".join(f"{name} {version}" for name, version in results[0]["versions"].items())
    rows = []
    for result in sorted(results, key=lambda each: _order_of_cell(each["arguments"]["cell"])):
        cell = result["arguments"]["cell"]
        spread = f"{min(result['ours_each_round']):,} to {max(result['ours_each_round']):,}"
        padded = result.get("peer_without_packing")
        rows.append(
            (
                f"{cell['layers']} x {cell['hidden']}",
                f"{cell['vocab']:,}",
                f"{cell['sequence_len']:,}",
                "bf16" if cell["bf16"] else "fp32",
                f"LoRA {cell['lora_r']}" if cell["lora_r"] else "full",
                f"{result['ours']:,.0f} ({spread})",
                f"{result['peer']:,.0f}",
                "" if padded is None else f"{padded:,.0f}",
                f"**{result['ratio']:.2f}**",
                "" if cell["goal"] is None else f"{cell['goal']:g}",
                f"{result['ours_peak_bytes'] / 1e9:.2f} / {result['peer_peak_bytes'] / 1e9:.2f}",
            )
        )
    header = ("layers x hidden", "vocabulary", "sequence", "precision", "trained", "whet (rounds)", "TRL packed")
    header += ("TRL padded", "ratio", "asked for", "peak GB, ours / TRL")
    return [
        "## Training on a CPU, against TRL",
        "Supervised tokens a second of `whet train` and of TRL's SFTTrainer ([train.py](../benchmarks/train.py)): the "
        "same rows of Python documentation, once over, the same model, template, AdamW and precision. The ratio is to "
        "TRL packed. What bounds it is told in [engine.md](engine.md).",
        f"On {'; '.join(machines)}; medians of {min(each['rounds'] for each in results)} alternated rounds or more; "
        f"{versions}.",
        _table(header, rows),
    ]


def _on_gpu(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cases of benchmarks/gpu.py, in its order."""
    if not results:
        return []
    order = list(_literal_keys(REPOSITORY / "benchmarks" / "gpu_models.py", "CASES"))
    rows = []
    for result in sorted(results, key=lambda each: order.index(each["name"].removeprefix("gpu-"))):
        ours, theirs = result["whet_measured"], result["plain_measured"]
        in_kernels = ours.get("kernel_seconds")
        rows.append(
            (
                result["name"].removeprefix("gpu-"),
                f"{result['ours']:,.0f}",
                f"{result['peer']:,.0f}",
                f"**{result['ratio']:.2f}**",
                f"{ours['mfu_of_data_sheet']:.0%} / {theirs['mfu_of_data_sheet']:.0%}",
                f"{ours['peak_gib']:.1f} / {theirs['peak_gib']:.1f}",
                "" if in_kernels is None else f"{in_kernels:.3f} of {ours['step_seconds']:.3f}",
                _cell(str(result["goal"])),
            )
        )
    header = ("case", "whet, tokens/s", "Trainer + PEFT", "ratio", "share of the peak, ours / theirs")
    header += ("peak GiB, ours / theirs", "seconds of a step in kernels", "asked for")
    devices = sorted({str(result["device"]) for result in results})
    versions = ", ".join(f"{name} {version}" for name, version in results[0]["versions"].items())
    return [
        "## Training on one GPU, against transformers' Trainer with PEFT",
        "Random weights in the models' true shapes, rows of random ids in one document each, in bfloat16 "
        "([gpu.py](../benchmarks/gpu.py), whose cases are in [gpu_models.py](../benchmarks/gpu_models.py)); the "
        "Trainer with `sdpa` on the same ids. One run each of 8 timed steps (5 of the full 8-bit one, 1 at 64k) after "
        "2 more, one after the other on one machine, so differences of a few percent say nothing. The share of the "
        "peak counts the operations that a step needs, recomputation left out, against the data sheet's 989 TFLOP/s; "
        "a square product of 8,192 ran at 728 to 785 TFLOP/s there. Seconds in kernels are of one more step under "
        "PyTorch's profiler. What bounds a step is told in [engine.md](engine.md).",
        f"On {', '.join(devices)}; {versions}; {', '.join(sorted({str(result['date']) for result in results}))}.",
        _table(header, rows),
    ]


def _literal_keys(path: Path, name: str) -> Sequence[str]:
    """The keys of a dictionary written out at the top of a file."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and ast.unparse(node.targets[0]) == name:
            return [ast.literal_eval(key) for key in node.value.keys if key is not None]
    return []


def _order_of_cell(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    return cell["bf16"], cell["vocab"], cell["lora_r"], cell["hidden"], cell["sequence_len"]


def _details(result: Mapping[str, Any]) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
    told = {"name", "machine", "versions", "ours", "peer", "ratio", "goal", "unit"}
    more = [
        (f"`{key}`", _cell(value if isinstance(value, str) else json.dumps(value)))
        for key, value in result.items()
        if key not in told and value is not None
    ]
    sentences = [f"On {result.get('machine', 'an unknown machine')}; {versions}."]
    return [*sentences, _table(("figure", "value"), more)] if more else sentences


def _figure(value: float | None, result: Mapping[str, Any]) -> str:
    if value is None:
        return ""
    shown = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{shown} {result.get('unit', '')}".strip()


def _script_of(name: str) -> str:
    """The script that a result comes from: `train-packed` is one of train.py."""
    scripts = sorted((path.stem for path in (REPOSITORY / "benchmarks").glob("*.py")), key=len, reverse=True)
    return next((f"{stem}.py" for stem in scripts if name.startswith(stem)), "")


# --- docs/memory.md --------------------------------------------------------------------------------------------------


def memory() -> str:
    """What each memory lever saves and costs, as benchmarks/levers.py has counted."""
    path = RESULTS / "levers.json"
    if not path.is_file():
        return f"# Memory\n\n{GENERATED}\n\nThere is no result of benchmarks/levers.py yet.\n"
    result = json.loads(path.read_text(encoding="utf-8"))
    shape, levers = result["shape"], result["levers"]
    parts = [
        "# Memory",
        GENERATED,
        "What each lever saves and costs, counted by [benchmarks/levers.py](../benchmarks/levers.py); the numbers are "
        "in [levers.json](../benchmarks/results/levers.json), for programs. "
        f"A Llama of {shape['layers']} layers, hidden {shape['hidden']}, intermediate {shape['intermediate']:,}, "
        f"vocabulary {shape['vocabulary']:,}, {shape['dtype']}, one row of {shape['tokens']:,} tokens in documents of "
        f"{shape['document']}; LoRA with rank {shape['lora_r']} on all linear layers. Bytes are tensors, each storage "
        "once: no allocator's reserve, no workspace of a library. What a GPU would offload was offloaded by the CPU.",
        "**kept** is what forward leaves for backward; **a layer** its part that each layer adds, a token; **peak** "
        "the most alive in the step, gradients included, weights and states not; **host** what waits elsewhere; "
        "**time** a step on the CPU against none; empty where it was not measured.",
    ]
    for kind, title in (("full", "All weights trained"), ("lora", "LoRA")):
        rows = [_lever_row(lever, kind) for lever in levers if kind in lever["measured"]]
        terms = ("peak MB", "weights MB", "gradients MB", "states MB", "host MB")
        header = ("lever", "keys", "kept MB", "a layer, bytes a token", *terms, "time")
        parts += [f"## {title}", _table(header, rows)]
    notes = [
        (lever["lever"], _cell(lever["formula"]), lever["results_are_the_same"], _cell(lever["needs"]))
        for lever in levers
    ]
    parts += [
        "## How the bytes grow",
        "T tokens of a row, L layers, H hidden, I intermediate, W trained weights, b bytes of a number.",
        _table(("lever", "bytes", "results are the same", "needs"), notes),
        "## Optimizer states",
        "Bytes for each trained weight, after a step of the model above with half its layers; 8-bit states of "
        "bitsandbytes leave embeddings and small tensors in 32 bits. `paged_*` have the same bytes, in memory that "
        "CUDA may move to the host; paging itself was not measured.",
        _table(("optimizer", "bytes a weight"), [_optimizer_row(row) for row in result["optimizers"]]),
        f"Counted on {result['machine']}.",
    ]
    return "\n\n".join(parts) + "\n"


def _lever_row(lever: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    figures = lever["measured"][kind]
    keys = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in lever["keys"].items())
    megabytes = ["" if figures[name] is None else f"{figures[name] / 1e6:,.1f}"
                 for name in ("kept", "peak", "parameters", "gradients", "states", "host")]  # fmt: skip
    kept, *others = megabytes
    factor = figures["time_factor"]
    per_layer = f"{figures['kept_per_token_and_layer']:,.0f}"
    return (lever["lever"], keys, kept, per_layer, *others, "" if factor is None else f"{factor:.2f}")


def _optimizer_row(row: Mapping[str, Any]) -> tuple[str, str]:
    return f"`{row['name']}`", f"{row['bytes_per_weight']:.3f}" if "bytes_per_weight" in row else _cell(row["failed"])


# --- Markdown --------------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _cell(text: str) -> str:
    """Text that cannot end its cell, or be taken for HTML."""
    escape: Callable[[str], str] = lambda part: part.replace("<", "&lt;")  # noqa: E731
    pieces = text.replace("|", "\\|").split("`")
    return "`".join(escape(piece) if number % 2 == 0 else piece for number, piece in enumerate(pieces))


if __name__ == "__main__":
    raise SystemExit(main())
