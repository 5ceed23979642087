from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from fast_slic import Slic
from PIL import Image
from scipy import ndimage

from pipeline.artifacts.sample import decode_jpeg
from pipeline.foundation.errors import InputError
from preprocess.config import FastSlicSettings, FelzenszwalbSettings, GridSettings, SkimageSettings
from preprocess.shards import superpixels
from preprocess.shards.images import read_image
from preprocess.shards.superpixels import (
    AnySettings,
    FastestSlic,
    connected,
    grid,
    label_maps_of,
    label_pieces,
    resize,
    superpixels_of,
)
from tests.train.test_golden import SHARDS, golden_images, golden_superpixels


def rgbx(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) → (H, W, 4)."""
    return np.concatenate([image, np.zeros_like(image[..., :1])], axis=-1)


def map_of(image: np.ndarray, settings: AnySettings | None = None) -> np.ndarray:
    return label_maps_of(rgbx(image), {"": settings or FastSlicSettings()})[""]


def pieces_by_scipy(label_map: np.ndarray) -> int:
    """4-connected pieces of equal ids."""
    return sum(ndimage.label(label_map == label)[1] for label in np.unique(label_map))


def first_appearance(label_map: np.ndarray) -> list[int]:
    return list(dict.fromkeys(label_map.ravel().tolist()))


PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "imagenet1k_sample"
HARD = {
    "noise": lambda rng: rng.integers(0, 256, (150, 200, 3), dtype=np.uint8),
    "flat": lambda rng: np.full((150, 200, 3), 7, np.uint8),
    "two colours": lambda rng: np.repeat(rng.integers(0, 2, (150, 200, 1), dtype=np.uint8) * 255, 3, axis=2),
    "one pixel": lambda rng: np.full((1, 1, 3), 200, np.uint8),
    "one row": lambda rng: rng.integers(0, 256, (1, 900, 3), dtype=np.uint8),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("segments", [1, 100, 255])
def test_ids_are_dense_ordered_and_connected(kind, segments):
    image = HARD[kind](np.random.default_rng(0))
    label_map = map_of(image, FastSlicSettings(segments=segments))
    assert label_map.dtype == np.uint8
    assert label_map.shape == (224, 224)
    count = int(label_map.max()) + 1
    assert first_appearance(label_map) == list(range(count))
    assert pieces_by_scipy(label_map) == count <= segments


def test_a_photo_like_image_gives_what_was_asked_for(picture):
    label_map = map_of(picture(1, 300, 200))
    assert label_map.max() + 1 == 100


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no ../shared/data/imagenet1k_sample")
def test_photos_give_about_a_hundred_connected_segments():
    for path in sorted(PHOTOS.glob("*/*"))[::9]:
        label_map = map_of(decode_jpeg(path.read_bytes()))
        assert 90 <= len(np.unique(label_map)) == pieces_by_scipy(label_map) <= 100


def test_segments_follow_a_strong_edge():
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, 100:] = 255
    label_map = map_of(image)
    assert not set(label_map[:, :100].ravel().tolist()) & set(label_map[:, 100:].ravel().tolist())


def test_the_whole_image_is_resized_to_the_square():
    """A map of a stretched image is the map of the image stretched first (Pillow)."""
    pixels = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    for name in ("box", "bilinear"):
        settings = FastSlicSettings(size=64, segments=30, resample=name)
        squashed = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling[name.upper()]))
        np.testing.assert_array_equal(resize(rgbx(pixels), size=64, resample=name), squashed)
        np.testing.assert_array_equal(map_of(pixels, settings), superpixels_of(squashed, settings=settings))


def test_only_the_extent_is_resized():
    pixels = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    cut = resize(rgbx(pixels), size=32, resample="box", extent=(80.5, 48.0))
    expected = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BOX, box=(0, 0, 80.5, 48))
    np.testing.assert_array_equal(cut, np.asarray(expected))


def test_backends_agree(picture):
    for seed in range(5):
        image = picture(seed, 224, 224)
        maps = [superpixels_of(image, settings=FastSlicSettings(), backend=b) for b in (Slic, FastestSlic)]
        np.testing.assert_array_equal(*maps)


def test_labels_do_not_depend_on_what_came_before(picture):
    alone = map_of(picture(1))
    map_of(picture(2))
    np.testing.assert_array_equal(map_of(picture(1)), alone)


def test_several_maps_are_those_made_alone(picture):
    wanted = {
        "": FastSlicSettings(),
        "coarse": FastSlicSettings(segments=25),
        "small": FastSlicSettings(size=96),
        "grid": GridSettings(rows=2, columns=2),
        "soft": FastSlicSettings(resample="bilinear"),
    }
    together = label_maps_of(rgbx(picture(1, 300, 200)), wanted)
    assert list(together) == list(wanted)
    for name, settings in wanted.items():
        np.testing.assert_array_equal(together[name], map_of(picture(1, 300, 200), settings))
    assert together["small"].shape == (96, 96)


@pytest.mark.parametrize(("rows", "columns", "size"), [(10, 10, 224), (2, 2, 224), (3, 5, 8), (8, 1, 8)])
def test_a_grid_is_of_boxes_that_differ_by_one_pixel(rows, columns, size, picture):
    label_map = map_of(picture(1), GridSettings(rows=rows, columns=columns, size=size))
    assert first_appearance(label_map) == list(range(rows * columns))
    heights, widths = (
        np.diff([*np.flatnonzero(np.diff(line, prepend=-1)), size]) for line in (label_map[:, 0], label_map[0])
    )
    assert (len(heights), len(widths)) == (rows, columns)
    assert np.ptp(heights) <= 1
    assert np.ptp(widths) <= 1
    boxes = {label: np.argwhere(label_map == label) for label in np.unique(label_map)}
    assert all(len(box) == np.prod(np.ptp(box, axis=0) + 1) for box in boxes.values())
    np.testing.assert_array_equal(grid(size, rows=rows, columns=columns), label_map)


def test_scikit_image_is_asked_with_its_own_defaults(picture):
    segmentation = pytest.importorskip("skimage.segmentation")
    image = picture(3, 224, 224)
    expected = segmentation.slic(image, n_segments=100, start_label=0)
    found = superpixels_of(image, settings=SkimageSettings())
    assert len(np.unique(expected)) == found.max() + 1 == pieces_by_scipy(found)
    assert len({*zip(expected.ravel().tolist(), found.ravel().tolist(), strict=True)}) == found.max() + 1
    graph = segmentation.felzenszwalb(image, scale=1000, sigma=0.8, min_size=1000)
    found = superpixels_of(image, settings=FelzenszwalbSettings())
    assert len({*zip(graph.ravel().tolist(), found.ravel().tolist(), strict=True)}) == found.max() + 1


NATIVE = FelzenszwalbSettings(scale=100, min_size=40, size=64, segmented_at="native")


def in_order(label_map: np.ndarray) -> np.ndarray:
    """Ids renumbered by the order in which they appear."""
    numbers = {old: new for new, old in enumerate(first_appearance(label_map))}
    return np.vectorize(numbers.__getitem__)(label_map)


@pytest.mark.parametrize(("width", "height"), [(64, 64), (150, 100), (30, 90)])
def test_a_native_map_is_the_segmentation_of_the_whole_image_seen_at_the_stored_pixels_centres(width, height, picture):
    segmentation = pytest.importorskip("skimage.segmentation")
    image = picture(3, width, height)
    whole = segmentation.felzenszwalb(image, scale=100, sigma=0.8, min_size=40)
    seen = [[whole[(2 * y + 1) * height // 128, (2 * x + 1) * width // 128] for x in range(64)] for y in range(64)]
    found = label_maps_of(rgbx(resize(rgbx(image), size=64, resample="box")), {"": NATIVE}, native=lambda: image)[""]
    assert found.dtype == np.uint8
    assert found.max() > 3
    np.testing.assert_array_equal(found, in_order(np.array(seen)))


def test_native_ids_above_255_begin_again(picture):
    """DetCon keeps a byte of each."""
    segmentation = pytest.importorskip("skimage.segmentation")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = segmentation.felzenszwalb(noise, scale=1, sigma=0, min_size=4)
    assert whole.max() > 300
    settings = FelzenszwalbSettings(scale=1, sigma=0, min_size=4, size=64, segmented_at="native")
    found = superpixels.native_map(noise, settings=settings)
    assert (found.min(), found.max()) == (0, 255)
    np.testing.assert_array_equal(found, in_order(whole % 256))


def test_an_image_too_large_to_be_segmented_whole_is_reduced(monkeypatch, picture):
    pytest.importorskip("skimage.segmentation")
    monkeypatch.setattr(superpixels, "MAX_NATIVE_PIXELS", 90 * 60)
    image = picture(3, 180, 120)
    reduced = np.asarray(Image.fromarray(image).resize((90, 60), Image.Resampling.BILINEAR))
    expected = superpixels.native_map(reduced, settings=NATIVE)
    assert expected.max() > 3
    np.testing.assert_array_equal(superpixels.native_map(image, settings=NATIVE), expected)


def test_more_than_256_ids_are_16_bit(picture):
    label_map = map_of(picture(1), GridSettings(rows=17, columns=16))
    assert (label_map.dtype, label_map.max()) == (np.uint16, 271)


def test_without_scikit_image_it_says_what_to_install(picture, monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(InputError, match=r"backend felzenszwalb needs scikit-image; pip install -e '\.\[skimage\]'"):
        map_of(picture(1), FelzenszwalbSettings())


@pytest.mark.parametrize(("size", "segments"), [(8, 64), (16, 255), (15, 225)])
def test_as_many_segments_as_pixels(size, segments):
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    label_map = map_of(image, FastSlicSettings(size=size, segments=segments))
    assert label_map.shape == (size, size)


@pytest.mark.parametrize("seed", range(20))
def test_pieces_are_those_of_scipy(seed):
    rng = np.random.default_rng(seed)
    label_map = rng.integers(0, rng.integers(2, 6), rng.integers(1, 40, 2))
    pieces, label_of_piece = label_pieces(label_map)
    assert len(label_of_piece) == pieces_by_scipy(label_map) == pieces_by_scipy(pieces)
    assert first_appearance(pieces) == list(range(len(label_of_piece)))
    np.testing.assert_array_equal(label_of_piece[pieces], label_map)


def test_a_spiral_is_one_piece():
    """The longest way round for a union-find by rows."""
    spiral = np.zeros((41, 41), int)
    for ring in range(0, 20, 2):
        spiral[ring, ring : 41 - ring] = spiral[ring : 41 - ring, 40 - ring] = 1
        spiral[40 - ring, ring : 41 - ring] = spiral[ring + 2 : 41 - ring, ring] = 1
        spiral[ring + 2, ring : ring + 2] = 1
    assert len(label_pieces(spiral)[1]) == pieces_by_scipy(spiral)


@pytest.mark.parametrize("seed", range(20))
def test_fragments_join_neighbours(seed):
    rng = np.random.default_rng(seed)
    label_map = rng.integers(0, 9, (12, 17)).repeat(3, axis=0).repeat(2, axis=1)
    result = connected(label_map)
    count = int(result.max()) + 1
    assert pieces_by_scipy(result) == count == len(np.unique(label_map))
    for label in np.unique(label_map):  # the largest piece of each label stays in one segment
        pieces, number = ndimage.label(label_map == label)
        sizes = ndimage.sum_labels(np.ones_like(pieces), pieces, range(1, number + 1))
        assert len(np.unique(result[pieces == int(np.argmax(sizes)) + 1])) == 1


def test_a_fragment_goes_where_its_border_is_longest():
    label_map = np.array([[0, 0, 0, 0], [1, 1, 1, 2], [1, 1, 0, 2], [1, 1, 1, 2]])
    expected = np.array([[0, 0, 0, 0], [1, 1, 1, 2], [1, 1, 1, 2], [1, 1, 1, 2]])  # three sides to 1, one to 2
    np.testing.assert_array_equal(connected(label_map), expected)


def test_the_stored_maps_of_the_golden_run_are_those_of_its_images(tmp_path: Path) -> None:
    paths = sorted(golden_images(tmp_path).rglob("*.jpg"), key=lambda path: path.stem)
    assert len(paths) == 64
    for number, path in enumerate(paths):
        size = SHARDS.superpixels.size
        image = read_image(path.read_bytes(), quality=95, max_pixels=SHARDS.max_pixels, min_side=size)
        (made,) = label_maps_of(image.pixels, {"": SHARDS.superpixels}, extent=image.extent).values()
        np.testing.assert_array_equal(made, golden_superpixels(number), err_msg=path.name)
