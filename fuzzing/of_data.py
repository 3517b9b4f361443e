"""Configs, rows, the files that hold them, and chat templates."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuzzing.target import Target, judged

CONFIGS = Path(__file__).parents[1] / "tests" / "data" / "configs"
ROWS = b'{"text": "a", "n": 1}\n{"text": "b", "n": 12345678901234567890123}\n\n{"messages": [{"role": "user"}]}\n'


def config(folder: Path, data: bytes) -> None:
    from whet.config import load_config

    (folder / "my.yaml").write_bytes(data)
    with judged():
        load_config(folder / "my.yaml", environ={})


def overrides(folder: Path, data: bytes) -> None:
    """Words of the command line, and values of the environment: a shell script of somebody else's."""
    from whet.config import load_config

    base = "base_model: org/m\nlearning_rate: 1e-4\ndatasets: [{path: org/d, type: alpaca}]\n"
    (folder / "my.yaml").write_text(base)
    words = data.decode("utf-8", "surrogateescape").split("\n")
    environ = {f"WHET_{key}": value for key, _, value in (word.partition("=") for word in words[1::2])}
    with judged():
        load_config(folder / "my.yaml", words[::2], environ=environ)


@functools.cache
def _encoder(task: str, name: str) -> Callable[[dict[str, Any]], object]:
    from tests.configs import config_with
    from tests.contract.test_formats import METHODS
    from tests.tiny_tokenizers import tiny_tokenizer

    from whet.data.formats import make_format
    from whet.data.tokenise import SampleEncoder

    made = config_with({"type": name, "max_input_id": 200, "sequence_length": 8}, **METHODS[task])  # type: ignore[index]
    if task != "supervised":
        return make_format(made.data.datasets[0], made).read
    encoder = SampleEncoder(made.data.datasets[0], made, tiny_tokenizer("chatml"))
    return lambda row: encoder.encode_rows([row])


def row(folder: Path, data: bytes) -> None:
    """``{"task": ..., "format": ..., "row": {...}}``: any row for any format, through to tokens."""
    from tests.contract.test_formats import EVERY_FORMAT

    from whet.data.readers import BadRow, parse_line

    read = parse_line(data, 2)
    if isinstance(read, BadRow) or not isinstance(read.get("row"), dict):
        return
    known = {(task, name) for task, name, _ in EVERY_FORMAT}
    if (named := (str(read.get("task")), str(read.get("format")))) in known:
        with judged():
            _encoder(*named)(read["row"])  # type: ignore[arg-type]


def _rows() -> Mapping[str, bytes]:
    from tests.contract.test_formats import EVERY_FORMAT

    return {
        f"{task}-{name}": json.dumps({"task": task, "format": name, "row": row}).encode()
        for task, name, row in EVERY_FORMAT
    }


