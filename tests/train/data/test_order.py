"""Exact epochs: every sample at most once, the same batches whatever the number of ranks, sequential within shards."""

import numpy as np
import pytest

from train.data.order import SampleOrder

SIZES = [(16, 16, 16, 16, 6), (70,), (1, 2, 3, 64), (3, 0, 7, 60), (4,) * 40, (700, 650, 800)]


def order_of(sizes: tuple[int, ...], **changes: int) -> SampleOrder:
    return SampleOrder(**{"shard_sizes": sizes, "seed": 3, "lanes": 8, "global_batch_size": 16, **changes})


def epoch_of(order: SampleOrder, epoch: int) -> np.ndarray:
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    return np.concatenate([order.batch(step) for step in steps])


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize(("lanes", "groups"), [(1, 1), (3, 1), (8, 1), (8, 4), (16, 16), (96, 2)])
def test_an_epoch_holds_each_sample_at_most_once_and_leaves_out_less_than_a_batch(sizes, lanes, groups) -> None:
    order = order_of(sizes, lanes=lanes, lane_groups=groups)
    left_out = []
    for epoch in range(4):
        ids = epoch_of(order, epoch)
        assert len(np.unique(ids)) == len(ids) == sum(sizes) // 16 * 16
        assert ids.min() >= 0
        assert ids.max() < sum(sizes)
        left_out.append(frozenset(range(sum(sizes))) - set(ids.tolist()))
    if left_out[0]:
        assert len(set(left_out)) > 1


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("lanes", [1, 3, 8])
def test_each_lane_reads_each_shard_in_order(sizes: tuple[int, ...], lanes: int) -> None:
    order = order_of(sizes, lanes=lanes)
    places = np.arange(order.places_per_epoch)
    shard, row = order.locate(1, places)
    for lane in range(lanes):
        mine = places % lanes == lane
        same = np.diff(shard[mine]) == 0
        sizes_here = np.asarray(sizes)[shard[mine]][1:]
        step = (np.diff(row[mine]) % sizes_here)[same]
        assert (step == 1 % sizes_here[same]).all()
        changes = 1 + int((~same).sum())
        assert changes <= len(np.unique(shard[mine])) + 1  # it comes back to no shard, but for the one it is wrapped in


@pytest.mark.parametrize("num_ranks", [1, 2, 8, 128])
@pytest.mark.parametrize("groups", [1, 16])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(num_ranks: int, groups: int) -> None:
    order = order_of((700, 650, 800), lanes=64, lane_groups=groups, global_batch_size=512)
    assert order.steps_per_epoch == 4
    for step in range(8):
        parts = [order.batch(step, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
        assert {len(part) for part in parts} == {512 // num_ranks}
        assert np.array_equal(np.concatenate(parts), order.batch(step))


def test_epochs_and_seeds_differ_and_repeat() -> None:
    epochs = {(s, e): tuple(epoch_of(order_of((40, 9, 9), seed=s), e)) for s in (0, 1) for e in (0, 1)}
    assert len(set(epochs.values())) == 4
    assert epochs[0, 1] == tuple(epoch_of(order_of((40, 9, 9), seed=0), 1))


def test_lane_groups_share_the_shards_between_nodes() -> None:
    """16 nodes of 8 ranks: with 16 groups each reads a sixteenth of ImageNet's shards, with one group all of them."""
    sizes = (1024,) * 1251 + (143,)
    read = {}
    for groups in (1, 16):
        order = order_of(sizes, lanes=256, lane_groups=groups, global_batch_size=4096)
        steps = range(order.steps_per_epoch)
        nodes = [order.shards_between(2, steps, ranks=range(8 * n, 8 * n + 8), num_ranks=128) for n in (0, 7, 15)]
        read[groups] = [len(node) for node in nodes]
        one = np.unique(order.locate(2, np.concatenate([np.arange(s * 4096, s * 4096 + 256) for s in steps])).shard)
        assert np.array_equal(nodes[0], one)
    assert all(1250 <= count <= 1252 for count in read[1])
    assert all(78 <= count <= 81 for count in read[16])


def test_samples_of_a_clustering_group_meet_again_no_more_than_by_chance() -> None:
    """With 64 lanes; a stream of one shard after the other (1 lane) brings the same companions again."""
    sizes, batch, group = (128,) * 500, 512, 32
    again = {}
    for lanes in (1, 64):
        order = order_of(sizes, lanes=lanes, global_batch_size=batch)
        group_of = []
        for epoch in (0, 1):
            found = np.full(sum(sizes), -1)
            found[epoch_of(order, epoch)] = np.arange(order.places_per_epoch) // group
            group_of.append(found)
        first = epoch_of(order, 0).reshape(-1, group)
        then = group_of[1][first]
        pairs = (then[:, :, None] == then[:, None, :]) & (then[:, :, None] >= 0)
        chance = len(first) * group * (group - 1) * group / sum(sizes)
        again[lanes] = (pairs.sum() - (then >= 0).sum()) / chance
    assert again[1] > 100
    assert again[64] < 3
