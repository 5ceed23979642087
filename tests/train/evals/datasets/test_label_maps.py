"""Objects against loops over pixels."""

from __future__ import annotations

import numpy as np

from train.evals.datasets.annotated import UNLABELLED
from train.evals.datasets.label_maps import labels_of_ids, objects_of_classes, objects_of_ids, objects_of_instances


def random_labels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, 2, 7, UNLABELLED], (9, 11)).astype(np.int16)


def test_labels_of_ids() -> None:
    ids = np.array([[0, 1, 150, 255]], dtype=np.uint8)
    assert labels_of_ids(ids, void=255).tolist() == [[0, 1, 150, UNLABELLED]]
    assert labels_of_ids(ids, void=255, first=1).tolist() == [[-1, 0, 149, UNLABELLED]]
    assert labels_of_ids(ids, void=0, first=1).tolist() == [[UNLABELLED, 0, 149, 254]]
    assert labels_of_ids(ids, void=255).dtype == np.int16


def test_every_class_is_an_object() -> None:
    labels = random_labels(0)
    for background, classes in ((0, (2, 7)), (None, (0, 2, 7)), (7, (0, 2))):
        objects = objects_of_classes(labels, background=background)
        assert objects.classes == classes
        for y, x in np.ndindex(labels.shape):
            label = int(labels[y, x])
            expected = UNLABELLED if label == UNLABELLED else classes.index(label) + 1 if label in classes else 0
            assert objects.ids[y, x] == expected
    assert objects_of_classes(np.zeros((2, 2), np.int16), background=0).classes == ()


def test_objects_are_numbered_in_the_order_that_is_given() -> None:
    ids = np.array([[9, 4, 0, 5, UNLABELLED]])
    objects = objects_of_ids(ids, {9: 1, 4: 3})
    assert (objects.ids.tolist(), objects.classes) == ([[1, 2, 0, 0, UNLABELLED]], (1, 3))
    assert objects.ids.dtype == np.int16


def test_an_instance_has_the_class_of_most_of_its_pixels() -> None:
    instances = np.array([[1, 1, 1, 2, 2, 3, 0, 255, 4]], dtype=np.uint8)
    labels = np.array([[5, 5, 6, 0, 8, 0, 0, 5, UNLABELLED]], dtype=np.int16)
    objects = objects_of_instances(instances, labels, void=255, background=0)
    assert objects.classes == (5, 8)  # 3 is all background, 4 all void
    assert objects.ids.tolist() == [[1, 1, 1, 2, 2, 0, 0, UNLABELLED, UNLABELLED]]
