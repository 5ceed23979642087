from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from pipeline.foundation.errors import InputError
from pipeline.foundation.pictures import voc_palette
from preprocess import scenes
from preprocess.config import SHAPES, SceneSettings
from preprocess.demo import make_scenes as make_module
from preprocess.demo.make_scenes import make_scenes
from preprocess.demo.scene_art import (
    _coverage,
    _lay,
    _Object,
    _outline,
    _painted,
    _relief,
    _shifted,
    _soft,
    make_scene,
)
from preprocess.demo.scene_files import voc_mask

SMALL = SceneSettings(pretrain_images=13, train_images=3, val_images=2, size=48)


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes") / "demo"
    assert make_scenes(folder, SMALL)
    return folder


def test_layout(made):
    assert sorted(path.name for path in made.iterdir()) == ["VOCdevkit", "images", "scenes.json"]
    images = sorted((made / "images").rglob("*.jpg"))
    assert [path.name for path in sorted(images, key=lambda p: p.name)] == [f"scene_{n:06d}.jpg" for n in range(13)]
    assert {path.parent.name for path in images} <= set(SHAPES)
    voc = made / "VOCdevkit" / "VOC2012"
    assert (voc / "classes.txt").read_text().split() == ["background", *SHAPES]
    lists = {name: (voc / "ImageSets/Segmentation" / f"{name}.txt").read_text().split() for name in ("train", "val")}
    assert [len(names) for names in lists.values()] == [3, 2]
    for name in lists["train"] + lists["val"]:
        with (
            Image.open(voc / f"JPEGImages/{name}.jpg") as image,
            Image.open(voc / f"SegmentationClass/{name}.png") as mask,
        ):
            assert image.size == mask.size == (48, 48)
            assert mask.mode == "P"
            assert set(np.unique(np.asarray(mask))) <= {*range(len(SHAPES) + 1), 255}


def test_palette_is_that_of_voc():
    """The first colours as the development kit lists them."""
    palette = voc_palette()
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert palette[:7].tolist() == expected
    assert palette[20].tolist() == [0, 64, 128]
    assert palette[255].tolist() == [224, 224, 192]


def test_a_scene_depends_on_seed_stream_and_index_alone():
    one, again = (make_scene(SMALL, stream=1, index=4) for _ in range(2))
    np.testing.assert_array_equal(one.image, again.image)
    more = make_scene(SceneSettings(**{**SMALL.model_dump(), "pretrain_images": 500}), stream=1, index=4)
    np.testing.assert_array_equal(one.image, more.image)
    for other in (make_scene(SMALL, stream=2, index=4), make_scene(SMALL, stream=1, index=10)):
        assert (one.image != other.image).mean() > 0.5


def test_masks_agree_with_each_other_and_with_the_picture():
    for index in range(6):
        scene = make_scene(SceneSettings(), stream=0, index=index)
        assert set(np.unique(scene.classes)) <= set(range(7))
        np.testing.assert_array_equal(scene.classes == 0, scene.instances == 0)
        for number in np.unique(scene.instances)[1:]:
            assert len(np.unique(scene.classes[scene.instances == number])) == 1
        areas = [np.sum(scene.classes == class_id) for class_id in range(1, 7)]
        assert scene.dominant == int(np.argmax(areas)) + 1


def test_outlines_are_edges_of_the_picture():
    """The picture changes more across outlines than elsewhere, else the masks would not be its masks."""
    across, elsewhere = [], []
    for index in range(20):
        scene = make_scene(SceneSettings(), stream=0, index=index)
        grey = scene.image.astype(float)
        change = np.abs(grey[:, 2:] - grey[:, :-2]).sum(axis=2)
        edge = scene.instances[:, 2:] != scene.instances[:, :-2]
        across.append(change[edge].mean())
        elsewhere.append(change[~edge].mean())
    assert np.mean(across) > 2 * np.mean(elsewhere)


def test_colour_does_not_give_the_class_away():
    """Nearest class mean by mean object colour stays near chance, one in six (300 objects: sd 2 %)."""
    colours, ids = [], []
    for index in range(300):
        scene = make_scene(SceneSettings(size=32), stream=0, index=index)
        where = scene.classes == scene.dominant
        colours.append(scene.image[where].mean(axis=0))
        ids.append(scene.dominant)
    x, y = np.array(colours), np.array(ids)
    seen, held_out = slice(0, 150), slice(150, None)
    means = np.stack([x[seen][y[seen] == c].mean(axis=0) for c in range(1, 7)])
    guess = np.linalg.norm(x[held_out][:, None] - means, axis=2).argmin(axis=1) + 1
    assert (guess == y[held_out]).mean() < 0.3


def test_void_is_as_wide_as_asked():
    scene = make_scene(SceneSettings(), stream=0, index=0)
    np.testing.assert_array_equal(voc_mask(scene, void_width=0), scene.classes)
    for width in (1, 2):
        box = np.ones((2 * width + 1, 2 * width + 1))
        near = ndimage.maximum_filter(scene.instances, footprint=box, mode="nearest")
        near = near != ndimage.minimum_filter(scene.instances, footprint=box, mode="nearest")
        mask = voc_mask(scene, void_width=width)
        np.testing.assert_array_equal(mask == 255, near)
        np.testing.assert_array_equal(mask[~near], scene.classes[~near])


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_is_the_area_of_the_outline(shape):
    """Against the shoelace formula, hole subtracted."""
    outline = _outline(np.random.default_rng(0), shape)
    shoelace = [abs(np.sum(p[:, 0] * np.roll(p[:, 1], -1) - p[:, 1] * np.roll(p[:, 0], -1))) / 2 for p in outline]
    area = (shoelace[0] - sum(shoelace[1:])) * (0.3 * 200) ** 2
    coverage = _coverage(outline, _Object(1, 0.3, (0.5, 0.5)), 0.4, 200)
    assert np.abs(np.linalg.norm(outline[0], axis=1)).max() <= 1.15
    assert coverage.sum() == pytest.approx(area, rel=0.03)


