"""Noise of frame blocks, which depends only on the seed and the block's number."""

from itertools import pairwise
from typing import Any

import pytest
import torch

from paradit.sampling.noise import BlockNoise, IndependentNoise, PooledNoise

FRAME = 3, 2, 4


@pytest.mark.parametrize("context", [0, 1, 3, 4])
def test_a_window_has_every_frame_of_the_pool_once(context: int) -> None:
    noise = PooledNoise(FRAME, 5, 4, context)
    blocks = [noise.frames_of(number) for number in range(50)]
    for left, own in pairwise(blocks):
        window = [*left[len(left) - context :], *own]
        assert sorted(window) == list(range(4 + context))
    assert {tuple(block) for block in blocks} != {tuple(blocks[0])}


@pytest.mark.parametrize(
    "make", [lambda s: PooledNoise(FRAME, s, 4, 2), lambda s: IndependentNoise(FRAME, s, 4)]
)
def test_in_any_order_and_by_seed(make: Any) -> None:
    noise: BlockNoise = make(5)
    blocks = [noise.block(number) for number in range(6)]
    assert blocks[0].shape == (1, 3, 4, 2, 4) and blocks[0].dtype == torch.float32
    for number in (3, 0, 5, 5, 1):
        assert torch.equal(make(5).block(number), blocks[number])
        assert torch.equal(noise.block(number), blocks[number])
    assert not any(torch.equal(make(6).block(number), blocks[number]) for number in range(6))


def test_independent_blocks_share_nothing() -> None:
    noise = IndependentNoise(FRAME, 0, 2)
    values = torch.cat([noise.block(number).flatten() for number in range(300)])
    assert len(values.unique()) > 0.999 * len(values)
    assert abs(float(values.mean())) < 0.02 and abs(float(values.std()) - 1) < 0.02
