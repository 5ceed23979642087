from __future__ import annotations

import numpy as np
import pytest

from preprocess.config import ShardSettings
from preprocess.shards.plan import Plan, permuted
from preprocess.sources.listing import Listing, Source


def listing_of(count: int, *, has_classes: bool = False, root: str = "images", last_size: int | None = None) -> Listing:
    listing = Listing(root=root, kind="files", described="made up")
    folder = b"cat/" if has_classes else b""
    for number in range(count):
        size = last_size if last_size is not None and number == count - 1 else number
        listing.add(Source(b"%s%04d.jpg" % (folder, number), size))
    return listing


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 16, 17, 100, 1023, 4097])
def test_permutation_is_a_bijection(total):
    assert sorted(permuted(np.arange(total), total=total, seed=3)) == list(range(total))


def test_permutation_depends_on_seed_alone():
    whole = permuted(np.arange(1000), total=1000, seed=0)
    piecewise = np.concatenate([permuted(np.arange(i, i + 50), total=1000, seed=0) for i in range(0, 1000, 50)])
    np.testing.assert_array_equal(whole, piecewise)
    assert (whole != permuted(np.arange(1000), total=1000, seed=1)).sum() > 980


def test_permutation_of_other_machines_is_ours():
    """Golden: shards made elsewhere hold the same images."""
    assert permuted(np.arange(10), total=10, seed=0).tolist() == [2, 3, 0, 4, 1, 7, 8, 6, 5, 9]


def test_permutation_mixes_evenly():
    """Each shard of 100 draws from each tenth of 10,000 images about 10 times (binomial, sd 3)."""
    order = permuted(np.arange(10_000), total=10_000, seed=0).reshape(100, 100) // 1000
    counts = np.stack([np.bincount(shard, minlength=10) for shard in order])
    assert abs(counts.std() - 3) < 0.3
    correlation = np.corrcoef(np.arange(10_000), permuted(np.arange(10_000), total=10_000, seed=0))[0, 1]
    assert abs(correlation) < 0.04


def test_permutation_of_a_position_outside_is_refused():
    with pytest.raises(ValueError, match="positions must lie in 0 … 9"):
        permuted(np.array([10]), total=10, seed=0)


def test_every_image_is_in_one_task_under_one_key():
    plan = Plan(listing_of(103, has_classes=True), ShardSettings(images_per_shard=10))
    tasks = list(plan.tasks())
    assert [task.name for task in tasks] == [f"r2o-{n:06d}.tar" for n in range(11)]
    assert [len(task.sources) for task in tasks] == [10] * 10 + [3]
    assert sorted(source.name for task in tasks for source in task.sources) == [s.name for s in plan.listing]
    assert [task.first_key for task in tasks] == list(range(0, 110, 10))
    assert {source.class_name for task in tasks for source in task.sources} == {"cat"}


def test_fingerprint_follows_content_and_nothing_else():
    listing, settings = listing_of(5), ShardSettings()
    base = Plan(listing, settings).fingerprint
    moved = listing_of(5, root="/elsewhere")
    moved.ignored = 7
    assert Plan(moved, ShardSettings(workers=3, max_bad_fraction=0.5)).fingerprint == base
    assert Plan(listing, ShardSettings(seed=1)).fingerprint != base
    assert Plan(listing, ShardSettings(superpixels={"segments": 99})).fingerprint != base
    assert Plan(listing, ShardSettings(count=4)).fingerprint != base
    assert Plan(listing_of(5, last_size=99), settings).fingerprint != base


def test_a_count_takes_the_first_of_the_seeded_order():
    whole, some = (Plan(listing_of(103), ShardSettings(images_per_shard=10, count=c)) for c in (None, 25))
    assert (len(some), some.total) == (3, 25)
    taken = [source for task in some.tasks() for source in task.sources]
    assert taken == [source for task in whole.tasks() for source in task.sources][:25]
    assert Plan(listing_of(7), ShardSettings(count=100)).total == 7
