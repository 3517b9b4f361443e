"""Methods whose data can be prepared and that do not train yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from whet import run
from whet.config import make_config
from whet.core.errors import ConfigError


@pytest.mark.parametrize("method", [{"rl": "kto"}, {"reward_model": True}, {"process_reward_model": True}])
def test_a_method_that_is_not_built_is_refused_before_anything_is_made(method: dict[str, Any], tmp_path: Path) -> None:
    values = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [{"path": "org/d"}]}
    config = make_config({**values, **method, "output_dir": str(tmp_path / "out")})
    for command in (run.train, run.evaluate):
        with pytest.raises(ConfigError, match="is not built: its data can be prepared and looked at"):
            command(config)
    assert not (tmp_path / "out").exists()


def test_a_method_that_is_not_built_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text("base_model: org/m\nlearning_rate: 1e-4\nrl: orpo\ndatasets: [{path: org/d}]\n")
    code = (
        "import sys; from whet.cli.main import main\n"
        f"try: main(['train', {str(file)!r}])\n"
        "except BaseException as error: print(type(error).__name__, error)\n"
        "print([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "training with rl: orpo is not built" in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
