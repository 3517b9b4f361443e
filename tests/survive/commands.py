"""Commands that make something of a run that has ended: what each makes, where it is struck, and what must hold."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.survive.conftest import CONFIG, LORA, Ended, Place, Server, Tally, Undisturbed, hashed
from tests.survive.faults import Fault
from whet.training.uploads import QUEUE_NAME, Upload, UploadQueue


@dataclass(frozen=True)
class Command:
    """A command, in a folder with a run that has ended.

    Attributes:
        name: as the table of docs/reliability.md has it.
        words: after ``whet``.
        within: the function that is struck, as ``module:function``.
        makes: folders and files that it writes, in the place.
        text: the YAML.
        before: what stands for the hub, as `Order.before`.
        gone: a folder that the run shall not have left.
    """

    name: str
    words: tuple[str, ...]
    within: str
    makes: tuple[str, ...]
    text: str = CONFIG + LORA
    before: str = ""
    gone: str = ""


COMMANDS = {
    command.name: command
    for command in (
        Command("whet merge-lora", ("merge-lora", "my.yaml"), "whet.run:merge", ("out/merged",)),
        Command(
            "whet quantize",
            ("quantize", "my.yaml"),
            "whet.run:quantize",
            ("out/quantized",),
            CONFIG + LORA + "quantization: {weight_dtype: int8}\n",
        ),
        Command("whet export-gguf", ("export-gguf", "my.yaml"), "whet.exports:export_gguf", ("out/gguf",)),
        Command(
            "whet export-gguf, merging first",
            ("export-gguf", "my.yaml"),
            "whet.exports:export_gguf",
            ("out/gguf", "out/merged"),
            gone="out/merged",
        ),
        Command(
            "whet export-gguf --adapter",
            ("export-gguf", "my.yaml", "--adapter"),
            "whet.exports:export_gguf",
            ("out/gguf-adapter",),
        ),
        Command(
            "whet merge-sharded-fsdp-weights",
            ("merge-sharded-fsdp-weights", "my.yaml", "--model-dir", "sharded", "--merged-dir", "gathered"),
            "whet.exports:gather",
            ("gathered",),
            CONFIG,
        ),
        Command("whet evaluate", ("evaluate", "my.yaml"), "whet.run:evaluate", ("out/eval/examples.jsonl",)),
        Command(
            "whet push",
            ("push", "my.yaml"),
            "whet.run:push",
            (f"out/{QUEUE_NAME}",),
            CONFIG + LORA + "hub_model_id: tiny\nhub_strategy: all_checkpoints\n",
            "tests.survive.fakes:hub",
        ),
    )
}

SHARE = ("whet export-gguf", "whet merge-sharded-fsdp-weights", "whet evaluate", "whet push")
"""Those that `make test` strikes; merging is struck in a run there, and torchao takes seconds to import."""

WAITING = tuple(Upload("hub", f"checkpoint-{step}", f"checkpoint-{step}", step) for step in (3, 6, 9))
"""Checkpoints that the hub has not had when `whet push` starts."""

_OF_ITS_TIME = ("run.json", "parity.json", "README.md")
"""They say when an artefact was made."""


@dataclass(frozen=True)
class Done:
    """A command that nothing happened to.

    Attributes:
        before, after: the place as it was before it and after it.
        counts: clock -> ticks, within the command's function.
        made: file -> hash of what it made.
        out: what it printed on standard output.
    """

    command: Command
    before: Path
    after: Path
    counts: dict[str, int]
    made: dict[str, str]
    out: str


def made(folder: Path, command: Command) -> dict[str, str]:
    """File -> hash of what the command made, without what says when."""
    return {name: digest for name, digest in hashed(folder).items() if _is_made(name, command)}


def untouched(folder: Path, command: Command) -> dict[str, str]:
    """File -> hash of all that is not the command's: the run, the model, the rows. Not what is hidden, half-written."""
    hashes = hashed(folder)
    own = (*command.makes, "last_run_prepared", "ballast")
    return {
        name: digest
        for name, digest in hashes.items()
        if not name.startswith(own) and not any(part.startswith(".") for part in Path(name).parts)
    }


