"""Which matrices hold signal: noise has next to none, structure raises it, the highest of each kind are trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.models import tiny_model
from tests.tiny_training import make_resolved

from whet.core.errors import ModelError
from whet.model.spectrum import Measured, choose, marchenko_pastur_median, signal_to_noise, train_by_spectrum


def noise(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(300, 300), (64, 512), (512, 64)])
def test_noise_has_less_signal_than_noise_with_structure(shape: tuple[int, int]) -> None:
    plain = noise(*shape)
    left, right = torch.linalg.qr(noise(shape[0], 8, 1)).Q, torch.linalg.qr(noise(shape[1], 8, 2)).Q
    edge = 0.02 * (shape[0] ** 0.5 + shape[1] ** 0.5)
    assert signal_to_noise(plain) * edge < 0.1
    assert signal_to_noise(plain + 2 * edge * left @ right.T) > 3 * signal_to_noise(plain)


def test_the_scale_of_a_matrix_enters_by_its_largest_value_alone() -> None:
    """The paper divides by the largest singular value, so a matrix ten times as large counts a tenth."""
    weight = noise(64, 128) + torch.outer(torch.ones(64), torch.ones(128)) * 0.02
    assert signal_to_noise(10 * weight) == pytest.approx(signal_to_noise(weight) / 10, rel=1e-4)
    assert signal_to_noise(torch.zeros(4, 4)) == 0.0


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_the_median_is_that_of_random_matrices(ratio: float) -> None:
    columns = 800
    drawn = np.random.default_rng(0).standard_normal((int(ratio * columns), columns))
    found = float(np.median(np.linalg.svd(drawn, compute_uv=False)) ** 2 / columns)
    assert marchenko_pastur_median(ratio) == pytest.approx(found, rel=0.01)


def test_kinds_are_ranked_apart() -> None:
    measured = [Measured(f"layers.{n}.{kind}", kind, float(n)) for n in range(4) for kind in ("up", "down")]
    assert [each.name for each in choose(measured, 0.5) if each.is_trained] == [
        "layers.2.up",
        "layers.2.down",
        "layers.3.up",
        "layers.3.down",
    ]
    assert sum(each.is_trained for each in choose(measured, 0.01)) == 2


def test_the_chosen_and_the_ends_are_trained_and_written_down(tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, spectrum_top_fraction=0.5, spectrum_model_name="x")
    model = tiny_model(num_hidden_layers=4, tie_word_embeddings=False)
    train_by_spectrum(model, resolved.config, resolved)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    told = json.loads((tmp_path / "spectrum.json").read_text())["matrices"]
    chosen = {row["name"] for row in told if row["is_trained"]}
    assert len(chosen) == 14
    assert trained == chosen | {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_model_without_numbered_layers_is_refused(tmp_path: Path) -> None:
    resolved = make_resolved(tmp_path, spectrum_top_fraction=0.5)
    model = tiny_model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="no numbered layers with matrices -> write unfrozen_parameters"):
        train_by_spectrum(model, resolved.config, resolved)
