"""Spectrum (Hartford et al., 2024, arXiv:2406.06623): train the matrices with most signal over noise, freeze the rest.

A matrix of m x n independent entries of one variance has singular values up to sigma (sqrt(m) + sqrt(n)), the edge of
the Marchenko-Pastur law. What lies above is signal. The paper estimates sigma from the interquartile range of the
singular values; here it is their median over the law's own (Gavish and Donoho, 2014, arXiv:1305.5870).
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from whet.config import Config
from whet.config.resolve import ResolvedRun
from whet.core.errors import ModelError, Problem
from whet.core.log import say

FILE = "spectrum.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """A matrix of the layers.

    Attributes:
        name: of the parameter.
        kind: the name without its layer's number; matrices of one kind are ranked against each other.
        signal_to_noise: singular values above the edge over those below, divided by the largest.
        is_trained: whether it is among the highest of its kind.
    """

    name: str
    kind: str
    signal_to_noise: float
    is_trained: bool = False


def train_by_spectrum(model: PreTrainedModel, config: Config, resolved: ResolvedRun) -> None:
    """Freeze all but the `spectrum_top_fraction` of the matrices of each kind, the embedding and the head.

    The measurements are written to ``spectrum.json`` in the run's folder.

    Raises:
        ModelError: the model has no numbered layers with matrices.
    """
    fraction = config.model.spectrum_top_fraction
    assert fraction is not None
    measured = choose(measure(model, resolved.device), fraction)
    if not measured:
        found = "spectrum_top_fraction: the model has no numbered layers with matrices"
        where = config.where("spectrum_top_fraction")
        raise ModelError(Problem(where, found, "write unfrozen_parameters", "spectrum_top_fraction"))
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings()) if end is not None}
    trained = {each.name for each in measured if each.is_trained}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained or id(parameter) in ends)
    if resolved.hardware.rank == 0:
        _write(measured, fraction, Path(resolved.output_dir))
    say(f"spectrum: {len(trained)} of {len(measured)} matrices, the embedding and the head are trained ({FILE})")
    if config.model.spectrum_model_name:
        say("spectrum: measured here, so spectrum_model_name is not looked up")


def measure(model: torch.nn.Module, device: str = "cpu") -> list[Measured]:
    """The signal-to-noise ratio of each matrix in a numbered layer."""
    found = []
    for name, parameter in model.named_parameters():
        kind = re.sub(r"\.\d+\.", ".*.", name)
        if kind != name and parameter.ndim == 2:
            found.append(Measured(name, kind, signal_to_noise(parameter.detach().to(device))))
    return found


def choose(measured: list[Measured], fraction: float) -> list[Measured]:
    """The same with the highest of each kind chosen: ``fraction`` of them, rounded, and at least one."""
    chosen: set[str] = set()
    for kind in dict.fromkeys(each.kind for each in measured):
        ranked = sorted((each for each in measured if each.kind == kind), key=lambda each: -each.signal_to_noise)
        chosen |= {each.name for each in ranked[: max(1, round(fraction * len(ranked)))]}
    return [Measured(each.name, each.kind, each.signal_to_noise, each.name in chosen) for each in measured]


def signal_to_noise(weight_MN: torch.Tensor) -> float:
    """Sum of the singular values above the edge of the noise over the sum of those below, over the largest of all.

    0 for a matrix that is noise alone.
    """
    values = torch.linalg.svdvals(weight_MN.float()).double().cpu()
    rows, columns = sorted(weight_MN.shape)
    largest, ratio = float(values[0]), rows / columns
    if largest == 0:
        return 0.0
    sigma = float(values.median()) / math.sqrt(columns * marchenko_pastur_median(ratio))
    is_signal = values > sigma * (math.sqrt(rows) + math.sqrt(columns))
    noise = float(values[~is_signal].sum())
    return float(values[is_signal].sum()) / max(noise, 1e-12) / largest


@cache
def marchenko_pastur_median(ratio: float) -> float:
    """Median eigenvalue of the Marchenko-Pastur law with unit variance.

    Args:
        ratio: rows over columns, in (0, 1].

    >>> round(marchenko_pastur_median(0.5), 3)
    0.836
    """
    low, high = (1 - math.sqrt(ratio)) ** 2, (1 + math.sqrt(ratio)) ** 2
    angles = np.linspace(0, math.pi, 20_001)[1:-1]
    # With x = mid - half cos(angle), density times dx is sin^2(angle) / x up to a constant: smooth at both edges.
    x = (low + high) / 2 - (high - low) / 2 * np.cos(angles)
    mass = np.cumsum(np.sin(angles) ** 2 / x)
    return float(np.interp(mass[-1] / 2, mass, x))


def _write(measured: list[Measured], fraction: float, folder: Path) -> None:
    rows = [
        {"name": each.name, "signal_to_noise": each.signal_to_noise, "is_trained": each.is_trained} for each in measured
    ]
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"spectrum_top_fraction": fraction, "matrices": rows}, indent=1)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
