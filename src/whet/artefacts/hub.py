"""The result on the Hugging Face hub: a private repository, opened before training and given the files at its end."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from whet.config import Config
from whet.core.errors import ArtefactError, Problem
from whet.core.log import say

# What a request may raise: the hub's refusals and a missing token are OSErrors; a network that is not there is an error
# of the HTTP library, which is httpx or httpx2, by the version of huggingface_hub. Its refusals derive from both.
_FAILURES: tuple[type[Exception], ...] = (OSError, HFValidationError, HfHubHTTPError.__bases__[0])

# The result lies in the folder itself; checkpoints, logs and evaluations lie in folders of it.
_NOT_THE_RESULT = ["*/*", ".*", "*.db"]


def open_repository(config: Config) -> None:
    """Make sure, before anything is trained, that `hub_model_id` can be pushed to: it is made if it is not there.

    Raises:
        ArtefactError: no token, no network, no such name, or not the user's to write to.
    """
    name, revision = config.output.hub_model_id, config.output.hub_revision
    assert name is not None
    try:
        repository = HfApi().create_repo(name, private=True, exist_ok=True).repo_id
        if revision is not None:
            HfApi().create_branch(repository, branch=revision, exist_ok=True)
    except _FAILURES as error:
        fix = "check the name, the network and `hf auth login`, or remove hub_model_id"
        raise _refused(config, "cannot be opened on the hub", error, fix) from error


def push(folder: Path, config: Config) -> None:
    """Upload the finished model, its tokenizer and the run's record.

    Raises:
        ArtefactError: the upload failed; the model lies in its folder all the same.
    """
    name = config.output.hub_model_id
    assert name is not None
    try:
        repository = HfApi().create_repo(name, private=True, exist_ok=True).repo_id
        HfApi().upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=config.output.hub_revision,
            commit_message="Trained with whet",
            ignore_patterns=_NOT_THE_RESULT,
        )
    except _FAILURES as error:
        fix = f"the model is saved: hf upload {name} {folder} . --exclude '*/*'"
        raise _refused(config, "did not take the result", error, fix) from error
    say(f"pushed: https://huggingface.co/{repository}")


def _refused(config: Config, what: str, error: Exception, fix: str) -> ArtefactError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    found = f"hub_model_id: '{config.output.hub_model_id}' {what} ({reason})"
    return ArtefactError(Problem(config.where("hub_model_id"), found, fix, "hub_model_id"))
