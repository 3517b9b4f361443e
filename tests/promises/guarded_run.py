"""A run from its first command to its last, watched: started as a process of its own by `test_safe_run`.

Every socket, every name that is looked up, every process that is started and every class that a pickle names is
written down by an audit hook (`sys.addaudithook`, which cannot be taken off again: hence the process). Rows come from a
server of this process, at an address with a password and a signature in it; that is the one address that may be asked.
It is the hub too, which first refuses a push, with all that it was told, and then keeps in ``hub/`` what is pushed.

    python guarded_run.py WORKSPACE REPORT
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import pickle
import socket
import struct
import sys
import threading
import traceback
from collections import OrderedDict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

EVENTS: dict[str, list[str]] = {"network": [], "pickle": [], "process": [], "asked": []}
PHASE = ["start"]
OID = "0123456789abcdef0123456789abcdef01234567"


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "pickle.find_class":
        EVENTS["pickle"].append(f"{arguments[0]}.{arguments[1]}")
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        if not isinstance(arguments[1], str | bytes):  # a path: a socket of this machine
            EVENTS["network"].append(f"{PHASE[0]}: {event} {arguments[1]}")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        EVENTS["network"].append(f"{PHASE[0]}: {event} {arguments[0]}")
    elif event in ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"):
        EVENTS["process"].append(f"{PHASE[0]}: {arguments[0]} {arguments[1] if len(arguments) > 1 else ''}"[:300])


def loopback_up() -> None:
    """In a network namespace of its own even the loopback device is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as device, suppress(OSError):
        fcntl.ioctl(device, 0x8914, struct.pack("16sh", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS, IFF_UP | IFF_RUNNING


def serve(workspace: Path) -> int:
    rows = (workspace / "rows.jsonl").read_bytes()

    class Rows(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            is_there = "rows.jsonl" in self.path
            self.heard()
            self.answer(200 if is_there else 403, rows if is_there else b"")

        def do_HEAD(self) -> None:
            self.heard()
            self.send_response(200 if "rows.jsonl" in self.path else 403)
            self.send_header("Content-Length", str(len(rows)))
            self.end_headers()

        def do_POST(self) -> None:
            sent = self.rfile.read(int(self.headers["Content-Length"]))
            self.heard()
            if PHASE[0] == "push refused":
                told = f"not for {self.headers['Authorization']}, nor http://{self.headers['Authorization']}@host/"
                self.answer(403, json.dumps({"error": told}).encode(), {"X-Error-Message": told})
                return
            host = f"http://{self.headers['Host']}"
            reply: dict[str, Any] = {"url": f"{host}/me/x", "commitUrl": f"{host}/me/x/commit/{OID}", "commitOid": OID}
            if "/preupload/" in self.path:
                names = [file["path"] for file in json.loads(sent)["files"]]
                reply = {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
            elif "/commit/" in self.path:
                self.keep([json.loads(line) for line in sent.splitlines()])
            self.answer(200, json.dumps(reply).encode())

        def keep(self, operations: list[dict[str, Any]]) -> None:
            for number, operation in enumerate(operations):
                if operation["key"] == "file":
                    place = workspace / "hub" / operation["value"]["path"]
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(base64.b64decode(operation["value"]["content"]))
                else:
                    (workspace / f"hub-{number}.json").write_text(json.dumps(operation))

        def heard(self) -> None:
            token = "the hub's token" if "Bearer" in (self.headers["Authorization"] or "") else "no token"
            EVENTS["asked"].append(f"{PHASE[0]}: {self.path.partition('?')[0]} with {token}")

        def answer(self, code: int, content: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Rows)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def main(workspace: Path, report: Path) -> None:
    os.chdir(workspace)
    loopback_up()
    port = serve(workspace)
    os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{port}"  # read as the hub's package is imported
    for name in ("my.yaml", "refused.yaml", "mistaken.yaml", "again.json"):
        file = workspace / name
        file.write_text(file.read_text().replace("PORT", str(port)))
    sys.addaudithook(watch)
    PHASE[0] = "proof"  # that the hook hears what it is for
    pickle.loads(pickle.dumps(OrderedDict()))
    with suppress(OSError):
        socket.getaddrinfo("telemetry.invalid", 443)

    from whet import stages
    from whet.artefacts import push
    from whet.cli.main import run_command

    codes: dict[str, int] = {}

    def run(name: str, *words: str) -> None:
        PHASE[0] = name
        codes[name] = run_command(list(words))

    resolve_run = stages.resolve_run

    secret = json.loads((workspace / "planted.json").read_text())

    def fail(config: Any) -> None:
        error = RuntimeError(f"a fault of ours at {config.data.datasets[0].path}")
        error.add_note(f"a note about {secret['header']}")
        raise error from ValueError(f"{secret['kwargs']} {secret['environment secret']}")

    def lost(*_: object) -> str:
        raise ConnectionError(f"no route to http://me:{secret['line']}@host/x for {secret['environment key']}")

    on_the_line = ("--mlflow-tracking-uri", f"http://me:{secret['line']}@host/x")
    try:
        run("check", "check", "my.yaml", *on_the_line)
        run("preprocess", "preprocess", "my.yaml", *on_the_line)
        run("preprocess debug", "preprocess", "my.yaml", "--debug")
        run("train", "train", "my.yaml", *on_the_line)
        run("resume", "train", "my.yaml", "--resume-from-checkpoint", "out/checkpoint-2")
        run("explain", "preprocess", "my.yaml", "--explain", "--sequence-len", "120")
        run("config explain", "config", "explain", "my.yaml", *on_the_line)
        run("inspect", "inspect", "my.yaml")
        run("inspect terminal", "inspect", "my.yaml", "--terminal", "--rows", "2")
        run("merge", "merge-lora", "my.yaml")
        run("export-gguf", "export-gguf", "my.yaml")
        run("evaluate", "evaluate", "my.yaml", "--val-set-size", "4")
        push._TRACKERS = {"mlflow": lost}
        waiting = {"to": "mlflow", "source": "abc", "step": 1}
        (workspace / "out" / "uploads.json").write_text(json.dumps({"waiting": [waiting]}))
        run("push refused", "push", "my.yaml", "--hub-model-id", "me/x", *on_the_line)
        push._TRACKERS = {"mlflow": lambda *_: "what was lost"}
        run("push", "push", "my.yaml", "--hub-model-id", "me/x")
        run("rerun refused", "rerun", "out/run.json")
        run("rerun", "rerun", "out/run.json", *json.loads((workspace / "again.json").read_text()))
        run("chat", "chat", "my.yaml", "--prompt", "What is 1 + 1?", "--max-new-tokens", "2")
        run("refused", "preprocess", "refused.yaml")
        run("mistaken", "train", "mistaken.yaml")
        stages.resolve_run = fail
        run("fault", "train", "my.yaml")
        stages.resolve_run = resolve_run
    except BaseException:  # noqa: BLE001 - the report must be written; the test shows it
        codes["crashed"] = 1
        traceback.print_exc()
    PHASE[0] = "end"
    sys.stdout.flush()
    sys.stderr.flush()
    report.write_text(json.dumps({"codes": codes, "port": port, **EVENTS}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
