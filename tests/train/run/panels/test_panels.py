"""What the panels show, and what they leave in the run folder."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.artifacts.label_maps import map_member
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.sample import decode_label_map
from train.config.pretrain import PretrainSettings
from train.data.shards.open import max_superpixels, open_shards
from train.engine.build import build_model
from train.run.panels.frames import Refined, read_frame
from train.run.panels.panels import Panels

CPU = torch.device("cpu")

SETTINGS = PretrainSettings.model_validate(
    {
        "epochs": 10,
        "global_batch_size": 8,
        "data": {"image_size": 64, "view_size": 64, "num_workers": 0, "superpixel_maps": {"slic4": 4, "slic32": 32}},
        "model": {"backbone": "resnet18", "head_hidden_size": 8, "projection_size": 4},
        "refine": {"clustering_group_size": 4, "clustering": "none"},
        "curriculum": {"schedule": "linear", "initial_num_clusters": 32, "hold_epochs": 0},
    }
)


@pytest.fixture
def panels(mapped_shards: Path) -> Panels:
    return Panels(open_shards(str(mapped_shards), Manifest.read(mapped_shards), SETTINGS.data), SETTINGS, CPU)


@pytest.mark.parametrize(("epoch", "names"), [(0, ("slic32", "slic4")), (9, ("slic4", "slic4"))])
def test_panels_show_the_maps_of_the_epoch_and_of_the_end(
    mapped_shards: Path, panels: Panels, epoch: int, names: tuple[str, str]
) -> None:
    manifest = Manifest.read(mapped_shards)
    reader = open_shards(str(mapped_shards), manifest, SETTINGS.data)
    model = build_model(SETTINGS, max_superpixels=max_superpixels(manifest, SETTINGS))
    shown = panels.refined_maps(model, epoch=epoch)
    ids = np.linspace(0, manifest.stored - 1, 4).astype(int)
    for name, maps in zip(names, shown, strict=True):
        for sample_id, painted in zip(ids, maps, strict=True):
            label_map = decode_label_map(reader.read(int(sample_id), name).members[map_member(name)])
            assert np.array_equal(painted, label_map[8::16, 8::16])  # the ids at the centres of C4's cells


def test_masks_of_panels_have_a_size_of_their_own(mapped_shards: Path) -> None:
    finer = SETTINGS.model_copy(update={"run": SETTINGS.run.model_copy(update={"panel_image_size": 96})})
    manifest = Manifest.read(mapped_shards)
    reader = open_shards(str(mapped_shards), manifest, SETTINGS.data)
    model = build_model(SETTINGS, max_superpixels=max_superpixels(manifest, SETTINGS))
    shapes = [
        one.at_epoch.shape for one in (Panels(reader, s, CPU).refined_maps(model, epoch=0) for s in (SETTINGS, finer))
    ]
    assert shapes == [(4, 4, 4), (4, 6, 6)]  # C4 of 64 px and of 96


def test_a_vit_has_no_other_size_for_panels() -> None:
    vit = {"model": {"backbone": "vit_s_16"}, "run": {"panel_image_size": 448}}
    with pytest.raises(ValueError, match=r"vit_s_16 has one size, 224; leave run\.panel_image_size out"):
        PretrainSettings.model_validate(vit)


def maps(seed: int) -> Refined:
    rng = np.random.default_rng(seed)
    return Refined(rng.integers(0, 32, (4, 4, 4)), rng.integers(0, 4, (4, 4, 4)))


def kept(run: Path, step: int) -> Refined:
    frame = read_frame(run / "panels" / f"step-{step:08d}.npz")
    assert frame is not None
    return frame.masks


def same(ours: Refined, theirs: Refined) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_masks_keep_their_colours_from_panel_to_panel(panels: Panels, tmp_path: Path) -> None:
    rng = np.random.default_rng(9)
    panels.draw(tmp_path, maps(0), step=0, epoch=0)
    first = panels.draw(tmp_path, maps(0), step=3, epoch=0).read_bytes()
    renumbered = Refined(rng.permutation(32)[maps(0).at_epoch], rng.permutation(4)[maps(0).at_end])
    assert not same(renumbered, maps(0))
    again = panels.draw(tmp_path, renumbered, step=3, epoch=0).read_bytes()
    assert same(kept(tmp_path, 3), kept(tmp_path, 0))
    assert again == first


def test_what_comes_later_decides_nothing(panels: Panels, tmp_path: Path) -> None:
    """A run that goes on from an earlier checkpoint draws what it drew before."""
    for number, step in enumerate((0, 4, 8)):
        panels.draw(tmp_path, maps(number), step=step, epoch=0)
    before = {path.name: path.read_bytes() for path in (tmp_path / "panels").iterdir()}
    panels.draw(tmp_path, maps(1), step=4, epoch=0)
    panels.animate(tmp_path, step=4)
    with Image.open(tmp_path / "panels" / "over_training.webp") as picture:
        assert picture.n_frames == 2
    panels.draw(tmp_path, maps(2), step=8, epoch=0)
    (tmp_path / "panels" / "over_training.webp").unlink()
    assert {path.name: path.read_bytes() for path in (tmp_path / "panels").iterdir()} == before


@pytest.mark.parametrize("damage", [lambda p: p.write_bytes(b"PK"), lambda p: p.unlink(), lambda p: p.write_bytes(b"")])
def test_after_a_damaged_frame_masks_are_drawn_as_they_are_numbered(
    panels: Panels, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    panels.draw(tmp_path, maps(0), step=0, epoch=0)
    damage(tmp_path / "panels" / "step-00000000.npz")
    assert panels.draw(tmp_path, maps(1), step=4, epoch=0).exists()
    assert same(kept(tmp_path, 4), maps(1))
    panels.draw(tmp_path, maps(2), step=8, epoch=0)
    panels.animate(tmp_path, step=8)
    with Image.open(tmp_path / "panels" / "over_training.webp") as picture:
        assert picture.n_frames == 2
    with Image.open(tmp_path / "panels" / "over_training.png") as picture:
        assert picture.width == (2 + 2) * 166 + 6


def test_at_the_last_k_both_columns_are_the_same(panels: Panels, tmp_path: Path) -> None:
    panels.draw(tmp_path, maps(0), step=0, epoch=0)
    last = Refined(maps(1).at_end, maps(1).at_end)
    with Image.open(panels.draw(tmp_path, last, step=9, epoch=9)) as picture:
        pixels = np.asarray(picture)
    assert np.array_equal(kept(tmp_path, 9).at_epoch, kept(tmp_path, 9).at_end)
    assert np.array_equal(pixels[22:, 2 * 166 + 6 : 3 * 166], pixels[22:, 3 * 166 + 6 : 4 * 166])


def test_the_animation_is_small_and_has_a_frame_a_panel(panels: Panels, tmp_path: Path) -> None:
    for step in range(6):
        panels.draw(tmp_path, maps(step), step=step, epoch=0)
    path = panels.animate(tmp_path, step=5)
    assert path == tmp_path / "panels" / "over_training.webp"
    assert path.stat().st_size < 1_000_000
    with Image.open(path) as picture:
        assert picture.n_frames == 6
        assert picture.size == (8 * 126 + 6, 16 + 126 + 6)
    assert [panels.are_drawn(tmp_path, step=step) for step in (0, 5, 6)] == [True, True, False]
