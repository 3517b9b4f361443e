"""Nobody who proves an artefact outlives the command that asked for the proof."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from whet.artefacts import fresh_script

PATIENCE = 60.0

# A fresh process whose job says who it is, and never ends.
FRESH = f"""
import importlib.util, os, signal
spec = importlib.util.spec_from_file_location("fresh_script", {fresh_script.__file__!r})
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script._result = lambda job: (print(os.getppid(), os.getpid(), flush=True), signal.pause())
script.end_with_parent()
script._in_a_fork({{}})
"""
STARTER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {FRESH!r}])"


@pytest.mark.skipif(sys.platform != "linux", reason="no other system ends a process with its parent")
@pytest.mark.parametrize("killed", ["the command", "the fresh process"])
def test_a_job_ends_with_the_process_that_asked_for_it(killed: str) -> None:
    """SIGKILL gives nobody a chance to end others; and closing a fresh process kills that one, not its job."""
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert starter.stdout is not None
        fresh, job = map(int, starter.stdout.readline().split())
        ends = [os.pidfd_open(pid) for pid in (fresh, job)]
        os.kill(starter.pid if killed == "the command" else fresh, signal.SIGKILL)
        for end in ends:
            assert select.select([end], [], [], PATIENCE)[0], "it lives on"
            os.close(end)
        starter.stdout.close()
    finally:
        with suppress(ProcessLookupError):  # nobody is left, as it should be
            os.killpg(starter.pid, signal.SIGKILL)
        starter.wait()
