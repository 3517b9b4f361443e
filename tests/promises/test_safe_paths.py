"""Nothing that stands in a config, in data or in a folder of others decides where whet writes, but `output_dir`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from tests.e2e.conftest import CONFIG, Whet, chat, model_folder, whet, workspace, write_rows

from whet.config import make_config
from whet.core.disk import link_leading_out
from whet.core.errors import ConfigError
from whet.training.checkpoint import MANIFEST, what_is_wrong

__all__ = ["model_folder", "whet", "workspace"]  # fixtures

BASE = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [{"path": "org/d", "type": "alpaca"}]}
HOSTILE = [
    "../x",
    "/etc/x",
    "..",
    "a/../../x",
    "a\0b",
    "x" * 5000,
    "a\nb",
    "~/x",
    "a\\..\\b",
    "-rf",
    "",
    " ",
    "con:",
    "😀/x",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("key", ["wandb_run_id", "hub_model_id", "hub_revision"])
def test_an_identifier_is_no_path(key: str, name: str) -> None:
    more = {"wandb_project": "p"} if key == "wandb_run_id" else {"hub_model_id": "me/mine"}
    with pytest.raises(ConfigError, match=key):
        make_config({**BASE, **more, key: name})


def test_ordinary_identifiers_are_taken() -> None:
    plain = {"wandb_project": "p", "wandb_run_id": "run-1.2_x", "hub_model_id": "me/My.Model-7B"}
    assert make_config({**BASE, **plain, "hub_revision": "feature/x-1"}).output.hub_model_id == "me/My.Model-7B"


def files_outside(root: Path, *ours: str) -> set[str]:
    return {
        str(path.relative_to(root))
        for path in root.rglob("*")
        if not path.is_dir() and path.relative_to(root).parts[0] not in ours
    }


def test_names_of_datasets_and_of_their_rows_reach_no_file(workspace: Path, whet: Whet) -> None:
    """A run with names like paths in each place that takes any: the same files are there as with plain ones."""
    hostile = workspace / "data" / "..%2F..%2Fx\n.jsonl"
    hostile.parent.mkdir()
    row = {**chat("a?", "b."), "id": "../../../row", "file_name": "/etc/row", "split": "../x"}
    write_rows(hostile, [{**row, **chat(f"What is {n}?", f"It is {n}.")} for n in range(12)])
    text = CONFIG.replace("  - path: rows.jsonl\n", f"  - path: {json.dumps(str(hostile))}\n    name: ../../name\n")
    more = "wandb_name: ../../run\nmlflow_run_name: /run\nuse_wandb: false\nuse_mlflow: false\nuse_tensorboard: true\n"
    (workspace / "my.yaml").write_text(text + more + "val_set_size: 0.2\n")
    # Names beside the workspace, and not the files in them: earlier tests' trackers may still write theirs.
    before = {path.name for path in workspace.parent.iterdir()}
    outcome = whet("train", "my.yaml")
    assert outcome.code == 0, outcome.err
    assert whet("inspect", "my.yaml").code == 0
    assert files_outside(workspace, "out", "last_run_prepared", "data", "model") == {"my.yaml", "rows.jsonl"}
    assert {path.name for path in workspace.parent.iterdir()} == before


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "run.json.tmp", "eval", "checkpoint-1", ".whet-lock", "eval/examples"]
)
def test_a_link_in_the_output_folder_that_leads_out_of_it_is_refused(name: str, workspace: Path, whet: Whet) -> None:
    target = workspace / "precious"
    target.write_text("mine")
    link = workspace / "out" / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    outcome = whet("train", "my.yaml")
    assert outcome.code == 2
    assert f"output_dir: 'out/{name}' is a link to '{target}', outside of the folder -> remove the link" in outcome.err
    assert target.read_text() == "mine"


def test_a_page_takes_the_place_of_a_link(workspace: Path, whet: Whet) -> None:
    (workspace / "precious").write_text("mine")
    (workspace / "out").mkdir()
    (workspace / "out" / "inspect-my.html").symlink_to(workspace / "precious")
    assert whet("inspect", "my.yaml").code == 0
    assert (workspace / "precious").read_text() == "mine"
    assert "<html" in (workspace / "out" / "inspect-my.html").read_text()


def test_the_output_folder_may_be_a_link_and_hold_links_within(tmp_path: Path) -> None:
    (tmp_path / "real" / "checkpoint-1").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "latest").symlink_to("checkpoint-1")
    assert link_leading_out(tmp_path / "out") is None
    (tmp_path / "real" / "checkpoint-1" / "a").symlink_to("/nowhere")
    assert link_leading_out(tmp_path / "out") == tmp_path / "out" / "checkpoint-1" / "a"


@pytest.mark.parametrize(
    "files",
    [
        {"../secret": {"bytes": 4, "sha256": "x"}},
        {"/dev/zero": {"bytes": 0, "sha256": "x"}},
        {"a\0b": {"bytes": 4, "sha256": "x"}},
        {"link": {"bytes": 4, "sha256": "x"}},
        {"a": 7},
        ["a"],
        {"a": {}},
        None,
    ],
)
def test_a_manifest_of_others_names_files_of_its_checkpoint_alone(files: object, tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-1"
    checkpoint.mkdir()
    (tmp_path / "secret").write_text("mine")
    os.symlink(tmp_path / "secret", checkpoint / "link")
    (checkpoint / MANIFEST).write_text(json.dumps({"step": 1, "files": files}))
    reason = what_is_wrong(checkpoint)
    assert reason is not None
    assert MANIFEST in reason


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, "7", "null", "\0", '{"files": 1e999}'])
def test_a_manifest_that_is_none_is_no_reason_to_fail(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(text)
    assert what_is_wrong(tmp_path) is not None
