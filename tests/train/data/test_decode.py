"""Damaged JPEGs where the device decodes: named, skipped and replaced as on the host, without their batch."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.artifacts.manifest import Manifest, ShardIndex
from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data import decode as decode_module
from train.data.decode import _decode, decode_on_device
from train.data.device import LocalBatch, device_batches, to_device
from train.data.loader import host_batches, whole_samples
from train.data.shards.open import open_shards

CPU, SECOND_GPU = torch.device("cpu"), torch.device("cuda", 1)
HEADER, TABLES, END = "header", "quantization tables", "end"


def settings_of(**data: object) -> PretrainSettings:
    fixed = {"image_size": 32, "view_size": 32, "num_workers": 0, "verify": False, "view_superpixels": True}
    return PretrainSettings.model_validate(
        {
            "epochs": 1,
            "global_batch_size": 16,
            "data": {**fixed, **data},
            "augment": {"blur_kernel_size": 3},
            "refine": {"clustering_group_size": 4},
            "curriculum": {"hold_epochs": 0},
        }
    )


def local_batches(shards: Path, **data: object) -> list[LocalBatch]:
    settings = settings_of(**data)
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    hosts = host_batches(reader, settings, range(4), rank=0, num_ranks=1)
    return list(device_batches(hosts, settings, CPU, whole_samples(reader, settings)))


@pytest.fixture
def damaged(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def break_jpeg(shards: Path, shard: int, row: int, part: str) -> str:
    """Damage one part of a JPEG: its header, its quantization tables (which leaves the header whole) or its end."""
    path = sorted(shards.glob("*.tar"))[shard]
    entry = ShardIndex.decode(path.with_suffix(".index").read_bytes()).entries[row]
    data = bytearray(path.read_bytes())
    offset, size = entry.members["jpg"]
    if part == HEADER:
        data[offset : offset + 20] = bytes(20)
    elif part == TABLES:
        data[offset : offset + size] = data[offset : offset + size].replace(b"\xff\xdb", b"\xff\xfe")  # now a comment
    else:
        data[offset + size - 40 : offset + size] = bytes(40)
    path.write_bytes(data)
    return entry.key


@pytest.mark.parametrize("part", [HEADER, TABLES, END])
def test_a_damaged_file_is_named_as_on_the_host(damaged: Path, part: str) -> None:
    key = break_jpeg(damaged, 0, 3, part)
    said = []
    for where in ("host", "device"):
        with pytest.raises(InputError, match=rf"^r2o-000000\.tar: sample {key} is damaged \(") as error:
            local_batches(damaged, decode=where)
        said.append(str(error.value))
    assert said[0] == said[1]
    assert "\n" not in said[1]


@pytest.mark.long
@pytest.mark.parametrize("part", [HEADER, TABLES, END])
def test_a_damaged_file_is_skipped_as_on_the_host_and_takes_no_other_along(
    shards: Path, damaged: Path, part: str
) -> None:
    for row in (2, 3, 9):
        break_jpeg(damaged, 0, row, part)
    break_jpeg(damaged, 1, 1, TABLES if part == END else END)
    before = local_batches(shards, decode="device")
    on_host = local_batches(damaged, decode="host", on_damage="skip")
    on_device = local_batches(damaged, decode="device", on_damage="skip")
    bad = {2, 3, 9, 17}
    assert {one.sample_id for local in on_device for one in local.host.skipped} <= bad
    assert sum(len(local.host.skipped) for local in on_device) >= 3
    for old, host, device in zip(before, on_host, on_device, strict=True):
        assert device.host.skipped == host.host.skipped
        for name in ("sample_id", "slots", "superpixels", "boxes", "crop_box", "flipped", "view_superpixels"):
            assert torch.equal(getattr(device.host, name), getattr(host.host, name)), name
        for ours, theirs in zip(device.host.augment, host.host.augment, strict=True):
            assert (ours == theirs).all()
        # the other rows are those of the whole set, bit for bit; the replaced ones are the host's within rounding
        kept = old.host.sample_id == device.host.sample_id
        assert torch.equal(device.batch.images[kept], old.batch.images[kept])
        assert torch.equal(device.batch.views[kept], old.batch.views[kept])
        torch.testing.assert_close(device.batch.images, host.batch.images, atol=0.02, rtol=0)
        torch.testing.assert_close(device.batch.views, host.batch.views, atol=0.15, rtol=0)
        assert torch.equal(to_device(device.host, settings_of(decode="device"), CPU).images, device.batch.images)


def refusing(refuse: Callable[[bytes], bool]) -> Callable[..., list[torch.Tensor]]:
    """torchvision's decoder, but for files that it refuses."""
    decode = decode_module.decode_jpeg

    def decode_jpeg(files: list[torch.Tensor], **options: object) -> list[torch.Tensor]:
        if any(refuse(bytes(file.tolist())) for file in files):
            raise RuntimeError("Failed to decode batch: 4")
        return decode(files, **options)

    return decode_jpeg


