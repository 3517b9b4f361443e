"""Ports for servers and ranks of tests."""

from __future__ import annotations

import itertools
import os
import socket

_FIRST, _COUNT = 20_000, 12_000
"""Below the ports that Linux gives to whoever asks for any (from 32,768), so that nobody gets one by chance between the
moment that it is looked for and the moment that it is used."""
_TRIED = itertools.count(os.getpid() * 7_417)
"""Test processes that run side by side have pids near one another, and begin far apart: 7,417 is the golden share of
12,000, by which 20 neighbours are at least 421 ports from each other."""


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    for number in itertools.islice(_TRIED, _COUNT):
        port = _FIRST + number % _COUNT
        with socket.socket() as found:
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise AssertionError("no port is free")
