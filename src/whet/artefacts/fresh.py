"""A process that has never seen the live model: what loads an artefact there, loads it anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from whet.artefacts import fresh_script
from whet.distributed.launch import environment_of_one


@dataclass(frozen=True)
class Source:
    """What to load, and how transformers is told to.

    Attributes:
        folder: of a full model; "" for base + adapter.
        base: folder or hub id of the model that ``adapter`` stands beside.
        adapter: folder of an adapter, loaded by PEFT.
        gguf_file: name of a GGUF file in ``folder``, read by transformers.
        llama_cpp: the file is run by llama.cpp (package xllamacpp) instead.
        gguf_adapter: path of a GGUF adapter, for llama.cpp.
        model_class: name in transformers.
        config: folder of a config.json to use instead of the model's own.
        rows: of the embedding, where training has changed their number.
        dtype: to load in; "auto" as stored.
        quantization: the fields of a quantisation config, as its ``to_dict`` gives them.
        options: more arguments of ``from_pretrained``.
    """

    folder: str = ""
    base: str = ""
    adapter: str = ""
    gguf_file: str = ""
    llama_cpp: bool = False
    gguf_adapter: str = ""
    model_class: str = "AutoModelForCausalLM"
    config: str = ""
    rows: int = 0
    dtype: str = "auto"
    revision: str = ""
    trust_remote_code: bool = False
    quantization: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


class CannotTell(Exception):
    """The fresh process has come to no result that would speak for or against the artefact: no memory, or killed."""


class CannotLoad(Exception):
    """The fresh process could not load the model, or it cannot be compared."""


class FreshProcess:
    """Started at once, importing while its starter goes on; each job runs in a fork of it, and sees no other job.

    A context manager; the process ends with it. Where the system starts none, each job is a `CannotTell`.

    Args:
        adapter: PEFT is imported at the start too; else by the jobs that load an adapter, and by no other.
    """

    def __init__(self, *, adapter: bool = False) -> None:
        # Not the folder of the script, which holds modules with names like `quantize`, must be searched: -P.
        command = [sys.executable, "-P", str(Path(fresh_script.__file__)), *(["peft"] if adapter else [])]
        self._open = ExitStack()
        self._never_started = ""
        try:
            self._errors = self._open.enter_context(tempfile.TemporaryFile())  # noqa: SIM115  # closed with the process
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=environment_of_one(),
            )
        except OSError as error:  # no folder for temporary files, no room, no more processes
            self._open.close()
            self._never_started = error.strerror or str(error)

    def __enter__(self) -> FreshProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it is doing."""
        if not self._never_started:
            self._process.kill()
            self._process.communicate()
            self._open.close()

    def speak(self, source: Source, prompts: Path, logits: Path, device: str) -> dict[str, Any]:
        """Write the logits of ``source`` on the prompts into the folder ``logits``; how it was loaded.

        Raises:
            CannotLoad, CannotTell: it could not.
        """
        return self._ask("speak", source, prompts, logits, device)

    def compare(self, source: Source, prompts: Path, logits: Path, device: str) -> dict[str, Any]:
        """How far ``source`` is from the logits in that folder; mean_kl, max_kl, positions, same_first_choice.

        Raises:
            CannotLoad, CannotTell: it could not.
        """
        return self._ask("compare", source, prompts, logits, device)

    def _ask(self, do: str, source: Source, prompts: Path, logits: Path, device: str) -> dict[str, Any]:
        if self._never_started:
            raise CannotTell(f"the process that should load it cannot be started ({self._never_started})")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {
            "do": do,
            "source": asdict(source),
            "prompts": str(prompts),
            "logits": str(logits),
            "device": device,
            "cwd": os.getcwd(),
        }
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise CannotTell(f"the process that should load it has ended ({self._last_words()})")
        answer: dict[str, Any] = json.loads(line)
        if "died" in answer:
            raise CannotTell(
                f"the process that loaded it was ended by signal {-answer['died']}; memory is the usual cause"
            )
        if "no_memory" in answer:
            raise CannotTell(f"there is not enough memory to load it a second time ({answer['no_memory']})")
        if "no_base" in answer:
            raise CannotTell(f"the fresh process could not load the base model ({answer['no_base']})")
        if "failed" in answer:
            raise CannotLoad(answer["failed"])
        return answer

    def _last_words(self) -> str:
        self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"exit code {self._process.returncode}"
