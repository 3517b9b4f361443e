"""Bytes alive are counted once a storage, and of what is known not at all."""

from __future__ import annotations

import torch

from whet.model.memory.accounting import LiveBytes, tensor_bytes


def test_views_and_known_tensors_do_not_count() -> None:
    weight = torch.ones(8, 8)
    with LiveBytes(known=[weight]) as alive:
        views = [weight.t(), weight[2:]]
        product = weight @ views[0]
        assert alive.now() == product.nbytes == tensor_bytes([product, product.t(), product[:1]])
        del product
        assert alive.now() == 0
    assert alive.peak == 8 * 8 * 4


def test_a_freed_known_tensor_hides_no_other() -> None:
    """Its address may be given to the next one of its size."""
    known = [torch.ones(1024)]
    with LiveBytes(known=known) as alive:
        known.clear()
        made = [torch.ones(1024) for _ in range(4)]
        assert alive.now() == sum(tensor.nbytes for tensor in made)
