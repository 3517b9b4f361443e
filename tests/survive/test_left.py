"""The account of who is left of a command finds them: a law that could not fail would say nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.survive.left import left_of

OUTLIVED = "import subprocess; subprocess.Popen(['sleep', '300'], stdout=subprocess.DEVNULL)"


def test_a_process_that_outlives_its_command_is_named_and_one_that_ends_is_not() -> None:
    command = subprocess.Popen([sys.executable, "-c", OUTLIVED], start_new_session=True)
    command.wait()
    try:
        (left,) = left_of(command.pid, 0.0)
        assert left == "sleep 300"
    finally:
        os.killpg(command.pid, signal.SIGKILL)
    assert left_of(command.pid, 60.0) == []
