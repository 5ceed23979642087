from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.pictures import (
    BOUNDARY_COLOUR,
    CAPTION_HEIGHT,
    MARGIN,
    boundaries,
    colour_regions,
    draw_boundaries,
    line_charts,
    resize_labels,
    sheet,
)

LABELS = np.array([[0, 0, 1], [0, 0, 1], [2, 2, 2]])
EDGE = np.array([[0, 1, 0], [1, 1, 1], [0, 0, 0]], dtype=bool)


def test_boundaries_by_hand():
    np.testing.assert_array_equal(boundaries(LABELS), EDGE)


def test_drawing_touches_the_boundary_alone():
    image = np.full((3, 3, 3), 9, np.uint8)
    drawn = draw_boundaries(image, LABELS)
    assert (drawn[EDGE] == BOUNDARY_COLOUR).all()
    assert (drawn[~EDGE] == 9).all()
    assert (image == 9).all()


def test_equal_ids_get_equal_colours_and_others_other_ones():
    ids = np.arange(100).reshape(10, 10)
    colours = colour_regions(ids)
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) == 100
    np.testing.assert_array_equal(colour_regions(ids[:, ::-1]), colours[:, ::-1])


def test_regions_are_laid_over_an_image():
    image = np.full((10, 10, 3), 100, np.uint8)
    ids = np.arange(100).reshape(10, 10)
    half = colour_regions(ids, image=image, opacity=0.5).astype(float)
    np.testing.assert_allclose(half, (colour_regions(ids) + 100.0) / 2, atol=1)
    np.testing.assert_array_equal(colour_regions(ids, image=image, opacity=0.0), image)


@pytest.mark.parametrize("size", [(3, 3), (6, 9), (7, 5), (2, 2), (1, 1), (224, 224)])
def test_labels_are_resized_as_pillow_does_nearest(size):
    labels = np.random.default_rng(0).integers(0, 9, (3, 4), dtype=np.uint8)
    expected = Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST)
    np.testing.assert_array_equal(resize_labels(labels, size), np.asarray(expected))


def test_sheet_places_every_tile():
    tiles = [[np.full((4, 5, 3), 10 * (3 * y + x), np.uint8) for x in range(3)] for y in range(2)]
    pixels = np.asarray(sheet([tiles[0], tiles[1][:2]], captions=("a",)))
    assert pixels.shape == (CAPTION_HEIGHT + 2 * (4 + MARGIN) + MARGIN, 3 * (5 + MARGIN) + MARGIN, 3)
    for y, x in [(0, 0), (0, 2), (1, 1)]:
        top, left = CAPTION_HEIGHT + MARGIN + y * (4 + MARGIN), MARGIN + x * (5 + MARGIN)
        np.testing.assert_array_equal(pixels[top : top + 4, left : left + 5], tiles[y][x])
    assert (pixels[-MARGIN - 4 :, -MARGIN - 5 :] == 255).all()  # the short row ends in white
    assert (pixels[:CAPTION_HEIGHT] < 255).any()


def test_a_chart_draws_its_least_value_at_the_bottom_and_its_greatest_at_the_top() -> None:
    picture = np.asarray(line_charts({"up": [0, 1, 2], "flat": [5, 5, 5]}, x=[0, 10, 20], x_label="step", width=200))
    blue = (picture == (31, 90, 180)).all(2)
    upper, lower = blue[:165], blue[165:]
    rows = np.flatnonzero(upper.any(1))
    columns = np.flatnonzero(upper.any(0))
    assert (rows.min(), rows.max()) == pytest.approx((20, 160), abs=1)
    assert (columns.min(), columns.max()) == pytest.approx((64, 264), abs=1)
    middle = np.flatnonzero(upper[:, 164])
    assert middle.mean() == pytest.approx(90, abs=1.5)
    assert np.ptp(np.flatnonzero(lower.any(1))) <= 2  # a constant is a line in the middle
