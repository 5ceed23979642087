"""Exact epochs: every sample once, the same batches whatever the number of ranks and workers."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.artifacts.errors import InputError
from pipeline.artifacts.manifest import Manifest
from train.config import PretrainSettings
from train.data.loader import HostBatch, host_batches
from train.data.stream import SampleOrder, ShardReader, epoch_order

SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 3,
        "global_batch_size": 16,
        "data": {"image_size": 32, "view_size": 32, "num_workers": 0, "shuffle_lanes": 2},
        "augment": {"blur_kernel_size": 3},
        "refine": {"clustering_group_size": 4},
        "curriculum": {"hold_epochs": 0},
    }
)


@pytest.mark.parametrize("sizes", [(16, 16, 16, 16, 6), (1,), (5,), (3, 0, 7, 2), (4,) * 40])
@pytest.mark.parametrize("lanes", [1, 3, 100])
def test_an_epoch_holds_every_sample_once_and_reads_each_shard_in_order(sizes: tuple[int, ...], lanes: int) -> None:
    order = epoch_order(sizes, seed=1, epoch=2, lanes=lanes)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    place = np.argsort(order)
    ends = np.cumsum(sizes)
    for start, end in zip(ends - sizes, ends, strict=True):
        assert (np.diff(place[start:end]) > 0).all()


def test_no_more_shards_than_lanes_are_open_at_a_time() -> None:
    sizes = (20,) * 12
    order = epoch_order(sizes, seed=0, epoch=0, lanes=3)
    for window in order.reshape(4, 60):
        assert len({int(i) // 20 for i in window}) == 3


def test_epochs_and_seeds_differ_and_repeat() -> None:
    orders = {(s, e): tuple(epoch_order((9, 9, 9), seed=s, epoch=e, lanes=2)) for s in (0, 1) for e in (0, 1)}
    assert len(set(orders.values())) == 4
    assert orders[0, 1] == tuple(epoch_order((9, 9, 9), seed=0, epoch=1, lanes=2))


@pytest.mark.parametrize("num_ranks", [1, 2, 8, 128])
def test_the_global_batch_does_not_depend_on_the_number_of_ranks(num_ranks: int) -> None:
    order = SampleOrder(shard_sizes=(700, 650, 800), seed=3, lanes=2, global_batch_size=512)
    assert order.steps_per_epoch == 4
    seen = []
    for step in range(8):
        parts = [order.batch(step, rank=r, num_ranks=num_ranks) for r in range(num_ranks)]
        assert {len(p) for p in parts} == {512 // num_ranks}
        assert np.array_equal(np.concatenate(parts), order.batch(step))
        seen.append(np.concatenate(parts))
    for epoch in (seen[:4], seen[4:]):
        assert len(np.unique(np.concatenate(epoch))) == 4 * 512
    left_out = [set(range(2150)) - set(np.concatenate(e).tolist()) for e in (seen[:4], seen[4:])]
    assert all(len(rest) == 2150 - 2048 for rest in left_out)
    assert left_out[0] != left_out[1]


def test_the_reader_gives_what_a_plain_reader_gives(shards: Path) -> None:
    import tarfile

    reader = ShardReader(shards, Manifest.read(shards))
    reader.check_files()
    sample_id = 0
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        keys = sorted({name.split(".", 1)[0] for name in members})
        for key in keys:
            raw = reader.read(sample_id)
            assert raw.key == key
            assert {f"{key}.{name}": data for name, data in raw.members.items()} == {
                name: data for name, data in members.items() if name.startswith(f"{key}.")
            }
            sample_id += 1
    assert sample_id == 70


def test_a_reader_travels_to_a_worker(shards: Path) -> None:
    reader = ShardReader(shards, Manifest.read(shards))
    reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(3) == reader.read(3)


def batches(shards: Path, steps: range, *, workers: int = 0, rank: int = 0, num_ranks: int = 1) -> list[HostBatch]:
    settings = SETTINGS.model_copy(update={"data": SETTINGS.data.model_copy(update={"num_workers": workers})})
    reader = ShardReader(shards, Manifest.read(shards))
    return list(host_batches(reader, settings, steps, rank=rank, num_ranks=num_ranks))


def assert_equal(a: HostBatch, b: HostBatch, rows: slice = slice(None)) -> None:
    for name in ("sample_id", "images", "superpixels", "views", "crop_box", "flipped"):
        assert np.array_equal(getattr(a, name).numpy()[rows], getattr(b, name).numpy()), name
    for left, right in zip(a.augment, b.augment, strict=True):
        assert np.array_equal(left[rows], right)


def test_workers_ranks_and_resumption_change_nothing(shards: Path) -> None:
    whole = batches(shards, range(8))
    assert len(whole) == 8
    for theirs in zip(whole, batches(shards, range(8), workers=3), strict=True):
        assert_equal(*theirs)
    for theirs in zip(whole[5:], batches(shards, range(5, 8), workers=2), strict=True):
        assert_equal(*theirs)
    for rank in (0, 1):
        part = batches(shards, range(8), rank=rank, num_ranks=2)
        for all_of_it, ours in zip(whole, part, strict=True):
            assert_equal(all_of_it, ours, slice(8 * rank, 8 * rank + 8))


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def test_missing_and_cut_shards_are_named(damaged: Path) -> None:
    first, second = sorted(damaged.glob("*.tar"))[:2]
    first.write_bytes(first.read_bytes()[:-512])
    with pytest.raises(InputError, match=rf"{first.name} has \d+ bytes, not \d+; run `make shards`"):
        batches(damaged, range(8))
    first.unlink()
    with pytest.raises(InputError, match=f"{first.name} is missing"):
        ShardReader(damaged, Manifest.read(damaged)).check_files()
    index = second.with_suffix(".index")
    index.write_bytes(index.read_bytes().replace(b'"key":"0000000', b'"key":"0000001'))
    with pytest.raises(InputError, match=f"{index.name} is not the index"):
        ShardReader(damaged, Manifest.read(damaged)).read(20)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_one_line_also_from_a_worker(damaged: Path, workers: int) -> None:
    path = sorted(damaged.glob("*.tar"))[0]
    data = bytearray(path.read_bytes())
    data[512 : 512 + 200] = bytes(200)  # the first sample's JPEG header
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"^sample \d{9} is damaged") as error:
        batches(damaged, range(4), workers=workers)
    assert "\n" not in str(error.value)
