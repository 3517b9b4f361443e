"""At any moment each dataset has its share of what was dealt, to within one sample."""

from __future__ import annotations

import numpy as np
import pytest

from whet.data.interleave import next_of, whole_weights


@pytest.mark.parametrize("num_datasets", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("longest", [1, 500])
def test_every_dataset_has_its_share_to_within_one_sample(num_datasets: int, longest: int) -> None:
    random = np.random.default_rng(num_datasets)
    weights = whole_weights(random.exponential(size=num_datasets).round(3) + 0.001)
    shares = np.array(weights) / sum(weights)
    heads = random.integers(1, longest + 1, num_datasets).tolist()
    dealt = [0] * num_datasets
    for _ in range(3000):
        chosen = next_of(weights, dealt, heads)
        dealt[chosen] += heads[chosen]
        heads[chosen] = int(random.integers(1, longest + 1))
        assert np.abs(np.array(dealt) - shares * sum(dealt)).max() <= longest


def test_weights_become_whole_numbers_in_the_same_proportion() -> None:
    assert whole_weights([1, 1, 2]) == [1, 1, 2]
    assert whole_weights([0.25, 0.75]) == [1, 3]
    assert whole_weights([1 / 3, 2 / 3]) == [1, 2]
    assert min(whole_weights([1e-9, 1.0])) == 1
