"""The result on the Hugging Face hub: a private repository, opened before training, given files by `hub_strategy`.

transformers would copy a checkpoint's weights into the output folder to upload them, where they look like the result
of a finished run, and end the run with an error when the hub is gone. Here checkpoints are uploaded from their own
folders by a thread, and what the hub does not take waits in `whet.training.uploads` for `whet push`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from whet.config import Config
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say, warn
from whet.training.checkpoint import MANIFEST, step_of
from whet.training.uploads import QUEUE_NAME, Upload, UploadQueue, push_command

# What a request may raise: the hub's refusals and a missing token are OSErrors; a network that is not there is an error
# of the HTTP library, which is httpx or httpx2, by the version of huggingface_hub. Its refusals derive from both.
FAILURES: tuple[type[Exception], ...] = (OSError, HFValidationError, HfHubHTTPError.__bases__[0])

RESULT = Upload("hub", ".")
"""The finished model, in the root of the repository."""

# The result lies in the folder itself; checkpoints, logs and evaluations lie in folders of it.
_NOT_THE_RESULT = ("*/*", ".*", "*.db", f"{QUEUE_NAME}*")
# In a checkpoint, beside the model: what a run needs to go on, as transformers writes it.
_NOT_THE_MODEL = ("*/*", ".*", "optimizer*", "scheduler*", "scaler*", "rng_state*", "trainer_state.json",
                  "training_args.bin")  # fmt: skip
_PLACES: Mapping[str, Sequence[str]] = {
    "end": (),
    "every_save": ("",),
    "checkpoint": ("", "last-checkpoint"),
    "all_checkpoints": ("", "{folder}"),
}
"""`hub_strategy` -> where in the repository each checkpoint goes; "" is the model alone, into the root."""


def open_repository(config: Config) -> str:
    """Make sure, before anything is trained, that `hub_model_id` can be pushed to: it is made if it is not there.

    Returns:
        Its full name.

    Raises:
        ArtefactError: no token, no network, no such name, or not the user's to write to.
    """
    name, revision = config.output.hub_model_id, config.output.hub_revision
    assert name is not None
    try:
        repository: str = HfApi().create_repo(name, private=True, exist_ok=True).repo_id
        if revision is not None:
            HfApi().create_branch(repository, branch=revision, exist_ok=True)
    except FAILURES as error:
        fix = "check the name, the network and `hf auth login`, or remove hub_model_id"
        found = f"hub_model_id: '{name}' cannot be opened on the hub ({reason(error)})"
        raise ArtefactError(Problem(config.where("hub_model_id"), found, fix, "hub_model_id")) from error
    return repository


def send(upload: Upload, folder: Path, config: Config) -> str:
    """Upload it; files that the hub has already cost nothing.

    Returns:
        The repository's address.

    Raises:
        FileNotFoundError: the checkpoint has been removed meanwhile.
        FAILURES: the hub did not take it.
    """
    source = folder / upload.source
    if not source.is_dir():
        raise FileNotFoundError(upload.source)
    if upload.source == ".":
        message, ignored = "Trained with whet", list(_NOT_THE_RESULT)
    else:
        message = f"Training in progress, step {upload.step}{', checkpoint' if upload.place else ''}"
        ignored = [] if upload.place else [*_NOT_THE_MODEL, *_of_a_run_that_goes_on()]
    name = config.output.hub_model_id
    assert name is not None
    repository = HfApi().create_repo(name, private=True, exist_ok=True).repo_id
    HfApi().upload_folder(
        repo_id=repository,
        folder_path=source,
        path_in_repo=upload.place or None,
        revision=config.output.hub_revision,
        commit_message=message,
        ignore_patterns=ignored,
    )
    return f"https://huggingface.co/{repository}"


def _of_a_run_that_goes_on() -> list[str]:
    """The files that whet adds to a checkpoint for the run itself; some are of modules that import torch."""
    from whet.config.facts import FACTS_NAME
    from whet.training.carried import FILE as PROGRESS
    from whet.training.optimizers.averages import FILE as TRAINED_WEIGHTS
    from whet.training.streamed import STATE as STREAM

    return [MANIFEST, FACTS_NAME, PROGRESS, TRAINED_WEIGHTS, STREAM]


def send_waiting(queue: UploadQueue, config: Config, *, ended: bool) -> tuple[list[str], Exception | None]:
    """Upload all that waits for the hub, until it refuses one.

    Args:
        ended: nothing is being written any more, so a checkpoint that is not there, or not whole, never will be.

    Returns:
        What was sent, and what ended it, if anything did.
    """
    said = []
    for upload in [each for each in queue.waiting() if each.to == "hub"]:
        is_whole = upload.source == "." or (queue.folder / upload.source / MANIFEST).is_file()
        if not is_whole and not ended:
            continue  # it is being written
        try:
            address = send(upload, queue.folder, config)
        except FAILURES as error:
            if not is_whole or not (queue.folder / upload.source).is_dir():
                queue.sent(upload)
                said.append(f"{upload}: left out, it was removed before the hub could take it (save_total_limit)")
                continue
            queue.refused(upload, reason(error))
            return said, error
        queue.sent(upload)
        said.append(f"{upload}: {address}")
    return said, None


class HubUploads:
    """Gives each checkpoint to the hub as `hub_strategy` says, from a thread: training neither waits nor fails for it.

    Args:
        folder: the run's output folder.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self.queue = config, UploadQueue(folder)
        self._thread: threading.Thread | None = None
        self._told = False

    def checkpoint(self, folder: Path) -> None:
        """A checkpoint that is published; called by whoever publishes it."""
        for place in _PLACES[self._config.output.hub_strategy or "every_save"]:
            self.queue.add(Upload("hub", folder.name, place.format(folder=folder.name), step_of(folder)))
        self._start()

    def finish(self) -> None:
        """Give the hub the result too, and wait; what it does not take is kept for `whet push`, and said."""
        if self._thread is not None:
            self._thread.join()
        self.queue.add(RESULT)
        self._send(ended=True)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return  # it looks again before it ends, or the next checkpoint starts another
        # A daemon: a run that is stopped does not wait for uploads, they are in the queue.
        self._thread = threading.Thread(target=self._send, kwargs={"ended": False}, name="hub uploads", daemon=True)
        self._thread.start()

    def _send(self, *, ended: bool) -> None:
        said, error = send_waiting(self.queue, self._config, ended=ended)
        for sentence in said:
            say(f"pushed: {sentence}")
        if error is None:
            self._told = False
        elif ended or not self._told:
            self._told = True
            warn(self._waits(error))

    def _waits(self, error: Exception) -> Problem:
        name = self._config.output.hub_model_id
        found = f"the hub did not take what is for '{name}' ({reason(error)}); nothing is lost, it is queued on disk"
        fix = f"when it can be reached: {push_command(self._config)}"
        return Problem(self._config.where("hub_model_id"), found, fix, "hub_model_id")


def reason(error: Exception) -> str:
    """The first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
