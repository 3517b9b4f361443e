"""The environment of this process, which libraries read their settings from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def environment_put_back() -> Iterator[None]:
    """Variables that are set within, for this run's trackers and by libraries, are gone again when it ends.

    Else the next run of the same process would report to the first one's trackers, and into its folder. After an error
    they stay: trackers end what they have begun when the process ends, and look for it there.
    """
    before = dict(os.environ)
    yield
    for name in [name for name in os.environ if name not in before]:
        del os.environ[name]
    for name, value in before.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
