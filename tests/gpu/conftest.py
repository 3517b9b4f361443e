"""The laws that hold on a CPU, on a GPU. Without one these tests are skipped, and say so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.skip(reason="NO GPU HERE: nothing of tests/gpu was checked"))


@pytest.fixture(autouse=True)
def float32_products_are_float32() -> Iterator[None]:
    """A run allows TensorFloat-32 for its whole process; no test inherits that from the one before it."""
    torch.backends.fp32_precision = "ieee"
    yield
    torch.backends.fp32_precision = "none"
