"""LOST against a loop over patches, and objects that are known."""

from collections import deque

import numpy as np
import pytest
import torch
from scipy import ndimage
from torchvision.ops import box_iou

from pipeline.artifacts.scores import score_of
from train.config.frozen import DiscoverySettings
from train.evals.datasets.annotated import Annotated, DataSet
from train.evals.frozen.protocol import Finding, SplitFeatures, Task
from train.evals.frozen.protocols.discovery import box_around, component_at, object_cells, overlaps_with, score

QUADRANTS = [(0, 0), (0, 1), (1, 0), (1, 1)]


class Images:
    """Images of one size with boxes."""

    digest = "0" * 64

    def __init__(self, boxes: list[np.ndarray], size: tuple[int, int]) -> None:
        self.boxes, self.size = boxes, size
        self.names = tuple(f"{i:04d}" for i in range(len(boxes)))

    def read(self, index: int) -> Annotated:
        return Annotated(np.zeros((*self.size, 3), np.uint8), boxes=self.boxes[index])


def no_model() -> None:
    raise AssertionError("features are enough")


def scored(
    cells: np.ndarray, boxes: list[np.ndarray], *, size: tuple[int, int] = (80, 120), most_seeds: int = 100
) -> Finding:
    images = Images(boxes, size)
    data = DataSet(layout="coco", root=None, classes=("a",), background=None, has=frozenset({"boxes"}), val=images)
    asked = []

    def features(part: str, level: str, pixels: int) -> SplitFeatures:
        asked.append((part, level, pixels))
        return SplitFeatures(images=images, cells=cells, pooled=np.zeros((len(cells), 2), np.float32))

    task = Task(
        data=data,
        settings=DiscoverySettings(level="c4", size=64, most_seeds=most_seeds),
        features=features,
        seed=0,
        device=torch.device("cpu"),
        load_model=no_model,
    )
    finding = score(task)
    assert asked == [("val", "c4", 64)]
    assert set(task.clock.seconds) == {"boxes", "score"}
    return finding


def lost_by_loops(cells: np.ndarray, most_seeds: int) -> np.ndarray:
    """One patch and one pair at a time, in float64, with a queue of neighbours."""
    height, width, channels = cells.shape
    patches = cells.reshape(-1, channels).astype(np.float64)
    flat = [float(value) for value in patches.flatten()]
    mean, count = sum(flat) / len(flat), len(patches)
    deviation = (sum((value - mean) ** 2 for value in flat) / len(flat) + 1e-5) ** 0.5
    normed = (patches - mean) / deviation
    similar = [[sum(a * b for a, b in zip(p, q, strict=True)) for q in normed] for p in normed]
    degree = [sum(similar[p][q] > 0 for q in range(count) if q != p) for p in range(count)]
    order = sorted(range(count), key=lambda p: (degree[p], p))
    seed = order[0]
    expanded = [p for p in order[:most_seeds] if similar[seed][p] > 0]
    mask = [sum(similar[q][p] for q in expanded) > 0 for p in range(count)]
    found, queue = {divmod(seed, width)}, deque([divmod(seed, width)])
    while queue:
        y, x = queue.popleft()
        for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            inside = 0 <= near[0] < height and 0 <= near[1] < width
            if inside and near not in found and mask[near[0] * width + near[1]]:
                found.add(near)
                queue.append(near)
    cells_found = np.zeros((height, width), bool)
    for place in found:
        cells_found[place] = True
    return cells_found