def test_blur_keeps_the_mean_and_matches_scipy():
    field = np.zeros((40, 40))
    field[15:22, 12:30] = 1
    expected = field
    for _ in range(3):
        expected = ndimage.uniform_filter(expected, size=5, mode="nearest")
    np.testing.assert_allclose(_soft(field, 2), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(40, 31), (9, 50)])
@pytest.mark.parametrize("radius", [0.3, 2, 3.6])
def test_blur_has_the_bits_of_its_definition(shape, radius):
    """Means by differences of running sums, with the border repeated: other sums would round otherwise."""
    field = expected = np.random.default_rng(0).random(shape)
    reach = max(1, round(radius))
    for _ in range(6):
        sums = np.cumsum(np.pad(expected, ((reach + 1, reach), (0, 0)), mode="edge"), axis=0)
        expected = ((sums[2 * reach + 1 :] - sums[: -2 * reach - 1]) / (2 * reach + 1)).T
    np.testing.assert_array_equal(_soft(field, radius), expected)


@pytest.mark.parametrize("size", [32, 61, 128])
@pytest.mark.parametrize(("radius", "centre"), [(0.1, (0.5, 0.5)), (0.36, (0.68, 0.32)), (0.19, (0.08, 0.92))])
@pytest.mark.parametrize("angle", [0.3, 2.0, 5.5])
def test_an_object_changes_the_pixels_that_the_whole_picture_would(size, radius, centre, angle):
    """Only a window around the object is worked on; its shadow and rounded edges must not be cut off."""
    rng, light = np.random.default_rng(1), np.array([np.cos(angle), np.sin(angle)])
    alpha = _coverage(_outline(rng, "star"), _Object(1, radius, centre), 0.4, size)
    (canvas, _), (paint, _) = (_painted(rng, size, avoid=None) for _ in range(2))
    shadow = _shifted(_soft(alpha, size * 0.025), -light * size * 0.05)
    expected = canvas * (1 - 0.5 * np.clip(shadow, 0, 1) * (1 - alpha))
    expected = expected + alpha * (np.clip(paint * _relief(alpha, light, size, radius), 0, 1) - expected)
    _lay(canvas, alpha, paint, light, radius)
    np.testing.assert_array_equal(canvas, expected)


def test_again_is_instant_and_a_changed_setting_remakes(tmp_path):
    out = tmp_path / "demo"
    assert make_scenes(out, SMALL)
    first = contents(out)
    assert not make_scenes(out, SMALL)
    assert make_scenes(out, SMALL.model_copy(update={"seed": 1}))
    changed = contents(out)
    assert not any((out / "images").glob("*/*.making"))
    assert make_scenes(out, SMALL)
    assert contents(out) == first != changed


def test_a_stopped_run_is_made_again(tmp_path, made):
    out = tmp_path / "demo"
    (out / ".making" / "images").mkdir(parents=True)
    (out / ".making" / "images" / "half.jpg").write_bytes(b"x")
    assert make_scenes(out, SMALL)
    assert contents(out) == contents(made)


def test_a_folder_of_something_else_is_left_alone(tmp_path, capsys):
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match="holds 'images' but no scenes"):
        make_scenes(tmp_path, SMALL)
    assert scenes.main(["--out", str(tmp_path), "--set", "scenes.sise=3"]) == 2
    assert "did you mean 'size'" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"scenes": ["beach"]}', "[]", "{", '{"fingerprint": "../x", "settings": {}}'])
def test_a_foreign_scenes_json_makes_no_folder_ours(tmp_path, text):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "thesis.jpg").write_bytes(b"mine")
    (tmp_path / "scenes.json").write_text(text)
    with pytest.raises(InputError, match=r"scenes\.json is damaged or none of ours; move it and images and VOC"):
        make_scenes(tmp_path, SMALL)
    assert (tmp_path / "images" / "thesis.jpg").read_bytes() == b"mine"


@pytest.mark.parametrize("name", [".making", "images", "VOCdevkit", "scenes.json"])
def test_a_link_in_the_folder_is_refused_and_what_it_leads_to_stays(tmp_path, made, name):
    out, elsewhere = tmp_path / "demo", tmp_path / "elsewhere"
    shutil.copytree(made, out)
    elsewhere.mkdir()
    (elsewhere / "thesis").write_text("mine")
    if (out / name).exists():
        (out / name).rename(tmp_path / "aside")
    (out / name).symlink_to(elsewhere)
    with pytest.raises(InputError, match=f"{name}: a link, and r2o follows none there"):
        make_scenes(out, SMALL.model_copy(update={"seed": 1}))
    assert [path.name for path in elsewhere.iterdir()] == ["thesis"]


def test_the_folder_is_synced_between_the_renames_and_the_marker(tmp_path, monkeypatch):
    told, out = [], tmp_path / "demo"

    def sync(folder):
        told.append((folder, *sorted(path.name for path in folder.iterdir())))

    monkeypatch.setattr(make_module, "sync_folder", sync)
    make_scenes(out, SMALL)
    assert told == [(out, ".making"), (out, ".making", "VOCdevkit", "images")]


def test_command(tmp_path, capsys):
    small = [f"--set=scenes.{key}=1" for key in ("pretrain_images", "train_images", "val_images")]
    arguments = ["--out", str(tmp_path / "demo"), "--set=scenes.size=32", *small]
    assert scenes.main(arguments) == 0
    assert scenes.main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[1].endswith("1 + 1 as VOC, finished and unchanged")
