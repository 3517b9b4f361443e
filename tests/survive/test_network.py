"""A hub or a tracker that goes away while a run goes on: the run ends well, and `whet push` sends what they missed."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.ports import free_port
from tests.survive.conftest import CONFIG, EVERYTHING, LORA, Place, Undisturbed, artefacts, steps

HUB = "hub_model_id: tiny\n"


def uploads(place: Place) -> list[tuple[str, str]]:
    """(source, place in the repository) of what the hub has taken, in order."""
    log = place.folder / "hub.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [("result" if line["source"] == "out" else line["source"], line["place"]) for line in lines]


def names(place: Place, number: int = -1) -> list[str]:
    found: list[str] = json.loads((place.folder / "hub.jsonl").read_text().splitlines()[number])["names"]
    return found


def waiting(place: Place) -> list[tuple[str, str, str]]:
    queue = place.out / "uploads.json"
    entries = json.loads(queue.read_text())["waiting"] if queue.exists() else []
    return [(entry["to"], entry["source"], entry["place"]) for entry in entries]


LEAVING = [
    pytest.param("every_save", 1, [("hub", ".", "")], id="every_save"),
    pytest.param("checkpoint", 2, [("hub", "checkpoint-9", "last-checkpoint"), ("hub", ".", "")], id="checkpoint"),
    *(
        [
            pytest.param("end", 1, [("hub", ".", "")], id="end"),
            pytest.param(
                "all_checkpoints",
                1,
                [("hub", f"checkpoint-{step}", f"checkpoint-{step}") for step in (3, 6, 9)] + [("hub", ".", "")],
                id="all_checkpoints",
            ),
        ]
        if EVERYTHING
        else []
    ),
]


@pytest.mark.parametrize(("strategy", "leaves_at", "left"), LEAVING)
def test_a_hub_that_goes_away_ends_no_run_and_gets_everything_later(
    strategy: str, leaves_at: int, left: list[Any], place: Place, undisturbed: Undisturbed
) -> None:
    place.configure(CONFIG + LORA + HUB + f"hub_strategy: {strategy}\n")
    fake = {"before": "tests.survive.fakes:hub"}
    ended = place.run("train", "my.yaml", options={"leaves_at": leaves_at}, **fake)
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert "nothing is lost, it is queued on disk -> when it can be reached: whet push my.yaml" in ended.err
    assert artefacts(place.out) == undisturbed.artefacts
    assert steps(place.out) == undisturbed.steps
    assert waiting(place) == left

    still_gone = place.run("push", "my.yaml", **fake)
    assert still_gone.code == 2
    assert len(still_gone.errors) == 1, still_gone.err
    assert waiting(place) == left

    before = len(uploads(place))
    (place.folder / "gone").unlink()
    pushed = place.run("push", "my.yaml", **fake)
    assert pushed.code == 0, pushed.err
    assert uploads(place)[before:] == [("result" if source == "." else source, at) for _, source, at in left]
    assert waiting(place) == []
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "run.json"} <= set(names(place))
    assert not [name for name in names(place) if name.startswith(("checkpoint-", "merged/", "uploads"))]

    again = place.run("push", "my.yaml", **fake)
    assert again.code == 0, again.err
    assert uploads(place)[-1] == ("result", "")
    place.tally.tried("the hub refuses connections", when=f"training, hub_strategy {strategy}")


def test_a_hub_that_is_there_gets_checkpoints_while_it_trains(place: Place) -> None:
    """And the output folder does not look like a finished run meanwhile: nothing of a checkpoint is copied into it."""
    place.configure(CONFIG + LORA + HUB + "hub_strategy: checkpoint\n")
    ended = place.run("train", "my.yaml", before="tests.survive.fakes:hub")
    assert ended.code == 0, ended.err
    found = uploads(place)
    assert found[-1] == ("result", "")
    assert ("checkpoint-9", "last-checkpoint") in found
    models = [number for number, (source, at) in enumerate(found) if source != "result" and at == ""]
    for number in models:
        sent = set(names(place, number))
        assert "adapter_model.safetensors" in sent
        assert not sent & {"optimizer.pt", "scheduler.pt", "trainer_state.json", "whet-checkpoint.json"}
    assert waiting(place) == []


def test_a_hub_that_is_not_there_before_training_is_an_error(place: Place) -> None:
    place.configure(CONFIG + LORA + HUB)
    (place.folder / "gone").touch()
    ended = place.run("train", "my.yaml", before="tests.survive.fakes:hub")
    assert ended.code == 2
    assert "hub_model_id: 'tiny' cannot be opened on the hub" in ended.errors[0]
    nothing = place.run("push", "my.yaml", before="tests.survive.fakes:hub")
    assert nothing.code == 2
    assert "has not ended, and nothing of it waits to be pushed -> train it: whet train my.yaml" in nothing.err


def test_there_is_nothing_to_push_without_a_repository(place: Place) -> None:
    ended = place.run("push", "my.yaml")
    assert ended.code == 2
    assert "hub_model_id is not set -> name a repository" in ended.errors[0]


# -- trackers -----------------------------------------------------------------------------------------------------


class MLflowServer:
    """Answers what MLflow's client asks, until it is asked for a step; from then on nobody listens.

    Attributes:
        metrics: (name, step) -> value, of what has come.
    """

    def __init__(self, port: int, leaves_at: int = 0) -> None:
        self.metrics: dict[tuple[str, int], float] = {}
        self.ended = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self._answer()

            do_PATCH = do_POST

            def _answer(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
                metrics = body.get("metrics", [])
                if leaves_at and any(metric["step"] >= leaves_at for metric in metrics):
                    owner.server.socket.close()
                    self.close_connection = True
                    return
                owner.metrics.update({(metric["key"], metric["step"]): metric["value"] for metric in metrics})
                if self.path.endswith("runs/update") and body.get("status") == "FINISHED":
                    owner.ended.set()
                answer = json.dumps(
                    {"run": _RUN, "experiment": _EXPERIMENT, "experiment_id": "0", "run_info": _RUN["info"]}
                )
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer.encode())

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # its socket is closed: that is how it leaves
            self.server.serve_forever(poll_interval=0.05)

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()


_EXPERIMENT = {"experiment_id": "0", "name": "Default", "artifact_location": "x", "lifecycle_stage": "active"}
_RUN = {
    "info": {
        "run_id": "made-up-run",
        "run_uuid": "made-up-run",
        "run_name": "made up",
        "experiment_id": "0",
        "user_id": "x",
        "status": "RUNNING",
        "start_time": 0,
        "artifact_uri": "x",
        "lifecycle_stage": "active",
    },
    "data": {},
}


@pytest.fixture
def mlflow_server() -> Iterator[MLflowServer]:
    server = MLflowServer(free_port(), leaves_at=5)
    yield server
    server.server.server_close()


def test_a_tracker_that_goes_away_ends_no_run_and_gets_its_figures_later(
    mlflow_server: MLflowServer, place: Place, undisturbed: Undisturbed
) -> None:
    place.configure(CONFIG + LORA + f"mlflow_tracking_uri: http://127.0.0.1:{mlflow_server.port}\n")
    ended = place.run("train", "my.yaml")
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert "mlflow takes no more figures" in ended.err
    assert "-> when it is there again: whet push my.yaml" in ended.err
    assert artefacts(place.out) == undisturbed.artefacts
    assert steps(place.out) == undisturbed.steps
    assert {step for name, step in mlflow_server.metrics if name == "loss"} == {1, 2, 3, 4}
    assert waiting(place) == [("mlflow", "made-up-run", "")]

    still_gone = place.run("push", "my.yaml")
    assert still_gone.code == 2
    assert "they stay queued" in still_gone.errors[0]
    back = MLflowServer(mlflow_server.port)
    pushed = place.run("push", "my.yaml")
    assert pushed.code == 0, pushed.err
    told = {("loss", line["step"]): line["loss"] for line in undisturbed.steps if line["kind"] == "train"}
    figures = {**mlflow_server.metrics, **back.metrics}
    assert {key: value for key, value in figures.items() if key[0] == "loss"} == told
    assert back.ended.is_set()
    assert waiting(place) == []
    back.close()
    place.tally.tried("a tracker refuses connections", when="training, MLflow")


def test_a_tracker_that_is_not_there_before_training_is_an_error(place: Place) -> None:
    place.configure(CONFIG + LORA + "mlflow_tracking_uri: http://127.0.0.1:9\n")
    ended = place.run("train", "my.yaml", environment={"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"})
    assert ended.code == 2, ended.err
    assert "Traceback" not in ended.err
    assert "mlflow cannot be used" in ended.errors[0]


@pytest.mark.skipif(not EVERYTHING, reason="make survive runs it: wandb takes seconds to start")
def test_wandb_that_goes_away_ends_no_run_and_its_log_stays_queued(place: Place, undisturbed: Undisturbed) -> None:
    place.configure(CONFIG + LORA + "wandb_project: tiny\nwandb_mode: offline\n")
    ended = place.run("train", "my.yaml", before="tests.survive.fakes:lost_wandb", options={"step": 5})
    assert ended.code == 0, ended.err
    assert "wandb takes no more figures ([Errno 111] Connection refused)" in ended.err
    assert artefacts(place.out) == undisturbed.artefacts
    ((receiver, log, _),) = waiting(place)
    assert receiver == "wandb"
    assert log
    place.tally.tried("a tracker refuses connections", when="training, W&B (made to fail)")
