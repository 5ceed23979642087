"""Settings of the evaluations of frozen features (section `eval_frozen`), and the table of their protocols."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from pipeline.foundation.settings import Seed, Settings
from train.config.evaluation import EvaluationSettings
from train.config.numbers import Positive

FINAL_NUM_CLUSTERS = 4  # K at the end of the paper's curriculum

Annotation = Literal["labels", "objects", "boxes", "class_id"]
DataPart = Literal["train", "val"]
Level = Literal["c4", "c5"]
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1)]


class ProtocolSettings(Settings):
    """What all protocols have.

    Attributes:
        level: C4 (1/16 of the image) or C5 (1/32, or 1/16 where `features.dilate_c5`); a ViT has one level.
        size: images are resized to size × size pixels.
    """

    level: Level = "c5"
    size: Positive = 224
    seeds: Seeds = (0,)


class LinearSettings(ProtocolSettings):
    """Linear segmentation (CAPI's eval_segmentation): logistic regression by L-BFGS on standardised cells."""

    log10_c: tuple[float, float] = (-6.0, 5.0)
    num_c: Positive = 8
    selection_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_iterations: Positive = 1000


class NeighbourSettings(ProtocolSettings):
    """kNN segmentation (CAPI's eval_segmentation)."""

    k: tuple[Positive, ...] = (1, 3, 10, 30)
    distances: tuple[Literal["cosine", "l2"], ...] = ("cosine", "l2")
    selection_share: Annotated[float, Field(gt=0, lt=1)] = 0.1


class ContextSettings(ProtocolSettings):
    """Dense nearest neighbours in context (Balazevic et al. 2023; open-hummingbird-eval)."""

    k: Positive = 30
    temperature: Annotated[float, Field(gt=0)] = 0.02
    memory_cells: Positive | None = Field(None, description="cells of the memory; null: all of the training images")


class OverclusteringSettings(ProtocolSettings):
    """Overclustering (Ziegler and Asano 2022, Leopart): K-means of the cells of val, clusters matched to classes.

    Attributes:
        pca: principal components of the standardised channels that are kept.
        restarts: of K-means; the least inertia wins.
        rows_per_cluster: centres are fitted to so many cells a cluster at most, as faiss does.
        score_size: clusters and labels are compared at score_size × score_size pixels.
    """

    seeds: Seeds = (0, 1, 2, 3, 4)
    pca: Positive | None = 50
    clusters: Positive = 500
    iterations: Positive = 100
    restarts: Positive = 5
    rows_per_cluster: Positive = 256
    score_size: Positive = 100


class DiscoverySettings(ProtocolSettings):
    """Object discovery by LOST's seed expansion (Siméoni et al. 2021): CorLoc."""

    size: Positive = 448
    most_seeds: Positive = 100


class ClassesSettings(ProtocolSettings):
    """kNN and linear classification of class folders."""

    k: tuple[Positive, ...] = (10, 20, 100)
    temperature: Annotated[float, Field(gt=0)] = 0.07
    log10_c: tuple[float, float] = (-6.0, 5.0)
    num_c: Positive = 8
    selection_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_iterations: Positive = 1000


class CubSettings(ProtocolSettings):
    """Unsupervised segmentation of birds (Table 3): K-means of each image, one segment matched to the bird.

    The paper states K alone. L2-normalised cells are what the method itself clusters.
    """

    level: Level = "c4"
    clusters: Positive = 5
    restarts: Positive = Field(10, description="the one of least inertia counts")
    iterations: Positive = 50
    normalize_features: bool = Field(True, description="L2-normalise cells before K-means")


class AboSettings(ProtocolSettings):
    """Average best overlap of refined masks (Figure 3)."""

    level: Level = "c4"
    seeds: Seeds = (0, 1, 2)
    clusters: Positive | None = Field(None, description="K; null: that of the run's schedule, 4 without a run")
    group_size: Positive = 32
    batch_norm: Literal["running", "group"] = "running"
    superpixels: str | None = Field(None, description="shards of the images of val; null: 10 × 10 rectangles")


class FeatureSettings(Settings):
    """How features are computed.

    Attributes:
        dilate_c5: C5 of a ResNet keeps C4's resolution, as under an FCN.
        batch_norm_images: training images that set the statistics of `random-bn`.
    """

    dilate_c5: bool = False
    batch_size: Positive = 32
    dtype: Literal["float16", "float32"] = "float16"
    batch_norm_images: Positive = 2048


class FrozenDataSettings(Settings):
    """Which images of the data folder are used. What a layout has no use for must stay as it is.

    Attributes:
        layout: how the folder is read.
        train_list, val_list: VOC: ImageSets/Segmentation/<name>.txt; COCO: annotations/…_<name>.json; folders of
            images: their names. null: what the layout calls them.
        train_masks, val_masks: VOC: folders of masks. null: SegmentationClassAug for list trainaug, and where there is
            no SegmentationClass.
        objects: VOC: what an object is, all of a class in an image (Section 4.4) or an instance of SegmentationObject.
        split: CUB: ReDO's train_val_test_split.txt.
        first_class_id: label PNGs: the number of the first class; with 1, 0 is unlabelled. null: 1 for ADE20K, else 0.
    """

    layout: Literal["auto", "voc", "coco", "cub", "cityscapes", "classes", "labels", "imagenet_s"] = "auto"
    train_list: str | None = None
    val_list: str | None = None
    train_masks: str | None = None
    val_masks: str | None = None
    objects: Literal["classes", "instances"] = "classes"
    split: Path | None = None
    first_class_id: Literal[0, 1] | None = None
    max_images: Positive | None = Field(None, description="of each list, evenly spaced; null: all")


def require_protocol(name: str) -> str:
    """The name of a protocol. Raises ValueError for one that there is not."""
    if name not in FROZEN_PROTOCOLS:
        raise ValueError(f"no protocol {name!r}; there are {', '.join(FROZEN_PROTOCOLS)}")
    return name


class EvalFrozenSettings(EvaluationSettings):
    """All protocols that read frozen features.

    Attributes:
        protocols: which of them are run; null: all that the data allow. `--protocols` wins over it.
    """

    SECTION: ClassVar[str] = "eval_frozen"

    protocols: Annotated[tuple[Annotated[str, AfterValidator(require_protocol)], ...], Field(min_length=1)] | None = (
        None
    )
    baselines: tuple[Literal["random", "random-bn"], ...] = ("random", "random-bn")
    data: FrozenDataSettings = FrozenDataSettings()
    features: FeatureSettings = FeatureSettings()
    linear: LinearSettings = LinearSettings()
    knn: NeighbourSettings = NeighbourSettings()
    context: ContextSettings = ContextSettings()
    overclustering: OverclusteringSettings = OverclusteringSettings()
    discovery: DiscoverySettings = DiscoverySettings()
    classes: ClassesSettings = ClassesSettings()
    cub: CubSettings = CubSettings()
    abo: AboSettings = AboSettings()
    report_classes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class FrozenProtocol:
    """What parser, workflow and results need to know of a protocol. Its code: train/evals/frozen/protocols.

    Args:
        name: of its verb `eval-<name>`, its settings and its folder of results.
        version: raised where the code gives other numbers for equal settings.
        needs: annotations of `val`; of `train` too, where `fits`.
        fits: whether it fits on `train`.
        headline: the score that tables show.
        layouts: of the data that it is meant for; on others it is run where somebody asks for it. Empty: all.
    """

    name: str
    version: int
    title: str
    needs: Annotation
    fits: bool
    headline: str
    layouts: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """What results carry."""
        return f"r2o.{self.name}/{self.version}"


FROZEN_PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        FrozenProtocol(
            name="linear", version=1, title="linear segmentation", needs="labels", fits=True, headline="mean_iou"
        ),
        FrozenProtocol(name="knn", version=1, title="kNN segmentation", needs="labels", fits=True, headline="mean_iou"),
        FrozenProtocol(
            name="context", version=1, title="neighbours in context", needs="labels", fits=True, headline="mean_iou"
        ),
        FrozenProtocol(
            name="overclustering", version=1, title="overclustering", needs="labels", fits=False, headline="mean_iou"
        ),
        FrozenProtocol(
            name="discovery", version=1, title="object discovery", needs="boxes", fits=False, headline="corloc"
        ),
        FrozenProtocol(
            name="classes", version=1, title="classification", needs="class_id", fits=True, headline="linear"
        ),
        FrozenProtocol(
            name="cub",
            version=1,
            title="birds (Table 3)",
            needs="objects",
            fits=False,
            headline="image_mean_of_both",
            layouts=("cub",),
        ),
        FrozenProtocol(
            name="abo", version=1, title="best overlap (Figure 3)", needs="objects", fits=False, headline="over_objects"
        ),
    )
}
