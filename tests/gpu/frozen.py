"""Frozen features of runs and of random weights, scored, with intervals over images."""

from __future__ import annotations

import tarfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pipeline.artifacts.sample import IMAGE_MEMBER, META_MEMBER, SampleMeta
from pipeline.artifacts.scores import ImageCounts, read_counts, read_scores, score_of
from pipeline.report.statistics import Draws, percentile_interval, resampled_means
from tests.gpu.methods import SIZE
from tests.gpu.places import DATA, DRY, RUNS
from train.evals.frozen import score

BASELINE, RESAMPLES = "random-bn", 2000
NEIGHBOURS, MOST = (5, 40) if DRY else (20, 1500)  # k; images of each part that are used
HELD_BACK = 5  # of so many images of a class one is scored, where no others are given
OUT = RUNS / "scores"
SETS = [
    f"data.max_images={MOST}",
    f"classes.size={SIZE}",
    f"classes.k=[{NEIGHBOURS}]",
    "classes.num_c=4",
    "classes.max_iterations=100",
    "linear.level=c4",
    f"linear.size={SIZE}",
    "linear.num_c=4",
    "linear.max_iterations=100",
]
SHOWN = {"classes": ("linear", f"knn{NEIGHBOURS}"), "linear": ("mean_iou",)}  # scores by protocol
Figures = dict[str, list[float]]  # by score: itself, and the bounds of its interval


def annotated(where: Path) -> tuple[list[Path], str]:
    """Folders to score on, and what there is to say of them.

    Args:
        where: shards, whose own images serve where there are no others.
    """
    photographs, voc = DATA / "imagenette", DATA / "VOC2012_small"
    more = [voc] if voc.is_dir() and not DRY else []
    if (photographs / "val").is_dir() and not DRY:
        return [photographs, *more], f"fitted on up to {MOST} images of train, scored on val, which no run has seen"
    folder = RUNS / "images"
    count = unpack(where, folder)
    return [folder, *more], f"{count} images of the shards; one of {HELD_BACK} is scored, which the runs saw unlabelled"


def unpack(where: Path, folder: Path) -> int:
    """The images of shards as train/<class> and val/<class>; how many."""
    seen: dict[str, int] = defaultdict(int)
    for path in sorted(where.glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
        for name in (name for name in content if name.endswith(f".{META_MEMBER}")):
            key = name.removesuffix(f".{META_MEMBER}")
            named = SampleMeta.decode(content[name]).class_name
            if named is None:
                continue
            part = "train" if seen[named] % HELD_BACK else "val"
            seen[named] += 1
            target = folder / part / named / f"{key}.jpg"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content[f"{key}.{IMAGE_MEMBER}"])
    return sum(seen.values())


def score_weights(weights: str, data: Sequence[Path], *sets: str, backbone: str | None = None) -> None:
    """As `r2o eval-frozen` does, into OUT."""
    arguments = [f"--weights={weights}", *([f"--backbone={backbone}"] if backbone else []), "--drop-features"]
    arguments += [f"--data={folder}" for folder in data]
    protocols = "classes,linear" if len(data) > 1 else "classes"
    arguments += [f"--protocols={protocols}", f"--out={OUT}"]
    score.main([*arguments, *(f"--set=eval_frozen.{one}" for one in [*SETS, *sets])])


def figures_of(label: str) -> Figures:
    """What some weights scored, by data set and score, with 95 % intervals over images."""
    return {name: _with_interval(counts) for name, counts in _counts_of(label).items()}


def above_baseline(label: str) -> Figures:
    """The same of the difference from random weights with the data's batch norm statistics, on the same images."""
    ours, theirs = _counts_of(label), _counts_of(BASELINE)
    return {name: _with_interval(ours[name], theirs[name]) for name in ours if name in theirs}


def _counts_of(label: str) -> dict[str, ImageCounts]:
    found = {}
    for folder in sorted(OUT.glob(f"*/{label}/*/seed0")):
        scores = read_scores(folder)
        assert scores is not None, folder
        _, counts = read_counts(folder, scores)
        names = (name for name in SHOWN[scores.protocol.name] if name in counts)
        found |= {f"{scores.data.name} {name}": counts[name] for name in names}
    return found


def _with_interval(ours: ImageCounts, theirs: ImageCounts | None = None) -> list[float]:
    """A score, or the difference of two, and its bounds."""
    draws = Draws(images=len(ours.value), resamples=RESAMPLES)
    value, drawn = score_of(ours), resampled_means([ours], draws)
    assert value is not None
    if theirs is not None:
        value, drawn = value - (score_of(theirs) or 0.0), drawn - resampled_means([theirs], draws)
    interval = percentile_interval(drawn)
    assert interval is not None
    return [round(one, 4) for one in (value, *interval)]
