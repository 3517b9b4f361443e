"""Stochastic rounding from float32 to bfloat16: up or down at random, so that the mean is the number itself.

bfloat16 has 8 bits of precision: an update below 1/512 of a weight would be rounded away every time. Rounded at random
it moves the weight once in so many steps, by so much more (Gupta et al., arXiv:1502.02551, section 3).
"""

from __future__ import annotations

import torch

_LOW_BITS = 0xFFFF


def round_stochastically(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """bfloat16 neighbours of ``values`` (float32), each taken with the probability that makes the mean exact.

    What is no number stays what it is. The two neighbours differ in the upper 16 bits, so adding a random number below
    2^16 to all 32 and dropping the lower 16 carries with just that probability.
    """
    assert values.dtype == torch.float32
    noise = torch.randint(_LOW_BITS + 1, values.shape, generator=generator, device=values.device, dtype=torch.int32)
    rounded = noise.add_(values.view(torch.int32)).bitwise_and_(~_LOW_BITS).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values).to(torch.bfloat16)


class Rounding:
    """The random numbers of a run's roundings: a function of seed, step and parameter, so that a resumed run has them.

    Args:
        seed: of the run.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def __call__(self, values: torch.Tensor, step: int, index: int) -> torch.Tensor:
        """``values`` in bfloat16, for parameter ``index`` in ``step``."""
        generator = self._generators.get(values.device)
        if generator is None:
            generator = self._generators[values.device] = torch.Generator(values.device)
        generator.manual_seed(((self._seed * 1_000_003 + step) * 1_000_003 + index) % 2**63)
        return round_stochastically(values, generator)
