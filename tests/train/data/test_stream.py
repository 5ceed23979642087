"""The stream: the same batches whatever the ranks, workers and beginnings; and what it does about damage."""

import os
import pickle
import shutil
import signal
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch

from pipeline.artifacts.manifest import Manifest, ShardIndex
from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data.loader import HostBatch, host_batches
from train.data.order import SampleOrder
from train.data.shards.open import check_shards, describe_reading, open_shards
from train.data.shards.reader import ShardReader

SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 3,
        "global_batch_size": 16,
        "data": {"image_size": 32, "view_size": 32, "num_workers": 0, "shuffle_lanes": 4},
        "augment": {"blur_kernel_size": 3},
        "refine": {"clustering_group_size": 4},
        "curriculum": {"hold_epochs": 0},
    }
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2O_CACHE", str(tmp_path / "marks"))


def with_data(**changes: object) -> PretrainSettings:
    data = {**SETTINGS.data.model_dump(), **changes}
    return PretrainSettings.model_validate({**SETTINGS.model_dump(), "data": data})


def reader_of(shards: Path | str, settings: PretrainSettings = SETTINGS) -> ShardReader:
    return open_shards(str(shards), Manifest.read(shards), settings.data)


def batches(
    shards: Path | str, steps: range, *, workers: int = 0, rank: int = 0, num_ranks: int = 1, **data: object
) -> list[HostBatch]:
    settings = with_data(num_workers=workers, **data)
    return list(host_batches(reader_of(shards, settings), settings, steps, rank=rank, num_ranks=num_ranks))


def assert_equal(a: HostBatch, b: HostBatch, rows: slice = slice(None)) -> None:
    for name in ("sample_id", "images", "superpixels", "views", "crop_box", "boxes", "flipped"):
        assert torch.equal(getattr(a, name)[rows], getattr(b, name)), name
    for left, right in zip(a.augment, b.augment, strict=True):
        assert np.array_equal(left[rows], right)


def test_the_reader_gives_what_a_plain_reader_gives(shards: Path) -> None:
    reader = reader_of(shards)
    sample_id = 0
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as tar:
            members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}
        for key in sorted({name.split(".", 1)[0] for name in members}):
            raw = reader.read(sample_id)
            assert raw.key == key
            assert {f"{key}.{name}": data for name, data in raw.members.items()} == {
                name: data for name, data in members.items() if name.startswith(f"{key}.")
            }
            sample_id += 1
    assert sample_id == 70


def test_a_reader_travels_to_a_worker(shards: Path) -> None:
    reader = reader_of(shards)
    reader.read(0)
    assert pickle.loads(pickle.dumps(reader)).read(3) == reader.read(3)


@pytest.mark.processes
def test_workers_ranks_and_resumption_change_nothing(shards: Path) -> None:
    whole = batches(shards, range(8))
    assert len(whole) == 8
    for theirs in zip(whole, batches(shards, range(8), workers=3), strict=True):
        assert_equal(*theirs)
    for theirs in zip(whole[5:], batches(shards, range(5, 8), workers=2), strict=True):
        assert_equal(*theirs)
    for rank in (0, 1):
        part = batches(shards, range(8), rank=rank, num_ranks=2, workers=1)
        for all_of_it, ours in zip(whole, part, strict=True):
            assert_equal(all_of_it, ours, slice(8 * rank, 8 * rank + 8))


def test_resuming_reads_nothing_of_what_is_skipped(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, i, *more: read.append(i) or original(self, i, *more))
    last = batches(shards, range(11, 12))
    assert sorted(read) == sorted(last[0].sample_id.tolist())


def test_views_belong_to_seed_epoch_and_sample(shards: Path) -> None:
    first, second = (
        {
            int(i): box
            for b in batches(shards, range(4 * e, 4 * e + 4))
            for i, box in zip(b.sample_id, b.crop_box, strict=True)
        }
        for e in (0, 1)
    )
    other_lanes = {
        int(i): box
        for b in batches(shards, range(4), shuffle_lanes=1)
        for i, box in zip(b.sample_id, b.crop_box, strict=True)
    }
    both = first.keys() & other_lanes.keys()
    assert len(both) > 50
    assert all(torch.equal(first[i], other_lanes[i]) for i in both)
    assert not any(torch.equal(first[i], second[i]) for i in first.keys() & second.keys())


def test_jointly_cropped_superpixels_come_on_request(shards: Path) -> None:
    (batch,) = batches(shards, range(1), view_superpixels=True)
    assert batch.view_superpixels.shape == (16, 2, 32, 32)
    for whole, views in zip(batch.superpixels, batch.view_superpixels, strict=True):
        assert set(views.unique().tolist()) <= set(whole.unique().tolist())
    assert batches(shards, range(1))[0].view_superpixels is None


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def break_sample(shards: Path, shard: int, row: int, member: str = "jpg") -> str:
    """Overwrite a member's first bytes; gives the key."""
    path = sorted(shards.glob("*.tar"))[shard]
    entry = ShardIndex.decode(path.with_suffix(".index").read_bytes()).entries[row]
    data = bytearray(path.read_bytes())
    offset, _ = entry.members[member]
    data[offset : offset + 20] = bytes(20)
    path.write_bytes(data)
    return entry.key


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("verify", [False, True])
def test_damage_is_one_line_that_names_it_also_from_a_worker(damaged: Path, workers: int, verify: bool) -> None:
    key = break_sample(damaged, 0, 3)
    expected = (
        r"^\S*r2o-000000.tar is not what the manifest names" if verify else rf"^r2o-000000.tar: sample {key} is damaged"
    )
    with pytest.raises(InputError, match=expected) as error:
        batches(damaged, range(5), workers=workers, verify=verify)
    assert "\n" not in str(error.value)


