"""Votes and regression of pooled features against scikit-learn's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler, normalize

from pipeline.artifacts.scores import score_of
from pipeline.foundation.errors import InputError
from train.config.frozen import ClassesSettings
from train.evals.datasets.annotated import Annotated, DataSet
from train.evals.frozen.protocol import Finding, SplitFeatures, Task
from train.evals.frozen.protocols.classes import score

CLASSES = ("ant", "bee", "cow", "dog")
Part = tuple[np.ndarray, np.ndarray]


class Images:
    """Nothing but classes."""

    digest = "0" * 64

    def __init__(self, classes: np.ndarray) -> None:
        self.classes = classes
        self.names = tuple(f"{i:04d}" for i in range(len(classes)))

    def read(self, index: int) -> Annotated:
        return Annotated(np.zeros((2, 2, 3), np.uint8), class_id=int(self.classes[index]))


def no_model() -> None:
    raise AssertionError("features are enough")


def scored(train: Part, val: Part, *, seed: int = 0, **changed: object) -> Finding:
    parts = {"train": train, "val": val}
    lists = {name: Images(classes) for name, (_, classes) in parts.items()}
    has = frozenset({"class_id"})
    data = DataSet(
        layout="classes",
        root=Path("/"),
        classes=CLASSES,
        background=None,
        has=has,
        train_has=has,
        train=lists["train"],
        val=lists["val"],
    )

    def features(part: str, level: str, pixels: int) -> SplitFeatures:
        assert (level, pixels) == ("c5", 224)
        rows = parts[part][0].astype(np.float32)
        return SplitFeatures(images=lists[part], cells=np.zeros((len(rows), 1, 1, 1), np.float16), pooled=rows)

    return score(
        Task(
            data=data,
            settings=ClassesSettings.model_validate({"k": (3, 10), "log10_c": (-3.0, 2.0), "num_c": 4} | changed),
            features=features,
            seed=seed,
            device=torch.device("cpu"),
            load_model=no_model,
        )
    )


def drawn(count: int, *, seed: int, noise: float = 1.0, common: float = 0.0, classes: int = 4) -> Part:
    """Means of classes with noise, channels of unlike scales, and one direction that all share."""
    rng = np.random.default_rng(seed)
    means = np.random.default_rng(0).normal(size=(4, 12))
    ids = rng.permutation(np.arange(count) % classes)
    rows = means[ids] + noise * rng.normal(size=(count, 12)) + common
    return (rows * np.linspace(0.2, 3, 12)).astype(np.float32), ids


def by_hand(train: Part, val: Part, k: int, origin: np.ndarray | float) -> np.ndarray:
    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / 0.07)

    oracle = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights=weights)
    oracle.fit(normalize(train[0] - origin), train[1])
    return oracle.predict(normalize(val[0] - origin))


def test_votes_are_scikit_learn_s_on_raw_and_on_centred_features() -> None:
    train, val = drawn(200, seed=1, noise=1.5, common=3), drawn(81, seed=2, noise=1.5, common=3)
    finding = scored(train, val)
    for k in (3, 10):
        for name, origin in ((f"knn{k}", 0.0), (f"knn{k}_centred", train[0].mean(0))):
            right = by_hand(train, val, k, origin) == val[1]
            assert finding.per_image[name].value.tolist() == right.tolist()
            assert finding.scores[name] == pytest.approx(right.mean())
            for class_id, class_name in enumerate(CLASSES):
                share = right[val[1] == class_id].mean()
                assert finding.per_class[name][class_name] == pytest.approx(share)
    assert finding.scores["knn10_centred"] > finding.scores["knn10"]


def test_regression_is_scikit_learn_s_with_the_c_that_it_would_choose() -> None:
    train, val = drawn(120, seed=1, noise=2), drawn(100, seed=2, noise=2)
    finding = scored(train, val, selection_share=0.25, seed=5)
    order = np.random.default_rng(5).permutation(120)

    def oracle(rows: np.ndarray, ids: np.ndarray, queries: np.ndarray, c: float) -> np.ndarray:
        scaler = StandardScaler().fit(rows)
        model = LogisticRegression(C=c, tol=1e-8, max_iter=5000).fit(scaler.transform(rows), ids)
        return model.predict(scaler.transform(queries))

    held, fitted = order[:30], order[30:]
    candidates = 10 ** np.linspace(-3, 2, 4)
    right = [(oracle(*(p[fitted] for p in train), train[0][held], c) == train[1][held]).sum() for c in candidates]
    chosen = candidates[int(np.argmax(right))]
    assert len(set(right)) > 1
    assert finding.chosen == {"c": pytest.approx(chosen), "train_images": 120, "held_out_images": 30}
    expected = oracle(*train, val[0], chosen) == val[1]
    assert finding.per_image["linear"].value.tolist() == expected.tolist()
    assert finding.scores["linear"] == pytest.approx(expected.mean())
    assert 0.3 < expected.mean() < 0.95


def test_truth_as_features_is_always_right() -> None:
    train, val = drawn(80, seed=1, noise=0), drawn(41, seed=2, noise=0)
    finding = scored(train, val)
    assert set(finding.scores) == {"linear", "knn3", "knn10", "knn3_centred", "knn10_centred"}
    assert set(finding.scores.values()) == {1.0}
    assert {name: score_of(counts) for name, counts in finding.per_image.items()} == finding.scores
    assert finding.predict is None
    # every C is right: the least is taken
    assert finding.chosen["c"] == pytest.approx(1e-3)


def test_shuffled_truth_gives_chance() -> None:
    """Four equal classes: a quarter."""
    (rows, ids), val = drawn(400, seed=1, noise=0.1), drawn(400, seed=2, noise=0.1)
    finding = scored((rows, np.random.default_rng(0).permutation(ids)), val, k=(10, 100))
    assert all(value == pytest.approx(0.25, abs=0.09) for value in finding.scores.values())
    # features that tell nothing, and classes that are right
    noise = np.random.default_rng(1).normal(size=(2, 400, 12))
    finding = scored((noise[0], ids), (noise[1], val[1]), k=(10, 100))
    assert all(value == pytest.approx(0.25, abs=0.07) for value in finding.scores.values())


def test_scale_of_the_features_changes_nothing_and_constant_channels_do_not_matter() -> None:
    train, val = drawn(100, seed=1), drawn(60, seed=2)
    expected = scored(train, val).scores
    assert scored((train[0] * 64, train[1]), (val[0] * 64, val[1])).scores == expected
    padded = [(np.pad(rows, ((0, 0), (0, 3))), ids) for rows, ids in (train, val)]
    assert scored(*padded).scores == expected


def test_one_class_and_classes_that_nobody_is_of() -> None:
    train, val = drawn(40, seed=1, classes=1), drawn(20, seed=2, classes=1)
    finding = scored(train, val)
    assert set(finding.scores.values()) == {1.0}
    assert finding.per_class["linear"] == {"ant": 1.0, "bee": None, "cow": None, "dog": None}
    # classes of val that train has not are never right
    unknown = scored(train, drawn(20, seed=2, classes=2))
    assert set(unknown.scores.values()) == {0.5}
    # the highest class alone: ids are not places
    only = scored((train[0], train[1] + 3), (val[0], val[1] + 3))
    assert set(only.scores.values()) == {1.0}


def test_features_of_zeros_are_no_error() -> None:
    ids = np.arange(20) % 2
    finding = scored((np.zeros((20, 3)), ids), (np.zeros((9, 3)), np.zeros(9, int)))
    assert all(value in (0.0, 1.0) for value in finding.scores.values())


def test_seeds_hold_other_images_out() -> None:
    train, val = drawn(60, seed=1, noise=3), drawn(60, seed=2, noise=3)
    fast = {"num_c": 6, "log10_c": (-4.0, 0.0), "max_iterations": 20}
    chosen = [scored(train, val, seed=seed, **fast).chosen["c"] for seed in range(4)]
    assert chosen[0] == scored(train, val, seed=0, **fast).chosen["c"]
    assert len(set(chosen)) > 1


@pytest.mark.parametrize(
    ("count", "changed", "message"),
    [
        (9, {}, "classes.k: 10 neighbours among 9 training images"),
        (1, {"k": (1,)}, "classes.selection_share: 0.1 of 1 training images leaves none"),
        (4, {"k": (1,), "selection_share": 0.9}, "classes.selection_share: 0.9 of 4 training images leaves none"),
    ],
)
def test_too_few_images_are_named(count: int, changed: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scored(drawn(count, seed=1), drawn(5, seed=2), **changed)
