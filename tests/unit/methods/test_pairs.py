"""Figures of ranks that hold different numbers of pairs."""

from __future__ import annotations

import pytest
import torch

from whet.methods.pairs import Figures


@pytest.mark.parametrize("kept", [Figures({}, []), Figures({"rewards": [1.0, 3.0]}, [2, 1])], ids=["none", "some"])
def test_ranks_go_on_with_figures_that_were_shared_out(kept: Figures) -> None:
    """Right after a line of the log there are none to share out."""
    ranks = [
        Figures({"rewards": [*part.values.get("rewards", ()), float(rank)]}, [*part.num_pairs, rank + 1])
        for rank, part in enumerate(kept.shared_out(3))
    ]
    sums: list[torch.Tensor] = []
    for each in ranks:
        each.means(lambda ours: (sums.append(ours), ours)[1])
    found = ranks[0].means(lambda ours: torch.stack(sums).sum(0))
    pairs = [*zip(kept.values.get("rewards", ()), kept.num_pairs, strict=True), (0.0, 1), (1.0, 2), (2.0, 3)]
    mean = sum(value * count for value, count in pairs) / sum(count for _, count in pairs)
    assert found == {"rewards": pytest.approx(mean)}
