"""The joint crop: image and label map see the same piece of the world."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from pipeline.artifacts.sample import SampleMeta, encode_label_map
from pipeline.foundation.errors import InputError
from tests.train.launches import DEVICE, launches
from train.config.data import AugmentSettings, DataSettings
from train.data.views import (
    PixelBox,
    Sample,
    crop_label_map,
    decode_labels,
    decode_pixels,
    make_sample,
    random_crop_box,
    resize_and_crop_together,
)
from train.r2o.masks import align_label_map

PALETTE = np.random.default_rng(0).integers(30, 226, (16, 3)).astype(np.uint8)


def rectangles(size: int = 128) -> np.ndarray:
    return (np.arange(size)[:, None] // 32 * 4 + np.arange(size)[None, :] // 32).astype(np.uint8)


def jpeg_of(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=100, subsampling=0)
    return buffer.getvalue()


def members(label_map: np.ndarray, pixels: np.ndarray) -> dict[str, bytes]:
    meta = SampleMeta(
        source="a.jpg", width=pixels.shape[1], height=pixels.shape[0], num_superpixels=int(label_map.max()) + 1
    )
    return {"jpg": jpeg_of(pixels), "superpixels.png": encode_label_map(label_map), "json": meta.encode()}


def sample_of(label_map: np.ndarray, pixels: np.ndarray, sample_id: int = 0, epoch: int = 0, **data: object) -> Sample:
    return make_sample(
        members(label_map, pixels),
        key="k",
        sample_id=sample_id,
        epoch=epoch,
        seed=5,
        data=DataSettings(**data),
        augment=AugmentSettings(),
        max_superpixels=16,
    )


def interior(label_map: np.ndarray, margin: int) -> np.ndarray:
    """Pixels whose whole neighbourhood has their own id."""
    inside = np.ones(label_map.shape, dtype=bool)
    for dy in range(-margin, margin + 1):
        for dx in range(-margin, margin + 1):
            inside &= np.roll(label_map, (dy, dx), (0, 1)) == label_map
    inside[:margin] = inside[-margin:] = inside[:, :margin] = inside[:, -margin:] = False
    return inside


@pytest.mark.parametrize("shape", [(128, 128), (100, 150), (190, 90)])
def test_an_image_painted_from_its_label_map_stays_equal_to_it_through_the_joint_crop(shape: tuple[int, int]) -> None:
    label_map = rectangles()
    painted = PALETTE[label_map]
    pixels = np.asarray(Image.fromarray(painted).resize(shape[::-1], Image.Resampling.NEAREST))
    flips = set()
    for sample_id in range(30):
        sample = sample_of(label_map, pixels, sample_id, view_size=64, image_size=64, view_superpixels=True)
        for v in (0, 1):
            box, flip = tuple(sample.geometry.crop_box[v].tolist()), bool(sample.geometry.flipped[v])
            flips.add(flip)
            cropped = crop_label_map(label_map, box, flipped=flip, size=(64, 64))
            assert np.array_equal(sample.view_superpixels[v], cropped)
            view = sample.views[v].numpy().astype(int)
            # bicubic ringing and JPEG reach a few source pixels over a border, so compare inside regions
            margin = int(np.ceil(5 * 64 / (min(shape) * (box[2] - box[0]))) + 2)
            inside = interior(cropped, min(margin, 14))
            if inside.any():
                error = np.abs(view - PALETTE[cropped])[inside]
                assert error.mean() < 2, (sample_id, v)
                assert np.percentile(error, 99) < 12, (sample_id, v)
    assert flips == {False, True}


def test_the_joint_crop_of_borders_is_exact_for_whole_pixels() -> None:
    label_map = rectangles()
    cropped = crop_label_map(label_map, (0.25, 0.5, 0.75, 1.0), flipped=False, size=(64, 64))
    assert np.array_equal(cropped, label_map[64:128, 32:96])
    flipped = crop_label_map(label_map, (0.25, 0.5, 0.75, 1.0), flipped=True, size=(64, 64))
    assert np.array_equal(flipped, label_map[64:128, 32:96][:, ::-1])
    assert np.array_equal(crop_label_map(label_map, (0, 0, 1, 1), flipped=False, size=(128, 128)), label_map)


def test_no_id_appears_that_was_not_in_the_box() -> None:
    rng = np.random.default_rng(0)
    label_map = rng.integers(0, 100, (56, 56))
    for _ in range(50):
        low = rng.uniform(0, 0.7, 2)
        high = low + rng.uniform(0.1, 0.3, 2)
        cropped = crop_label_map(label_map, (*low, *high), flipped=bool(rng.random() < 0.5), size=(40, 30))
        rows = slice(int(low[1] * 56), int(np.ceil(high[1] * 56)))
        columns = slice(int(low[0] * 56), int(np.ceil(high[0] * 56)))
        assert set(np.unique(cropped)) <= set(np.unique(label_map[rows, columns]))


def test_crop_boxes_are_distributed_as_torchvisions() -> None:
    """Same mean and spread of area share, aspect and centre over many draws, on a wide image."""
    rng = np.random.default_rng(0)
    size = {"width": 320, "height": 200}
    ours = [random_crop_box(rng, **size, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)) for _ in range(4000)]
    torch.manual_seed(0)
    transform = v2.RandomResizedCrop(10, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
    theirs = []
    for _ in range(4000):
        p = transform.make_params([torch.zeros(3, 200, 320)])
        theirs.append(PixelBox(p["left"], p["top"], p["left"] + p["width"], p["top"] + p["height"]))

    def statistics(boxes: list[PixelBox]) -> np.ndarray:
        b = np.array(boxes, dtype=float)
        width, height = b[:, 2] - b[:, 0], b[:, 3] - b[:, 1]
        values = np.stack(
            [width * height / 64000, np.log(width / height), (b[:, 0] + b[:, 2]) / 640, (b[:, 1] + b[:, 3]) / 400]
        )
        return np.concatenate([values.mean(1), values.std(1)])

    np.testing.assert_allclose(statistics(ours), statistics(theirs), atol=0.02)
    assert all(0 <= b.left < b.right <= 320 and 0 <= b.top < b.bottom <= 200 for b in ours)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 500), (500, 1), (3, 7)])
def test_extreme_images_have_a_box(width: int, height: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        box = random_crop_box(rng, width=width, height=height, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        assert 0 <= box.left < box.right <= width
        assert 0 <= box.top < box.bottom <= height


def test_views_are_torchvisions_crop_and_bicubic_resize() -> None:
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (16, 20, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(noise).resize((200, 160), Image.Resampling.BICUBIC))
    sample = sample_of(rectangles(), pixels, view_size=96, image_size=80)
    decoded = Image.open(io.BytesIO(jpeg_of(pixels)))
    tensor = torch.from_numpy(decode_pixels(jpeg_of(pixels), key="k")).permute(2, 0, 1)
    for v in (0, 1):
        left, top, right, bottom = (sample.geometry.crop_box[v] * np.array([200, 160, 200, 160])).round().astype(int)
        expected = v2.functional.resized_crop(
            tensor, top, left, bottom - top, right - left, [96, 96], v2.InterpolationMode.BICUBIC, antialias=True
        )
        expected = expected.flip(2) if sample.geometry.flipped[v] else expected
        assert torch.equal(expected.permute(1, 2, 0), sample.views[v])
        pillows = decoded.crop((left, top, right, bottom)).resize((96, 96), Image.Resampling.BICUBIC)
        pillows = np.asarray(pillows)[:, :: -1 if sample.geometry.flipped[v] else 1].astype(int)
        difference = np.abs(pillows - sample.views[v].numpy())
        assert difference.max() <= 2  # Pillow and torch round their fixed-point weights differently
        assert difference.mean() < 0.2
    whole = v2.functional.resize(tensor, [80, 80], v2.InterpolationMode.BICUBIC, antialias=True)
    assert torch.equal(whole.permute(1, 2, 0), sample.image)


def test_the_same_seed_epoch_and_sample_give_the_same_views_and_another_epoch_others() -> None:
    pixels = PALETTE[rectangles()]
    first, again, later = (sample_of(rectangles(), pixels, 9, e, view_size=32) for e in (2, 2, 3))
    assert all(torch.equal(a, b) for a, b in zip(first.views, again.views, strict=True))
    assert not np.array_equal(first.geometry.crop_box, later.geometry.crop_box)


def pooled_masks(label_map: np.ndarray, box: tuple[float, ...], flipped: bool, cells: int) -> torch.Tensor:
    """The share of each cell of a view that each id has, by cropping the label map finely and averaging."""
    fine = crop_label_map(label_map, box, flipped=flipped, size=(cells * 32, cells * 32))
    one_hot = torch.nn.functional.one_hot(torch.from_numpy(fine.astype(np.int64)), 16).permute(2, 0, 1).float()
    return torch.nn.functional.avg_pool2d(one_hot[None], 32)[0]


def aligned(label_map: np.ndarray, box: tuple[float, ...], flipped: bool, cells: int) -> torch.Tensor:
    return align_label_map(
        torch.from_numpy(label_map.astype(np.int64))[None],
        16,
        crop_box=torch.tensor([box], dtype=torch.float32),
        flipped=torch.tensor([flipped]),
        size=(cells, cells),
    )[0]


@pytest.mark.parametrize("flipped", [False, True])
def test_roi_align_of_the_whole_map_s_masks_agrees_with_the_jointly_cropped_map(flipped: bool) -> None:
    label_map = np.kron(np.arange(16).reshape(4, 4), np.ones((4, 4), int)).astype(np.uint8)  # a 16 × 16 grid of cells
    for box in ((0, 0, 1, 1), (0.25, 0.5, 0.75, 1.0), (0.0, 0.25, 0.5, 0.75)):  # borders of cells on borders of cells
        exact = pooled_masks(label_map, box, flipped, 4)
        interior = aligned(label_map, box, flipped, 4)
        torch.testing.assert_close(interior, exact, atol=1e-5, rtol=0)  # its samples lie on the map's pixel centres
    rng = np.random.default_rng(0)
    differences = []
    for _ in range(50):
        low = rng.uniform(0, 0.5, 2)
        box = (*low, *(low + rng.uniform(0.3, 0.5, 2)))
        differences.append(
            (pooled_masks(label_map, box, flipped, 7) - aligned(label_map, box, flipped, 7)).abs().mean()
        )
    assert np.mean(differences) < 0.02


def broken(member: str, data: bytes | None) -> dict[str, bytes]:
    good = members(rectangles(), PALETTE[rectangles()])
    if data is None:
        del good[member]
    else:
        good[member] = data
    return good


GOOD = members(rectangles(), PALETTE[rectangles()])


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (broken("superpixels.png", None), "no member superpixels.png"),
        (broken("jpg", GOOD["jpg"][: len(GOOD["jpg"]) // 2]), "damaged"),
        (broken("superpixels.png", GOOD["superpixels.png"][:60]), "damaged"),
        (broken("json", b"{}"), "damaged"),
        (broken("json", json.dumps({**json.loads(GOOD["json"]), "width": 5}).encode()), "not what its json says"),
        (broken("json", json.dumps({**json.loads(GOOD["json"]), "num_superpixels": 15}).encode()), "not what"),
    ],
)
def test_a_damaged_sample_is_named(found: dict[str, bytes], message: str) -> None:
    def decode() -> None:
        decode_labels(found, key="000000042", max_superpixels=16)
        decode_pixels(found["jpg"], key="000000042")

    with pytest.raises(InputError, match=f"sample 000000042.*{message}"):
        decode()


def test_an_id_above_the_manifests_bound_is_found() -> None:
    with pytest.raises(InputError, match="not what its json says"):
        decode_labels(GOOD, key="k", max_superpixels=15)


def rounded(pixels: torch.Tensor, size: int) -> torch.Tensor:
    """One crop as a GPU resized it when it took crop by crop."""
    floats = F.interpolate(pixels.unsqueeze(0).float(), (size, size), mode="bicubic", antialias=True)
    return floats.round().clamp(0, 255).to(torch.uint8)[0]


def some_images(count: int) -> tuple[list[torch.Tensor], list[tuple[PixelBox, PixelBox]]]:
    generator, rng = torch.Generator().manual_seed(3), np.random.default_rng(3)
    sizes = [(int(h), int(w)) for h, w in rng.integers(20, 60, (count, 2))]
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in sizes]
    boxes = [
        tuple(random_crop_box(rng, width=w, height=h, scale=(0.1, 1), ratio=(3 / 4, 4 / 3)) for _ in (0, 1))
        for h, w in sizes
    ]
    return images, boxes


def test_crops_that_are_rounded_together_are_those_of_one_by_one() -> None:
    images, boxes = some_images(35)  # more than are held at once
    flipped = torch.arange(70).view(35, 2) % 3 == 0
    whole, views = resize_and_crop_together(images, boxes, flipped, image_size=24, view_size=16)
    assert (whole.shape, views.shape) == ((35, 3, 24, 24), (35, 2, 3, 16, 16))
    assert whole.dtype == views.dtype == torch.uint8
    for number, (pixels, pair) in enumerate(zip(images, boxes, strict=True)):
        assert torch.equal(whole[number], rounded(pixels, 24))
        for view, box, flip in zip(views[number], pair, flipped[number].tolist(), strict=True):
            expected = rounded(pixels[:, box.top : box.bottom, box.left : box.right], 16)
            assert torch.equal(view, expected.flip(-1) if flip else expected)


@pytest.mark.long
def test_a_gpu_launches_four_kernels_an_image() -> None:
    images, boxes = some_images(32)
    counts, flipped = [], torch.zeros(32, 2, dtype=torch.bool)
    for number in (1, 32):
        there = [torch.empty(image.shape, dtype=torch.uint8, device=DEVICE) for image in images[:number]]
        with launches() as counted:
            whole, views = resize_and_crop_together(
                there, boxes[:number], flipped[:number], image_size=24, view_size=16
            )
        counts.append(counted.kernels.total())
        assert whole.device == views.device == DEVICE
        assert counted.waits == []
    assert (counts[1] - counts[0]) / 31 == 4
    assert counts[0] == 4 + 13
