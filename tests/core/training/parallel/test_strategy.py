"""The shards of a batch are the batch, whatever the number of processes."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchyard.core.training.parallel.strategy import DistributedDataParallel, Strategy


@settings(deadline=None)
@given(st.lists(st.integers(0, 999), min_size=1, max_size=20, unique=True), st.integers(1, 6))
def test_the_shards_are_the_batch_and_their_means_its_mean(batch, world_size):
    index = torch.tensor(batch)
    shards = []
    for rank in range(world_size):
        strategy = DistributedDataParallel.__new__(DistributedDataParallel)
        strategy.rank, strategy.world_size = rank, world_size
        shards.append(strategy.shard(index))
    taken = torch.cat([own for own, weight in shards if weight])
    assert sorted(taken.tolist()) == sorted(batch)
    mean = sum(own.double().mean() * weight for own, weight in shards) / world_size
    torch.testing.assert_close(mean, index.double().mean())
    assert Strategy().shard(index) == (index, 1.0)
