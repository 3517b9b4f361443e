"""What Ollama makes of a Modelfile: asked of Go's own text/template (`tests/go/ollama.go`), and kept.

``python -m tests.ollama`` writes `RECORDED` again: needed when a shipped template or what is written in Go changes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "go" / "ollama.go"
RECORDED = Path(__file__).parent / "data" / "ollama.json"
OLDEST = (1, 18)  # of Go: what its templates can do, and what the program is written in
RENEW = "apt-get install golang-go && python -m tests.ollama"

Messages = list[dict[str, str]]

_TURNS = (
    *("How is it called?", "By {{ its }} name.\n\nAnd so on:", "Übung, 東京: 🙂", "1 < 2", ""),
    *("", 'Say "{"', "“{{”", "Thanks!"),
)


def conversation(turns: int, system: str | None = None) -> Messages:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(_TURNS[:turns])]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


CONVERSATIONS: list[Messages] = [
    conversation(turns, system) for turns in (1, 3, 5, 7, 9) for system in (None, "Be {{ brief }}.\nPlease.", "")
] + [[{"role": "user", "content": ""}], [{"role": "user", "content": "</s> <|im_end|> [/INST]"}]]


SECONDS_FOR_GO = 120
"""To compile and run: less than pytest gives a test, so that it fails with words."""

_GO = {"GOTOOLCHAIN": "local", "GOFLAGS": "", "GO111MODULE": "auto"}
"""What is there, without a download, however this machine is set up."""


@cache
def lacks_go() -> str:
    """Why Go cannot be asked here; "" where it can."""
    if shutil.which("go") is None:
        return "there is no go on this machine (apt-get install golang-go)"
    asked = subprocess.run(
        ["go", "env", "GOVERSION", "GOCACHE"], env=os.environ | _GO, capture_output=True, text=True, check=False
    )
    version, _, cache_dir = asked.stdout.strip().partition("\n")
    numbers = re.match(r"go(\d+)\.(\d+)", version)
    if asked.returncode or numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        return f"go is '{version}', older than {OLDEST[0]}.{OLDEST[1]}, or broken {asked.stderr.strip()}"
    place = Path(cache_dir)
    existing = next((each for each in (place, *place.parents) if each.exists()), place)
    if not place.is_absolute() or not os.access(existing, os.W_OK):
        return f"go cannot write to its GOCACHE ('{cache_dir}')"
    return ""


@dataclass(frozen=True)
class Read:
    """A Modelfile as Ollama reads it: its instructions in order, and the prompts of the conversations."""

    instructions: list[tuple[str, str]]
    prompts: list[str]

    def all_of(self, name: str) -> list[str]:
        return [argument for found, argument in self.instructions if found == name]


def read(modelfiles: Sequence[str], conversations: Sequence[Sequence[Messages]]) -> list[Read]:
    """By Go itself; the n-th conversations are for the n-th file."""
    jobs = [{"modelfile": m, "conversations": c} for m, c in zip(modelfiles, conversations, strict=True)]
    done = subprocess.run(
        ["go", "run", str(PROGRAM)],
        env=os.environ | _GO,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=SECONDS_FOR_GO,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return [Read([(name, argument) for name, argument in each["instructions"]], each["prompts"]) for each in found]


def written_in_go(name: str) -> tuple[str, list[Messages]]:
    """The Modelfile's template for a shipped chat template, and the conversations that it has words for."""
    from tests.tiny_tokenizers import tiny_tokenizer
    from whet.artefacts.gguf.go_template import learn

    pieces = learn(tiny_tokenizer(name), {}, adds_bos=False)
    takes_system = pieces.system is not None
    return pieces.in_go(), [each for each in CONVERSATIONS if takes_system or each[0]["role"] != "system"]


def shipped() -> list[str]:
    import whet.data.templates

    return sorted(path.stem for path in Path(whet.data.templates.__path__[0]).glob("*.jinja"))


def record() -> None:
    """Ask Go, and keep what it said."""
    names = shipped()
    made = [written_in_go(name) for name in names]
    said = read([f'FROM x\nTEMPLATE """{go}"""' for go, _ in made], [conversations for _, conversations in made])
    kept = {
        name: {"template": go, "prompts": each.prompts} for name, (go, _), each in zip(names, made, said, strict=True)
    }
    RECORDED.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record()
