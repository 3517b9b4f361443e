"""The package's own names: all there, and none of them paid for before it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import whet


@pytest.mark.parametrize("name", whet.__all__)
def test_every_public_name_can_be_had(name: str) -> None:
    assert getattr(whet, name) is not None


def test_importing_whet_imports_nothing_else() -> None:
    heavy = "('torch', 'pydantic', 'transformers', 'numpy')"
    code = f"import sys, whet; print(sorted(m for m in {heavy} if m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        whet.trian  # noqa: B018