TALK = [
    {"role": "system", "content": "You are <b>."},
    {"role": "user", "content": "2 + 2?\n\n"},
    {"role": "assistant", "content": "4", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    {"role": "tool", "content": "{}", "name": "f"},
    {"role": "assistant", "content": " four "},
]
TOOLS = [{"type": "function", "function": {"name": "f", "description": "F", "parameters": {"type": "object"}}}]


def template(folder: Path, data: bytes) -> None:
    """A chat template: compiled, asked what it does, rendered; within a tenth of the limits of a run."""
    import jinja2

    from whet.core.errors import ConfigError, WhetError
    from whet.data.templates.render import TEMPLATE_ERRORS, Renderer, Template

    _small_limits()
    text = data.decode("utf-8", "replace")
    with judged():
        try:
            made = Template(text, {"bos_token": "<s>", "eos_token": "</s>"}, "my.yaml:1:1")
        except ConfigError:
            return
        for tools in (None, TOOLS):
            with suppress(*TEMPLATE_ERRORS):
                written, runs = made.render(TALK, tools, prompt=tools is None)
                assert type(written) is str
                assert all(0 <= run.begin <= run.end <= len(written) for run in runs)
        from tests.tiny_tokenizers import tiny_tokenizer

        from whet.core.types import Conversation, Turn
        from whet.data.templates.render import TrainPolicy

        renderer = Renderer(text, tiny_tokenizer("chatml"))
        turns = tuple(Turn(message) for message in TALK)
        rendered = renderer.render(Conversation(turns, TOOLS), TrainPolicy())
        assert all(0 <= span.begin <= span.end <= len(rendered.text) for span in rendered.spans)
        with suppress(WhetError, *TEMPLATE_ERRORS, jinja2.TemplateError):
            renderer.check(Conversation(turns, TOOLS), rendered.text)


@functools.cache
def _small_limits() -> None:
    from whet.core.sandbox import budget

    budget.LIMITS = budget.Limits(steps=50_000, seconds=5.0, characters=1_000_000, made=20_000_000, items=50_000)


def _templates() -> Mapping[str, bytes]:
    from whet.data import templates

    folder = Path(templates.__file__).parent
    return {path.stem: path.read_bytes() for path in sorted(folder.glob("*.jinja"))}


def rows_of(name: str) -> Callable[[Path, bytes], None]:
    """Read a file of this name both ways: as rows, and as the chunks that preparation reads."""

    def read(folder: Path, data: bytes) -> None:
        from whet.config.schema.data import DatasetConfig
        from whet.data.readers import BadRow
        from whet.data.sources import locate

        (folder / name).write_bytes(data)
        dataset = DatasetConfig(path=str(folder / name))
        for chunks in (False, True):
            with judged():
                source = locate(dataset, "my.yaml:1")
                for each in source.chunks() if chunks else source.rows():
                    if not chunks and isinstance(each.value, BadRow):  # type: ignore[union-attr]
                        assert each.value.reason  # type: ignore[union-attr]

    return read


def tables(kind: str) -> Callable[[], Mapping[str, bytes]]:
    def seeds() -> Mapping[str, bytes]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table(
            {
                "text": ["hello", None, "x" * 99],
                "n": [1, 2, 3],
                "l": [[1], [], None],
                "d": [{"a": 1.5}, {"a": None}, None],
                "dict": pa.array(["a", "b", "a"]).dictionary_encode(),
            }
        )
        file = io.BytesIO()
        if kind == "parquet":
            pq.write_table(table, file)
        else:
            with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(file, table.schema) as writer:
                writer.write_table(table)
        return {kind: file.getvalue()}

    return seeds


def _zstd() -> Mapping[str, bytes]:
    import pyarrow as pa

    file = io.BytesIO()
    with pa.CompressedOutputStream(file, "zstd") as packed:
        packed.write(ROWS)
        plain = file
    return {"rows": pa.compress(ROWS, "zstd", asbytes=True), "stream": plain.getvalue() if not plain.closed else ROWS}


def _configs() -> Mapping[str, bytes]:
    return {path.stem: path.read_bytes() for path in sorted(CONFIGS.glob("*.y*ml"))}


WORDS = ("--learning-rate", "1e-4", "--datasets.0.path", "x", "--no-bf16", "--lora-r=8", "--model-kwargs", "{a: 1}")


TARGETS: Mapping[str, Target] = {
    "config": Target(config, _configs, "yaml", packages=("ruamel",)),
    "overrides": Target(overrides, lambda: {"words": "\n".join(WORDS).encode()}, "bytes", packages=("ruamel",)),
    "row": Target(row, _rows, "json", has_models=True),
    "template": Target(template, _templates, "template", packages=("jinja2",), has_models=True),
    "json-lines": Target(rows_of("a.jsonl"), lambda: {"rows": ROWS}, "json lines"),
    "json": Target(
        rows_of("a.json"), lambda: {"rows": ROWS, "list": b'[{"a": 1}]', "in": b'{"d": [{"a": 1}]}'}, "json"
    ),
    "csv": Target(rows_of("a.csv"), lambda: {"rows": b'a,b\n1,"x ""y"""\n\n2,z\n'}, "bytes"),
    "gzip": Target(rows_of("a.jsonl.gz"), lambda: {"rows": gzip.compress(ROWS, mtime=0)}, "bytes"),
    "bzip2": Target(rows_of("a.jsonl.bz2"), lambda: {"rows": bz2.compress(ROWS)}, "bytes"),
    "zstd": Target(rows_of("a.jsonl.zst"), _zstd, "bytes"),
    "parquet": Target(rows_of("a.parquet"), tables("parquet"), "bytes"),
    "arrow-file": Target(rows_of("a.arrow"), tables("file"), "bytes"),
    "arrow-stream": Target(rows_of("a.arrow"), tables("stream"), "bytes"),
}
