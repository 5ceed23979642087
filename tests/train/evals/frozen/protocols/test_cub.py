"""Table 3's protocol against loops over pixels and scikit-learn's K-means; what must hold in the limit."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from pipeline.artifacts.scores import score_of
from tests.train.evals.frozen.numerics.test_overlap import enlarged
from tests.train.evals.frozen.protocols.drawn_objects import DrawnImages, random_ids, task_of
from train.config.frozen import FROZEN_PROTOCOLS, CubSettings
from train.evals.datasets.annotated import UNLABELLED
from train.evals.frozen.numerics.partitions import centre_partition, random_partition
from train.evals.frozen.protocols.cub import match_to_bird, segments_of
from train.evals.frozen.protocols.cub import score as score_cub

NAMES = {"image_mean_of_both", "image_mean_foreground", "accumulated_of_both", "accumulated_foreground"}
LINES = {"whole_image", "centre_box", "random_of_equal_k"}
FEW = CubSettings(clusters=3, restarts=2, iterations=10)


def counts_by_hand(prediction: np.ndarray, ids: np.ndarray) -> tuple[list[int], list[int]]:
    """Pixels in common, and in either, of foreground and background."""
    common, either = [0, 0], [0, 0]
    for found, truth in zip(prediction.ravel().tolist(), ids.ravel().tolist(), strict=True):
        if truth == UNLABELLED:
            continue
        for place, is_foreground in enumerate((True, False)):
            in_both = [(found == 1) == is_foreground, (truth != 0) == is_foreground]
            common[place] += all(in_both)
            either[place] += any(in_both)
    return common, either


def matched_by_hand(segments: np.ndarray, ids: np.ndarray) -> tuple[list[int], list[int]]:
    """By SciPy's Hungarian matching of all segments with one bird."""
    large = enlarged(segments, ids.shape)
    ious = []
    for segment in np.unique(segments):
        common, either = counts_by_hand((large == segment).astype(int), ids)
        ious.append(common[0] / either[0])
    _, column = linear_sum_assignment(-np.array([ious]))
    return counts_by_hand((large == np.unique(segments)[column[0]]).astype(int), ids)


def scores_by_hand(counts: list[tuple[list[int], list[int]]]) -> dict[str, float]:
    """All four of Table 3's readings."""
    of_images = [[c / e for c, e in zip(common, either, strict=True) if e] for common, either in counts]
    total = [[sum(one[k][place] for one in counts) for place in (0, 1)] for k in (0, 1)]
    summed = [c / e for c, e in zip(*total, strict=True) if e]
    return {
        "image_mean_of_both": float(np.mean([np.mean(one) for one in of_images])),
        "image_mean_foreground": float(np.mean([one[0] for one in of_images])),
        "accumulated_of_both": float(np.mean(summed)),
        "accumulated_foreground": summed[0],
    }


def drawn(count: int, seed: int = 0) -> DrawnImages:
    rng = np.random.default_rng(seed)
    ids = [random_ids(rng, objects=2) for _ in range(count)]
    return DrawnImages(ids, [(1, 2)] * count)


def test_scores_equal_loops_over_pixels() -> None:
    images = drawn(7)
    cells = np.random.default_rng(1).standard_normal((7, 4, 6, 5)).astype(np.float16)
    found = score_cub(task_of(FEW, images, cells, seed=3))
    segments = segments_of(cells, FEW, seed=3, first_image=0, device=torch.device("cpu")).numpy()
    ids = [images.read(i).objects.ids for i in range(7)]
    expected = scores_by_hand([matched_by_hand(*pair) for pair in zip(segments, ids, strict=True)])
    random = [random_partition(3, (4, 6), np.random.default_rng([3, i])) for i in range(7)]
    for name, parts in (
        ("whole_image", [np.zeros((1, 1), int)] * 7),
        ("centre_box", [centre_partition((64, 64))] * 7),
        ("random_of_equal_k", random),
    ):
        counts = [matched_by_hand(*pair) for pair in zip(parts, ids, strict=True)]
        expected[name] = scores_by_hand(counts)["image_mean_of_both"]
    assert found.scores == pytest.approx(expected)
    assert set(expected) == NAMES | LINES
    assert {name: score_of(counts) for name, counts in found.per_image.items()} == found.scores
    assert FROZEN_PROTOCOLS["cub"].headline in found.per_image
    shown = [counts_by_hand(found.predict(i), ids[i]) for i in range(7)]
    assert scores_by_hand(shown)["accumulated_of_both"] == pytest.approx(found.scores["accumulated_of_both"])


