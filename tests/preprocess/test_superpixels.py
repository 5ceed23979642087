from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fast_slic import Slic
from PIL import Image
from scipy import ndimage

from pipeline.artifacts.sample import decode_jpeg
from preprocess.config import SuperpixelSettings
from preprocess.superpixels import FastestSlic, connected, label_pieces, superpixels_of


def pieces_by_scipy(label_map: np.ndarray) -> int:
    """4-connected pieces of equal ids."""
    return sum(ndimage.label(label_map == label)[1] for label in np.unique(label_map))


def first_appearance(label_map: np.ndarray) -> list[int]:
    return list(dict.fromkeys(label_map.ravel().tolist()))


PHOTOS = Path(__file__).parents[3] / "shared" / "data" / "imagenet1k_sample"
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
    label_map = superpixels_of(image, settings=SuperpixelSettings(segments=segments))
    assert label_map.dtype == np.uint8
    assert label_map.shape == (224, 224)
    count = int(label_map.max()) + 1
    assert first_appearance(label_map) == list(range(count))
    assert pieces_by_scipy(label_map) == count <= segments


def test_a_photo_like_image_gives_what_was_asked_for(picture):
    label_map = superpixels_of(picture(1, 300, 200), settings=SuperpixelSettings())
    assert label_map.max() + 1 == 100


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no ../shared/data/imagenet1k_sample")
def test_photos_give_about_a_hundred_connected_segments():
    for path in sorted(PHOTOS.glob("*/*"))[::9]:
        label_map = superpixels_of(decode_jpeg(path.read_bytes()), settings=SuperpixelSettings())
        assert 90 <= len(np.unique(label_map)) == pieces_by_scipy(label_map) <= 100


def test_segments_follow_a_strong_edge():
    image = np.zeros((224, 224, 3), np.uint8)
    image[:, 100:] = 255
    label_map = superpixels_of(image, settings=SuperpixelSettings())
    assert not set(label_map[:, :100].ravel().tolist()) & set(label_map[:, 100:].ravel().tolist())


def test_the_whole_image_is_resized_to_the_square():
    """A map of a stretched image is the map of the image stretched first (Pillow, bilinear)."""
    pixels = np.random.default_rng(1).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    settings = SuperpixelSettings(size=64, segments=30)
    squashed = np.asarray(Image.fromarray(pixels).resize((64, 64), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(
        superpixels_of(pixels, settings=settings), superpixels_of(squashed, settings=settings)
    )


def test_backends_agree(picture):
    for seed in range(5):
        maps = [superpixels_of(picture(seed), settings=SuperpixelSettings(), backend=b) for b in (Slic, FastestSlic)]
        np.testing.assert_array_equal(*maps)


def test_labels_do_not_depend_on_what_came_before(picture):
    settings = SuperpixelSettings()
    alone = superpixels_of(picture(1), settings=settings)
    superpixels_of(picture(2), settings=settings)
    np.testing.assert_array_equal(superpixels_of(picture(1), settings=settings), alone)


@pytest.mark.parametrize(("size", "segments"), [(8, 64), (16, 255), (15, 225)])
def test_as_many_segments_as_pixels(size, segments):
    image = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    label_map = superpixels_of(image, settings=SuperpixelSettings(size=size, segments=segments))
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
