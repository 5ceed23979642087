"""Figure 3's protocol against loops over pixels, the method called by hand, and limits that are known."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.artifacts.scores import score_of
from pipeline.foundation.errors import InputError
from tests.train.evals.frozen.numerics.test_overlap import enlarged, overlaps_by_hand
from tests.train.evals.frozen.protocols.drawn_objects import ConvolvedModel, DrawnImages, random_ids, task_of
from tests.train.evals.frozen.test_superpixels import truth_of
from train.config.frozen import FROZEN_PROTOCOLS, AboSettings
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.numerics.partitions import equal_rectangles, random_partition
from train.evals.frozen.protocol import Finding
from train.evals.frozen.protocols.abo import score as score_abo
from train.r2o.kmeans import seeding_uniforms
from train.r2o.masks import grid_label_map
from train.r2o.refine import Refinement, refine

LINES = {"rectangles_prior", "grid_of_equal_k", "random_of_equal_k", "ceiling_of_grid"}
SMALL = AboSettings(size=40, group_size=4)


def drawn(count: int, seed: int = 0) -> DrawnImages:
    rng = np.random.default_rng(seed)
    return DrawnImages([random_ids(rng, objects=2) for _ in range(count)], [(2, 1)] * count)


def refined_by_hand(c4: np.ndarray, superpixels: torch.Tensor, *, k: int, seed: int, group: int) -> np.ndarray:
    how = Refinement(int(superpixels.max()) + 1, "kmeans", "superpixels", None, len(c4), 10, True, "cell")
    uniforms = seeding_uniforms(k, seed=seed, step=0, first_group=group, num_groups=1)
    return refine(torch.from_numpy(c4).float().permute(0, 3, 1, 2), superpixels, how, uniforms=uniforms).numpy()


def means_by_hand(images: DrawnImages, masks: list[np.ndarray]) -> tuple[float, float]:
    """Over objects and over classes."""
    overlaps: list[tuple[int, float]] = []
    for i, mask in enumerate(masks):
        objects = images.read(i).objects
        there = sorted(set(objects.ids.ravel().tolist()) - {0, UNLABELLED})
        found = overlaps_by_hand(enlarged(mask, objects.ids.shape), objects.ids)
        overlaps += [(objects.classes[one - 1], value) for one, value in zip(there, found, strict=True)]
    of_classes = [np.mean([v for c, v in overlaps if c == wanted]) for wanted in {c for c, _ in overlaps}]
    return float(np.mean([v for _, v in overlaps])), float(np.mean(of_classes))


def test_scores_equal_the_method_called_by_hand_and_loops_over_pixels() -> None:
    images = drawn(10)
    cells = np.random.default_rng(1).standard_normal((10, 3, 3, 6)).astype(np.float16)
    found = score_abo(task_of(SMALL, images, cells, seed=2, num_clusters=3))
    masks: list[np.ndarray] = []
    regions = grid_label_map(10, 10, like=torch.zeros(4, 40, 40, dtype=torch.int32))
    for group, places in enumerate(([0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1])):  # filled up from the beginning
        masks += [*refined_by_hand(cells[places], regions, k=3, seed=2, group=group)]
    over_objects, over_classes = means_by_hand(images, masks[:10])
    assert found.scores["over_objects"] == pytest.approx(over_objects)
    assert found.scores["over_classes"] == pytest.approx(over_classes)
    lines = {
        "rectangles_prior": [regions[0].numpy()] * 10,
        "grid_of_equal_k": [equal_rectangles(3, (3, 3))] * 10,
        "random_of_equal_k": [random_partition(3, (3, 3), np.random.default_rng([2, i])) for i in range(10)],
    }
    for name, parts in lines.items():
        assert found.scores[name] == pytest.approx(means_by_hand(images, parts)[0])
    assert set(found.scores) == {"over_objects", "over_classes", *LINES}
    assert {name: score_of(counts) for name, counts in found.per_image.items()} == found.scores
    assert FROZEN_PROTOCOLS["abo"].headline in found.per_image
    assert np.mean([*found.per_class["over_classes"].values()]) == pytest.approx(over_classes)
    assert list(found.per_class["over_classes"]) == ["class1", "class2"]
    assert found.chosen["fill_of_last_group"] == 2
    assert found.chosen["clusters"] == 3
    for i, mask in enumerate(masks[:10]):
        assert found.predict(i).tolist() == enlarged(mask, images.read(i).objects.ids.shape).tolist()


def test_real_superpixels_are_those_of_the_shards(shards: Path) -> None:
    truth = truth_of(shards)
    sources = sorted(truth)[:8]
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 3, truth[source][1]) for source in sources]
    images = DrawnImages(ids, [(1, 2)] * 8, [source.removesuffix(".jpg") for source in sources])
    cells = rng.standard_normal((8, 4, 4, 6)).astype(np.float32)
    settings = AboSettings(size=64, group_size=8, clusters=5, superpixels=str(shards))
    found = score_abo(task_of(settings, images, cells, num_clusters=3))
    maps = np.stack([truth[source][0] for source in sources]).astype(np.int32)
    masks = refined_by_hand(cells, torch.from_numpy(maps), k=5, seed=0, group=0)
    assert found.scores["over_objects"] == pytest.approx(means_by_hand(images, [*masks])[0])
    assert found.scores["slic_prior"] == pytest.approx(means_by_hand(images, [*maps])[0])
    assert set(found.scores) == {"over_objects", "over_classes", "slic_prior", *LINES - {"rectangles_prior"}}
    other = DrawnImages(ids, [(1, 2)] * 8, [*images.names[:7], "class0/none"])
    with pytest.raises(InputError, match=r"eval_frozen.abo.superpixels: .* lacks 1 of 8 images, such as class0/none"):
        score_abo(task_of(settings, other, cells))


def test_the_truth_as_superpixels_and_features_scores_1() -> None:
    rng = np.random.default_rng(0)
    parts = rng.integers(0, 4, (6, 10, 10))
    images = DrawnImages([one.repeat(4, 0).repeat(4, 1) for one in parts], [(1, 2, 2)] * 6)
    cells = np.eye(4, dtype=np.float32)[parts]
    found = score_abo(task_of(SMALL.model_copy(update={"clusters": 4}), images, cells))
    assert {name: found.scores[name] for name in ("over_objects", "over_classes", "ceiling_of_grid")} == {
        "over_objects": 1,
        "over_classes": 1,
        "ceiling_of_grid": 1,
    }
    assert found.scores["rectangles_prior"] < found.scores["random_of_equal_k"] < 1


def test_one_cluster_is_the_share_of_the_image_and_the_ceiling_is_above_all() -> None:
    images = drawn(5)
    cells = np.random.default_rng(1).standard_normal((5, 3, 3, 6)).astype(np.float32)
    found = score_abo(task_of(SMALL.model_copy(update={"clusters": 1}), images, cells))
    ids = [images.read(i).objects.ids for i in range(5)]
    shares = [(one == k).sum() / (one != UNLABELLED).sum() for one in ids for k in (1, 2) if (one == k).any()]
    for name in ("over_objects", "grid_of_equal_k", "random_of_equal_k"):
        assert found.scores[name] == pytest.approx(np.mean(shares))
    more = score_abo(task_of(SMALL.model_copy(update={"clusters": 4}), images, cells))
    assert more.scores["ceiling_of_grid"] == found.scores["ceiling_of_grid"]
    of_image = more.per_image["ceiling_of_grid"].value
    for name in ("over_objects", "grid_of_equal_k", "random_of_equal_k"):
        assert (more.per_image[name].value <= of_image + 1e-12).all()


def test_k_is_of_the_settings_then_of_the_run_then_4() -> None:
    images, cells = drawn(4), np.random.default_rng(1).standard_normal((4, 3, 3, 6)).astype(np.float32)
    assert score_abo(task_of(SMALL, images, cells)).chosen["clusters"] == 4
    assert score_abo(task_of(SMALL, images, cells, num_clusters=9)).chosen["clusters"] == 9
    chosen = SMALL.model_copy(update={"clusters": 2})
    assert score_abo(task_of(chosen, images, cells, num_clusters=9)).chosen["clusters"] == 2


def test_seeds_are_repeats() -> None:
    images, cells = drawn(8), np.random.default_rng(1).standard_normal((8, 5, 5, 6)).astype(np.float32)
    scores = [score_abo(task_of(SMALL, images, cells, seed=seed)).scores["over_objects"] for seed in (0, 0, 1)]
    assert scores[0] == scores[1] != scores[2]


@pytest.mark.parametrize("ids", [np.zeros((1, 1), int), np.full((40, 3), UNLABELLED)])
def test_images_without_objects_add_nothing(ids: np.ndarray) -> None:
    images = drawn(3)
    objects = [images.read(i).objects for i in range(3)]
    more = DrawnImages([*(one.ids for one in objects), ids], [*(one.classes for one in objects), ()])
    cells = np.random.default_rng(1).standard_normal((4, 3, 3, 6)).astype(np.float32)
    found = score_abo(task_of(SMALL, more, cells))
    assert found.chosen["images_without_objects"] == 1
    assert found.per_image["over_objects"].weight.tolist()[3] == 0
    assert found.scores["over_objects"] == pytest.approx(means_by_hand(more, [found.predict(i) for i in range(4)])[0])
    none = score_abo(task_of(SMALL, DrawnImages([ids], [()]), cells[:1]))
    assert set(none.scores.values()) == {None}
    assert set(none.per_class["over_classes"].values()) == {None}


@pytest.mark.parametrize("level", ["c4", "c5"])
def test_batch_statistics_are_of_the_group_and_leave_no_trace(level: str) -> None:
    images, model = drawn(6), ConvolvedModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = SMALL.model_copy(update={"batch_norm": "group", "level": level, "size": 64})
    unused = np.zeros((6, 1, 1, 1), np.float32)
    found = score_abo(task_of(settings, images, unused, num_clusters=3, load_model=lambda: model))
    assert not model.training
    assert not model.norm.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks: list[np.ndarray] = []
    regions = grid_label_map(10, 10, like=torch.zeros(4, 64, 64, dtype=torch.int32))
    for group, places in enumerate(([0, 1, 2, 3], [4, 5, 0, 1])):
        pixels = [torch.from_numpy(images.read(i).image).permute(2, 0, 1)[None].float() for i in places]
        squares = [F.interpolate(one, (64, 64), mode="bicubic", antialias=True) for one in pixels]
        with torch.no_grad():
            rows = model.conv(torch.cat(squares).round().clamp(0, 255) / 255)
        c4 = (rows - rows.mean((0, 2, 3), keepdim=True)) / rows.var((0, 2, 3), correction=0, keepdim=True).sqrt()
        c4 = c4 if level == "c4" else c4[:, :, ::2, ::2]
        masks += [*refined_by_hand(c4.permute(0, 2, 3, 1).numpy(), regions, k=3, seed=0, group=group)]
    assert found.scores["over_objects"] == pytest.approx(means_by_hand(images, masks[:6])[0], abs=0.01)


def finding_of(images: DrawnImages, cells: np.ndarray) -> Finding:
    return score_abo(task_of(SMALL, images, cells))


def test_names_of_objects_do_not_matter() -> None:
    images, cells = drawn(4), np.random.default_rng(1).standard_normal((4, 3, 3, 6)).astype(np.float32)
    swapped = np.arange(UNLABELLED + 1)
    swapped[[1, 2]] = [2, 1]
    other = DrawnImages([swapped[images.read(i).objects.ids] for i in range(4)], [(1, 2)] * 4)
    first, second = finding_of(images, cells), finding_of(other, cells)
    assert first.scores == pytest.approx(second.scores)
    assert first.per_class["over_classes"] == pytest.approx(second.per_class["over_classes"])
