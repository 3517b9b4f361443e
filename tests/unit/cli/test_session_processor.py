"""Waiting threads sleep and caches stay small, unless the user wants it otherwise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest

from whet.cli.session import settle_on_processor


@pytest.fixture(autouse=True)
def _environment_of_its_own() -> Iterator[None]:
    with patch.dict(os.environ):
        for name in ("OMP_WAIT_POLICY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
            os.environ.pop(name, None)
        yield


def test_threads_that_wait_sleep_and_caches_of_compiled_products_are_small() -> None:
    settle_on_processor()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == os.environ["LRU_CACHE_CAPACITY"] == "64"


def test_what_the_user_has_set_stays() -> None:
    os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
    settle_on_processor()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
