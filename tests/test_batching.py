"""Rows of similar length share a batch, so that short questions are not padded to the longest one."""

import random

import pytest

from sttm.engine.batching import batches


def test_much_longer_rows_are_apart_and_the_shortest_come_first() -> None:
    assert batches([9, 5000, 8], 64) == [[2, 0], [1]]
    assert batches([10] * 15 + [1513], 64) == [list(range(15)), [15]]
    assert batches([30, 12, 45], 64) == [[1, 0, 2]]
    assert batches([1] * 5, 2) == [[0, 1], [2, 3], [4]]
    assert batches([], 2) == []


@pytest.mark.parametrize("seed", range(5))
def test_every_row_once_and_little_padding(seed: int) -> None:
    chance = random.Random(seed)
    lengths = [int(2 ** chance.uniform(0, 14)) for _ in range(200)]
    found = batches(lengths, 64)
    assert sorted(row for batch in found for row in batch) == list(range(200))
    for batch in found:
        longest, real = max(lengths[row] for row in batch), sum(lengths[row] for row in batch)
        assert len(batch) <= 64
        assert len(batch) == 1 or longest * len(batch) <= 16_384
        assert longest * len(batch) - real <= max(2048, real)
