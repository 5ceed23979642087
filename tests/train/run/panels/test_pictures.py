"""What panels, history and animation show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.foundation.pictures import CAPTION_HEIGHT, MARGIN, colour_regions, draw_boundaries
from train.run.panels.frames import Frame, Refined
from train.run.panels.pictures import (
    OPACITY,
    OUTLINE,
    animated,
    animation_form,
    animation_frame,
    masks_over,
    over_training,
    panel,
)

SIDE = 24
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(5)]
SUPERPIXELS = [RNG.integers(0, 9, (8, 8)) for _ in range(5)]


def frame(step: int, num_clusters: tuple[int, int] = (32, 4)) -> Frame:
    rng = np.random.default_rng(step)
    return Frame(step, num_clusters, Refined(rng.integers(0, 32, (5, 6, 6)), rng.integers(0, 4, (5, 6, 6))))


def tile(picture: Image.Image, row: int, column: int) -> np.ndarray:
    x, y = MARGIN + column * (SIDE + MARGIN), CAPTION_HEIGHT + MARGIN + row * (SIDE + MARGIN)
    return np.asarray(picture)[y : y + SIDE, x : x + SIDE]


def test_cells_stay_squares_with_the_image_beneath_and_an_outline() -> None:
    labels = np.array([[0, 0, 1], [0, 2, 2], [1, 1, 1]])
    shown = masks_over(IMAGES[0], labels)
    whole = labels.repeat(8, 0).repeat(8, 1)
    mixed = OPACITY * colour_regions(whole).astype(float) + (1 - OPACITY) * IMAGES[0]
    outline = np.zeros((SIDE, SIDE), bool)
    outline[:, :-1] |= whole[:, 1:] != whole[:, :-1]
    outline[:-1] |= whole[1:] != whole[:-1]
    assert (shown[outline] == OUTLINE).all()
    np.testing.assert_allclose(shown[~outline], mixed[~outline], atol=1)


def test_a_panel_has_image_superpixels_and_masks_at_both_k() -> None:
    drawn, shown = panel(IMAGES, SUPERPIXELS, frame(7)), frame(7).masks
    assert drawn.size == (4 * (SIDE + MARGIN) + MARGIN, CAPTION_HEIGHT + 5 * (SIDE + MARGIN) + MARGIN)
    for row in range(5):
        regions = SUPERPIXELS[row].repeat(3, 0).repeat(3, 1)
        np.testing.assert_array_equal(tile(drawn, row, 0), IMAGES[row])
        np.testing.assert_array_equal(tile(drawn, row, 1), draw_boundaries(IMAGES[row], regions))
        np.testing.assert_array_equal(tile(drawn, row, 2), masks_over(IMAGES[row], shown.at_epoch[row]))
        np.testing.assert_array_equal(tile(drawn, row, 3), masks_over(IMAGES[row], shown.at_end[row]))


def test_the_history_shows_one_k_and_its_captions_the_other() -> None:
    frames = [frame(0), frame(9), frame(12)]
    drawn = over_training(IMAGES, SUPERPIXELS, frames)
    assert drawn.width == 5 * (SIDE + MARGIN) + MARGIN
    for row in range(5):
        np.testing.assert_array_equal(tile(drawn, row, 0), IMAGES[row])
        for column, one in enumerate(frames, start=2):
            np.testing.assert_array_equal(tile(drawn, row, column), masks_over(IMAGES[row], one.masks.at_end[row]))
    wide = [image.repeat(8, 0).repeat(8, 1) for image in IMAGES]
    one, other = (
        np.asarray(over_training(wide, SUPERPIXELS, [frame(0), frame(9, (now, 4)), frame(12)])) for now in (32, 31)
    )
    changed = np.argwhere((one != other).any(2))
    assert len(changed)
    assert (changed[:, 0] < CAPTION_HEIGHT).all()
    assert (changed[:, 1] // (8 * SIDE + MARGIN) == 3).all()


def test_a_frame_of_the_animation_is_pairs_in_rows_of_four() -> None:
    drawn, shown = animation_frame(IMAGES, frame(3)), frame(3).masks.at_epoch
    assert drawn.size == (8 * (SIDE + MARGIN) + MARGIN, CAPTION_HEIGHT + 2 * (SIDE + MARGIN) + MARGIN)
    for index, image in enumerate(IMAGES):
        row, column = divmod(index, 4)
        np.testing.assert_array_equal(tile(drawn, row, 2 * column), image)
        np.testing.assert_array_equal(tile(drawn, row, 2 * column + 1), masks_over(image, shown[index]))
    assert (np.asarray(animation_frame(IMAGES, frame(0)))[:CAPTION_HEIGHT] < 128).any()  # a caption


def bars(count: int) -> list[Image.Image]:
    """A white bar on black that moves a pixel to the right in each."""
    pictures = np.zeros((count, 20, count, 3), np.uint8)
    pictures[np.arange(count), :, np.arange(count)] = 255
    return [Image.fromarray(picture) for picture in pictures]


def noise(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(count)]


def played(data: bytes) -> tuple[list[int], list[int]]:
    """The brightest column and the milliseconds of each frame."""
    places, durations = [], []
    with Image.open(io.BytesIO(data)) as picture:
        for index in range(getattr(picture, "n_frames", 1)):
            picture.seek(index)
            places.append(int(np.asarray(picture.convert("RGB")).mean((0, 2)).argmax()))
            durations.append(int(picture.info.get("duration", 0)))
    return places, durations


@pytest.mark.parametrize("form", ["WEBP", "GIF"])
@pytest.mark.parametrize(("count", "each"), [(2, 800), (20, 400), (40, 200)])
def test_frames_come_in_order_and_the_last_is_held(form: str, count: int, each: int) -> None:
    data = animated(bars(count), form=form)
    places, durations = played(data)
    assert durations == [each] * (count - 1) + [3000]
    assert places == list(range(count))
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.info["loop"] == 0


@pytest.mark.parametrize("form", ["WEBP", "GIF"])
def test_of_many_frames_forty_are_shown(form: str) -> None:
    places, _ = played(animated(bars(118), form=form))
    assert places == list(range(0, 118, 3))


@pytest.mark.parametrize("form", ["WEBP", "GIF"])
@pytest.mark.parametrize("most_bytes", [15_000, 2_000])
def test_it_is_never_larger_than_allowed(form: str, most_bytes: int) -> None:
    frames = noise(12)
    data = animated(frames, form=form, most_bytes=most_bytes)
    assert len(data) <= most_bytes
    assert len(played(data)[0]) >= 10
    assert len(animated(frames, form=form)) > 15_000  # it had to be made smaller


@pytest.mark.parametrize("form", ["WEBP", "GIF"])
def test_one_frame_is_a_picture(form: str) -> None:
    assert len(played(animated(bars(1), form=form))[0]) == 1


def test_pillow_without_animated_webp_makes_a_gif(monkeypatch: pytest.MonkeyPatch) -> None:
    assert animation_form() == "WEBP"
    monkeypatch.delitem(Image.SAVE_ALL, "WEBP")
    monkeypatch.setattr(Image, "init", lambda: None)
    assert animation_form() == "GIF"