@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (4, 3), (7, 7), (8, 5)])
@pytest.mark.parametrize("most_seeds", [1, 6, 100])
@pytest.mark.parametrize("seed", range(4))
def test_seed_expansion_is_that_of_a_loop(shape: tuple[int, int], most_seeds: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    smooth = ndimage.gaussian_filter(rng.normal(size=(*shape, 6)), (1, 1, 0)) * 9
    for cells in (rng.random((*shape, 5)), np.maximum(smooth, 0) + 0.1 * rng.random((*shape, 6))):
        found = object_cells(torch.from_numpy(cells), most_seeds=most_seeds)
        np.testing.assert_array_equal(found, lost_by_loops(cells, most_seeds))


def blob(grid: int, top: int, left: int, height: int, width: int) -> np.ndarray:
    """Cells of two kinds."""
    cells = np.zeros((grid, grid, 2), np.float16)
    cells[..., 0] = 1
    cells[top : top + height, left : left + width] = [0, 1]
    return cells


def test_a_known_object_is_found_in_pixels_of_the_image() -> None:
    cells = np.stack([blob(8, 1, 2, 2, 5), blob(8, 6, 0, 2, 3)])
    # the image is 80 high and 120 wide: a cell is 10 high and 15 wide
    boxes = [np.array([[0, 0, 5, 5], [30, 10, 105, 30.0]]), np.array([[0, 60, 45, 80.0]])]
    finding = scored(cells, boxes)
    assert finding.scores["corloc"] == 1
    assert finding.chosen == {"grid": [8, 8], "images_without_boxes": 0}
    assert finding.predict is not None
    painted = finding.predict(0)
    assert painted.shape == (80, 120)
    assert painted[10:30, 30:105].all()
    assert painted.sum() == 20 * 75


def test_more_than_a_half_is_enough_and_a_half_is_not() -> None:
    cells = blob(8, 0, 0, 2, 4)[None]  # 20 × 60 pixels
    for width, expected in ((30.0, 0), (31.0, 1), (119.0, 1), (120.0, 0)):
        assert scored(cells, [np.array([[0, 0, width, 20.0]])]).scores["corloc"] == expected


def test_images_without_boxes_are_left_out_and_counted() -> None:
    cells = np.stack([blob(4, 0, 0, 1, 2)] * 3)
    hit, miss, none = np.array([[0, 0, 60, 20.0]]), np.array([[60, 40, 120, 80.0]]), np.zeros((0, 4))
    finding = scored(cells, [hit, none, miss])
    assert finding.scores["corloc"] == 0.5
    assert finding.chosen["images_without_boxes"] == 1
    assert finding.per_image["corloc"].weight.tolist() == [1, 0, 1]
    assert finding.per_image["corloc"].value.tolist() == [1, 0, 0]
    nobody = scored(cells, [none, none, none])
    assert set(nobody.scores.values()) == {None}


def test_boxes_that_look_at_no_image_are_scored_beside() -> None:
    cells = np.stack([blob(4, 0, 0, 1, 1)] * 4)
    boxes = [[0, 0, 120, 80], [10, 0, 120, 80], [30, 20, 90, 60], [0, 0, 12, 8]]
    finding = scored(cells, [np.array([box], float) for box in boxes])
    assert finding.scores == {"corloc": 0.0, "whole_image": 0.5, "centre_box": 0.25}
    assert {name: score_of(counts) for name, counts in finding.per_image.items()} == finding.scores


def test_shuffled_truth_gives_chance() -> None:
    """The object fills one of four quadrants: the truth of another image agrees in one case out of four."""
    rng = np.random.default_rng(0)
    places = [QUADRANTS[i] for i in rng.integers(0, 4, 600)]
    cells = np.stack([blob(4, 2 * y, 2 * x, 2, 2) for y, x in places])
    boxes = [np.array([[60.0 * x, 40.0 * y, 60.0 * x + 60, 40.0 * y + 40]]) for y, x in places]
    assert scored(cells, boxes).scores["corloc"] == 1
    shuffled = [boxes[i] for i in rng.permutation(600)]
    assert scored(cells, shuffled).scores["corloc"] == pytest.approx(0.25, abs=0.05)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_features_that_tell_nothing_give_a_box(value: float) -> None:
    found = object_cells(torch.full((7, 7, 3), value), most_seeds=100)
    assert found.sum() == 1
    assert found[0, 0]


def test_a_cell_is_no_neighbour_of_its_own_and_nothing_is_not_similar() -> None:
    """Without itself the first cell has as few similar others as the second, which is similar to nothing."""
    cells = torch.tensor([[[1.0, -1.0], [0.0, 0.0], [-1.0, 1.0], [-1.0, 1.0]]])
    assert object_cells(cells, most_seeds=4).tolist() == [[True, False, False, False]]


def test_scale_of_features_changes_nothing() -> None:
    cells = torch.rand(9, 6, 8, generator=torch.Generator().manual_seed(3))
    first = object_cells(cells, most_seeds=20)
    np.testing.assert_array_equal(object_cells(64 * cells, most_seeds=20), first)


@pytest.mark.parametrize("seed", range(5))
def test_components_are_scipy_s(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 9)) < 0.6
    numbered, _ = ndimage.label(mask)
    for row, column in np.argwhere(mask)[::7]:
        np.testing.assert_array_equal(component_at(mask, row, column), numbered == numbered[row, column])


def test_boxes_hold_their_upper_ends() -> None:
    mask = np.zeros((4, 8), bool)
    mask[1, 2] = mask[2, 5] = True
    assert box_around(mask).tolist() == [2 / 8, 1 / 4, 6 / 8, 3 / 4]
    assert box_around(np.ones((1, 1), bool)).tolist() == [0, 0, 1, 1]


def test_overlaps_are_torchvision_s() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((41, 2, 2)), axis=1).reshape(41, 4)
    expected = box_iou(torch.from_numpy(corners[:1]), torch.from_numpy(corners[1:]))[0]
    np.testing.assert_allclose(overlaps_with(corners[0], corners[1:]), expected)
    assert (expected > 0).any()