def test_what_only_the_device_refuses_is_decoded_by_the_host(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = local_batches(shards, decode="device")
    ends = [0, *expected[0].host.jpeg_ends.tolist()]
    odd = bytes(expected[0].host.jpegs[ends[5] : ends[6]].tolist())
    monkeypatch.setattr(decode_module, "decode_jpeg", refusing(lambda file: file == odd))
    found = local_batches(shards, decode="device")
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.host.skipped == ()
        assert torch.equal(ours.host.sample_id, theirs.host.sample_id)
        assert torch.equal(ours.host.jpegs, theirs.host.jpegs)
        torch.testing.assert_close(ours.batch.images, theirs.batch.images, atol=0.02, rtol=0)


def test_a_device_that_decodes_nothing_is_not_taken_for_damage(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "decode_jpeg", refusing(lambda file: True))
    with pytest.raises(
        InputError,
        match=r"^cpu decodes none of 16 JPEGs that the host decodes \(Failed .*set pretrain\.data\.decode: h",
    ):
        local_batches(shards, decode="device", on_damage="skip")


def test_without_the_shards_the_damaged_row_alone_is_named(damaged: Path) -> None:
    settings = settings_of(decode="device")
    break_jpeg(damaged, 0, 3, TABLES)
    reader = open_shards(str(damaged), Manifest.read(damaged), settings.data)
    hosts = list(host_batches(reader, settings, range(4), rank=0, num_ranks=1))
    (host,) = (one for one in hosts if 3 in one.sample_id.tolist())
    with pytest.raises(InputError, match=r"^samples \[3\] cannot be decoded on cpu: "):
        decode_on_device(host, CPU)


class FakeCuda:
    """Notes what is asked of CUDA, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: str = "") -> None:
        self.calls: list[object] = []
        self.error = error
        monkeypatch.setattr(torch.cuda, "current_stream", self.current_stream)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: self.calls.append(("all", device)))
        monkeypatch.setattr(decode_module, "decode_jpeg", self.decode_jpeg)

    def current_stream(self, device: torch.device) -> "FakeCuda":
        self.calls.append(("stream of", device))
        return self

    def synchronize(self) -> None:
        self.calls.append("waited for")

    def decode_jpeg(self, files: list[torch.Tensor], **options: object) -> list[torch.Tensor]:
        self.calls.append(("decoded on", options["device"]))
        if self.error:
            raise RuntimeError(self.error)
        return files


def test_our_stream_is_done_before_nvjpeg_writes_and_nvjpeg_before_memory_is_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = [("stream of", SECOND_GPU), "waited for", ("decoded on", SECOND_GPU)]
    fake = FakeCuda(monkeypatch)
    _decode([torch.zeros(1)], SECOND_GPU)
    assert fake.calls == before
    fake = FakeCuda(monkeypatch, "Failed to decode batch: 8")
    with pytest.raises(RuntimeError, match="batch: 8"):
        _decode([torch.zeros(1)], SECOND_GPU)
    assert fake.calls == [*before, ("all", SECOND_GPU)]