@pytest.mark.processes
@pytest.mark.parametrize("member", ["jpg", "superpixels.png", "json"])
def test_a_skipped_sample_is_named_and_the_next_intact_one_stands_in_for_it(damaged: Path, member: str) -> None:
    undamaged = batches(damaged, range(4))
    keys = {break_sample(damaged, 0, row, member) for row in (2, 3)} | {break_sample(damaged, 4, 1, member)}
    order = SampleOrder.of(SETTINGS, (16, 16, 16, 16, 6))
    bad = {2, 3, 65}
    options = {"verify": False, "on_damage": "skip"}
    whole = batches(damaged, range(4), **options)
    skipped = [one for batch in whole for one in batch.skipped]
    used = set(order.sample_ids(0, np.arange(64)).tolist())
    assert {one.sample_id for one in skipped} == bad & used
    assert {one.key for one in skipped} <= keys
    assert all("damaged" in one.reason for one in skipped)
    epoch = order.sample_ids(0, np.arange(64)).tolist()
    for batch, (step, before) in zip(whole, enumerate(undamaged), strict=True):
        for slot, (now, then) in enumerate(zip(batch.sample_id.tolist(), before.sample_id.tolist(), strict=True)):
            place = 16 * step + slot
            expected = next(i for i in epoch[place:] + epoch[:place] if i not in bad)
            assert now == (expected if then in bad else then)
    for rank in (0, 1):  # and so on every number of ranks and workers
        part = batches(damaged, range(4), rank=rank, num_ranks=2, workers=2, **options)
        for all_of_it, ours in zip(whole, part, strict=True):
            assert_equal(all_of_it, ours, slice(8 * rank, 8 * rank + 8))


def test_missing_and_cut_shards_are_found_before_the_run_and_accepted_up_to_a_limit(damaged: Path) -> None:
    first, second = sorted(damaged.glob("*.tar"))[:2]
    first.write_bytes(first.read_bytes()[:-512])
    with pytest.raises(InputError, match=rf"{first.name} has \d+ bytes, not \d+; run `make shards`"):
        check_shards(reader_of(damaged), SETTINGS)
    second.unlink()
    accepting = with_data(on_damage="skip", max_skipped_fraction=0.5)
    assert len(check_shards(reader_of(damaged), accepting)) == 2
    with pytest.raises(InputError, match=r"32 of 70 samples were skipped, more than .*max_skipped_fraction 0.4"):
        check_shards(reader_of(damaged), with_data(on_damage="skip", max_skipped_fraction=0.4))
    found = batches(damaged, range(4), on_damage="skip", max_skipped_fraction=0.5)
    shards_of_it = {one.shard for batch in found for one in batch.skipped}
    assert shards_of_it == {first.name, second.name}
    assert all((batch.sample_id >= 32).all() for batch in found)


@pytest.mark.parametrize("samples", [10**12, 10**15])
def test_more_samples_than_a_shard_can_hold_are_refused_before_they_are_ordered(shards: Path, samples: int) -> None:
    reader = reader_of(shards)
    first, *others = reader.manifest.shards
    many = first.model_copy(update={"samples": samples})
    reader.manifest = reader.manifest.model_copy(update={"shards": (many, *others)})
    with pytest.raises(
        InputError, match=rf"manifest\.json is damaged: r2o-000000\.tar is too small for {samples} samples"
    ):
        check_shards(reader, SETTINGS)


@pytest.mark.processes
@pytest.mark.parametrize("workers", [0, 2])
def test_shards_behind_a_url_give_the_same_batches(shards: Path, tmp_path: Path, workers: int) -> None:
    fs = fsspec.filesystem("memory")
    for path in shards.iterdir():
        fs.pipe_file(f"/streamed/{path.name}", path.read_bytes())
    cache = tmp_path / "cache"
    largest = max(shard.bytes for shard in Manifest.read(shards).shards)
    for theirs in zip(
        batches(shards, range(8)),
        batches("memory://streamed", range(8), workers=workers, cache=str(cache), cache_gb=4 * largest / 1e9),
        strict=True,
    ):
        assert_equal(*theirs)
    assert sum(path.stat().st_size for path in cache.rglob("*") if path.is_file()) <= 4 * largest


def test_what_a_node_reads_is_stated(shards: Path, tmp_path: Path) -> None:
    total = sum(shard.bytes for shard in Manifest.read(shards).shards)
    text = describe_reading(reader_of(shards), SETTINGS, node_ranks=range(1), num_ranks=1)
    assert (
        f"70 samples in 5 shards, {total / 1e9:.4g} GB; a node reads 5 of them, {total / 1e9:.4g} GB, an epoch" in text
    )
    staged = with_data(cache=str(tmp_path / "disk"), cache_gb=1)
    text = describe_reading(reader_of(shards, staged), staged, node_ranks=range(1), num_ranks=1)
    assert text.endswith("(up to 1 GB)")
    tight = with_data(cache=str(tmp_path / "disk"), cache_gb=1e-6)
    with pytest.raises(InputError, match=r"cache_gb 1e-06 is less than what a node reads side by side"):
        describe_reading(reader_of(shards, tight), tight, node_ranks=range(1), num_ranks=1)


@pytest.mark.processes
def test_a_killed_worker_is_one_line(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShardReader, "read", lambda self, *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match="a decoding process was killed, as a rule for want of memory"):
        batches(shards, range(4), workers=1)


def test_too_little_shared_memory_is_said_before_it_kills(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = shutil.disk_usage(shards)._replace(free=64_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: small)
    with pytest.raises(InputError, match=r"0 MB free, but 1 decoding processes × 2 batches need 0 MB; enlarge it"):
        batches(shards, range(1), workers=1)