def test_segments_are_as_good_as_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    cells = rng.standard_normal((6, 5, 6, 8)).astype(np.float32)
    settings = CubSettings(clusters=4, restarts=20, iterations=100)
    segments = segments_of(cells, settings, seed=0, first_image=0, device=torch.device("cpu")).flatten(1).numpy()
    for own, rows in zip(segments, cells.reshape(6, 30, 8), strict=True):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        inertia = sum(((rows[own == k] - rows[own == k].mean(0)) ** 2).sum() for k in range(4))
        assert inertia <= KMeans(4, n_init=20, random_state=0).fit(rows).inertia_ * 1.02


def test_more_restarts_are_never_worse_and_raw_cells_are_another_choice() -> None:
    rng = np.random.default_rng(0)
    cells = (rng.standard_normal((4, 6, 6, 8)) * rng.integers(1, 20, (4, 6, 6, 1))).astype(np.float32)

    def inertia(**changed: object) -> np.ndarray:
        settings = CubSettings(clusters=5, iterations=3, normalize_features=False).model_copy(update=changed)
        segments = segments_of(cells, settings, seed=0, first_image=0, device=torch.device("cpu")).numpy()
        return np.array(
            [
                sum(((rows[own == k] - rows[own == k].mean(0)) ** 2).sum() for k in np.unique(own))
                for own, rows in zip(segments, cells, strict=True)
            ]
        )

    one, many = inertia(restarts=1), inertia(restarts=12)
    assert (many <= one * 1.001).all()
    assert (many < 0.99 * one).any()
    assert (inertia(restarts=12, normalize_features=True) > 1.01 * many).all()


def test_segments_do_not_depend_on_the_batch() -> None:
    cells = np.random.default_rng(0).standard_normal((5, 4, 4, 3)).astype(np.float32)
    cpu = torch.device("cpu")
    together = segments_of(cells, FEW, seed=1, first_image=0, device=cpu)
    alone = [segments_of(cells[i : i + 1], FEW, seed=1, first_image=i, device=cpu)[0] for i in range(5)]
    assert torch.equal(together, torch.stack(alone))


def test_features_of_the_truth_score_1() -> None:
    bird = np.zeros((4, 4), int)
    bird[1:3, 1:4] = 1
    parts = np.where(bird == 1, 4, np.arange(4)[:, None])  # background of four kinds
    images = DrawnImages([bird.repeat(5, 0).repeat(7, 1)] * 3, [(1,)] * 3)
    cells = np.eye(5, dtype=np.float32)[parts][None].repeat(3, 0)
    found = score_cub(task_of(CubSettings(), images, cells))
    assert {name: found.scores[name] for name in NAMES} == dict.fromkeys(NAMES, 1)
    assert found.predict(0).tolist() == bird.repeat(5, 0).repeat(7, 1).tolist()


def test_one_cluster_is_the_whole_image() -> None:
    images = drawn(5)
    cells = np.random.default_rng(1).standard_normal((5, 3, 3, 4)).astype(np.float32)
    found = score_cub(task_of(CubSettings(clusters=1, restarts=1), images, cells))
    ids = [images.read(i).objects.ids for i in range(5)]
    share = [(one[one != UNLABELLED] != 0).mean() for one in ids]
    assert found.scores["image_mean_foreground"] == pytest.approx(np.mean(share))
    of_both = np.mean([one / 2 if one < 1 else one for one in share])
    assert found.scores["image_mean_of_both"] == found.scores["whole_image"] == pytest.approx(of_both)


def test_an_image_that_is_all_bird_has_no_background_to_score() -> None:
    images = DrawnImages([np.ones((6, 5), int)], [(1,)])
    found = score_cub(task_of(CubSettings(clusters=1), images, np.ones((1, 2, 2, 3), np.float32)))
    assert {name: found.scores[name] for name in NAMES} == dict.fromkeys(NAMES, 1)


@pytest.mark.parametrize("fill", [0, UNLABELLED])
def test_images_without_a_bird_are_counted_and_left_out(fill: int) -> None:
    with_bird = np.zeros((1, 40), int)
    with_bird[0, :10] = 1
    cells = np.random.default_rng(1).standard_normal((2, 3, 3, 4)).astype(np.float32)
    both = score_cub(task_of(FEW, DrawnImages([with_bird, np.full((50, 1), fill)], [(1,), ()]), cells))
    alone = score_cub(task_of(FEW, DrawnImages([with_bird], [(1,)]), cells[:1]))
    assert both.scores == alone.scores
    assert both.chosen["images_without_foreground"] == 1
    assert both.predict(1).tolist() == np.zeros((50, 1)).tolist()
    none = score_cub(task_of(FEW, DrawnImages([np.full((1, 1), fill)], [()]), cells[:1]))
    assert set(none.scores.values()) == {None}


def test_names_of_segments_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    segments, ids = rng.integers(0, 5, (6, 6)), random_ids(rng, objects=1)
    first, second = match_to_bird(segments, ids), match_to_bird(rng.permutation(5)[segments], ids)
    assert first.intersection.tolist() == second.intersection.tolist()
    assert first.union.tolist() == second.union.tolist()
