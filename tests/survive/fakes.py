"""What is put in the place of others, in the process of a run, before its command."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub import HfApi, constants


class Hub:
    """Stands for HfApi; with a file ``gone`` in the current folder it is not there.

    Attributes:
        leaves_at: number of the upload at which the hub goes away, by a connection that is refused; 0: never.
        log: a line for each upload.
    """

    leaves_at = 0
    log = "hub.jsonl"

    def create_repo(self, name: str, **options: Any) -> SimpleNamespace:
        self._connect()
        return SimpleNamespace(repo_id=f"me/{name}")

    def create_branch(self, *arguments: Any, **options: Any) -> None:
        self._connect()

    def upload_folder(
        self, *, folder_path: str | Path, path_in_repo: str | None, ignore_patterns: list[str], **options: Any
    ) -> None:
        from huggingface_hub.utils import filter_repo_objects

        self._connect()
        log = Path(self.log)
        number = len(log.read_text().splitlines()) + 1 if log.exists() else 1
        if number == self.leaves_at:
            Path("gone").touch()
        self._connect()
        folder = Path(folder_path)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        names = sorted(filter_repo_objects(names, ignore_patterns=ignore_patterns))
        entry = {"source": folder.name, "place": path_in_repo or "", "names": names}
        with log.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _connect(self) -> None:
        if Path("gone").exists():
            was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, False
            try:
                HfApi(endpoint="http://127.0.0.1:9").whoami(token="hf_made_up")  # a port that nobody listens at
            finally:
                constants.HF_HUB_OFFLINE = was


def hub(leaves_at: int = 0, log: str = Hub.log) -> None:
    """`Hub` for the hub."""
    from whet.artefacts import hub as module

    Hub.leaves_at, Hub.log = leaves_at, log
    module.HfApi = Hub  # type: ignore[misc]


def jumping_clock(seconds: float) -> None:
    """The clock of the wall jumps back and forth by so many seconds, each time that it is looked at."""
    wall, sign = time.time, itertools.cycle((1.0, -1.0, 0.0))
    time.time = lambda: wall() + next(sign) * seconds


def watched_workers(die_at: int) -> None:
    """A process that loads rows is killed by the system when it has loaded so many micro-batches."""
    from whet.training import loader

    fetch, loaded = loader.as_fetched, itertools.count(1)

    def dying(batch: Any) -> Any:
        if torch.utils.data.get_worker_info() is not None and next(loaded) == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return fetch(batch)

    loader.as_fetched = dying


def lost_wandb(step: int) -> None:
    """W&B without a network, whose log refuses from a step on."""
    from transformers.integrations import WandbCallback

    log = WandbCallback.on_log

    def refusing(self: Any, args: Any, state: Any, control: Any, **options: Any) -> None:
        if state.global_step >= step:
            raise ConnectionError("[Errno 111] Connection refused")
        log(self, args, state, control, **options)

    WandbCallback.on_log = refusing
    os.environ.update(WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY="x" * 40, WANDB_SILENT="true")