def _is_made(name: str, command: Command) -> bool:
    is_own = any(name == path or name.startswith(f"{path}/") for path in command.makes)
    return is_own and Path(name).name not in _OF_ITS_TIME


def do(
    server: Server, undisturbed: Undisturbed, folder: Path, command: Command, sharded: Callable[[Path], None]
) -> Done:
    """The command where nothing happens, twice: the server has imported nothing of it the first time."""
    before = folder / "before"
    shutil.copytree(undisturbed.folder, before, symlinks=True)
    (before / "my.yaml").write_text(command.text)
    if command.gone:
        shutil.rmtree(before / command.gone)
    if command.text is CONFIG:
        sharded(before / "sharded")
    if command.before:
        queue = UploadQueue(before / "out")
        for upload in WAITING:
            queue.add(upload)
    for name in ("cold", "warm"):
        place = Place(server, folder / name, folder / f"{name}-logs", Tally(""))
        shutil.copytree(before, place.folder, symlinks=True)
        ended = run(place, command, Fault(clock="" if name == "cold" else "calls", within=command.within))
        assert ended.code == 0, ended.err
        server.ask(warm=(place.logs / "modules.txt").read_text().split())
    assert untouched(place.folder, command) == untouched(before, command), "it changes nothing but what it makes"
    return Done(command, before, place.folder, ended.counts[command.within], made(place.folder, command), ended.out)


def run(place: Place, command: Command, fault: Fault | None = None) -> Ended:
    more: dict[str, Any] = {"before": command.before, "options": {"log": str(_hub(place))}} if command.before else {}
    return place.run(*command.words, fault=fault, **more)


def _hub(place: Place) -> Path:
    """What has arrived at the hub, which is on no disk of this machine."""
    return place.folder.with_name(f"hub-of-{place.folder.name}.jsonl")


def waiting(place: Place) -> set[Upload]:
    return set(UploadQueue(place.out).waiting())


def sent(place: Place) -> list[tuple[str, str]]:
    log = _hub(place)
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [(line["source"], line["place"]) for line in lines]


def nothing_half_made(place: Place, done: Done) -> None:
    """What is there under its own name is whole, and the run that it is made of is as it was."""
    command = done.command
    assert untouched(place.folder, command) == untouched(done.before, command)
    if command.before:
        kept = {(upload.source, upload.place) for upload in waiting(place)} | set(sent(place))
        assert {(upload.source, upload.place) for upload in WAITING} <= kept, "what waits is not forgotten"
        return
    there = made(place.folder, command)
    for path in command.makes:
        if (place.folder / path).exists():
            whole = {name: digest for name, digest in done.made.items() if name.startswith(path)}
            assert {name: there.get(name) for name in whole} == whole, f"{path} is half-written, and would be taken"


def is_done(place: Place, done: Done) -> None:
    """The same command again ends as if nothing had happened, and leaves nothing else."""
    ended = run(place, done.command)
    assert ended.code == 0, ended.err
    assert ended.out == done.out or done.command.before
    is_whole(place, done)


def is_whole(place: Place, done: Done) -> None:
    """What the command makes is there, and nothing half-made beside it."""
    command = done.command
    assert untouched(place.folder, command) == untouched(done.before, command)
    if command.before:
        assert not waiting(place)
        assert {*sent(place)} == {("out", ""), *((upload.source, upload.place) for upload in WAITING)}
        assert sent(place)[-1] == ("out", "")
    else:
        assert made(place.folder, command) == done.made
    for path in command.makes:
        if (place.folder / path).is_dir():
            assert json.loads((place.folder / path / "run.json").read_text())["outcome"] == "finished", path
            assert (place.folder / path / "README.md").is_file()
    assert not list(leftovers(place)), "what a killed process left half-written is removed by the next one"


def leftovers(place: Place) -> Iterator[Path]:
    """Hidden folders of half-written things, and files that were to replace others."""
    yield from (path for path in place.folder.rglob(".*") if path.is_dir())
    yield from place.folder.rglob("*.tmp")
