"""The rules of the house, each with its reason; tests/test_architecture.py holds every import to them."""

from typing import NamedTuple

PACKAGES = ("pipeline", "preprocess", "train")
GROUND = ("pipeline.artifacts", "pipeline.foundation")
METHOD_ARROWS = {
    "masks": {"precision"},
    "kmeans": set(),
    "schedules": set(),
    "loss": {"precision"},
    "ema": set(),
    "refine": {"masks", "kmeans", "precision"},
    "model": {"masks", "kmeans", "schedules", "loss", "refine", "batch_norms", "ema"},
}


class Rule(NamedTuple):
    """`room` may import of `these` only `those`; `but`: modules that the rule does not bind."""

    room: str
    these: tuple[str, ...]
    those: tuple[str, ...]
    reason: str
    but: tuple[str, ...] = ()


RULES = (
    Rule("", ("tests", "configs"), (), "what is shipped runs without its tests; configs are loaded by path"),
    Rule("", ("ray",), (), "one file knows Ray, so that shards can be made without it",
         but=("preprocess.shards.ray_driver",)),
    Rule("pipeline", ("torch", "torchvision", "webdataset"), (), "`r2o --help`, status and dry runs are instant"),
    Rule("preprocess", ("torch", "torchvision", "webdataset"), (), "shards are made on CPU nodes without torch"),
    Rule("train", ("fast_slic", "skimage"), (), "superpixels are made once, before; the trainer never waits for them"),
    Rule("train", ("torch.distributed",), (), "one room knows ranks", but=("train.distributed",)),
    Rule("pipeline.foundation", PACKAGES, ("pipeline.foundation",), "everything stands on it"),
    Rule("pipeline.artifacts", PACKAGES, GROUND, "contracts know nobody who keeps them"),
    Rule("pipeline", PACKAGES, ("pipeline", "preprocess.config", "train.config", "train.r2o.schedules"),
         "stages are started as processes; only their settings are read"),
    Rule("pipeline.launchers", PACKAGES, ("pipeline.launchers", "pipeline.stages", *GROUND),
         "a launcher starts any stage and knows none"),
    Rule("pipeline.report", PACKAGES, ("pipeline.report", "train.config", *GROUND),
         "a table reads files of results, and knows no stage that made them"),
    Rule("preprocess", PACKAGES, ("preprocess", *GROUND), "preprocess and train meet in the shards alone"),
    Rule("preprocess.sources", ("preprocess",), ("preprocess.sources", "preprocess.config"),
         "what images there are does not depend on what is made of them"),
    Rule("preprocess.demo", ("preprocess",), ("preprocess.demo", "preprocess.config"), "scenes are images like others"),
    Rule("train", PACKAGES, ("train", *GROUND), "preprocess and train meet in the shards alone"),
    Rule("train.config", ("torch", "torchvision", "webdataset"), (), "settings are read by dry runs"),
    Rule("train.r2o.schedules", ("torch", "torchvision", "webdataset"), (), "settings read it"),
    Rule("train.config", ("train",), ("train.config", "train.r2o.schedules"), "settings know nobody who reads them"),
    Rule("train.distributed", ("train",), ("train.distributed",), "ranks exchange tensors, whatever they mean"),
    Rule("train.models", ("train",), ("train.models",), "a backbone is loaded without a trainer"),
    Rule("train.data", ("train",), ("train.data", "train.config", "train.models.backbone", "train.r2o.model"),
         "batches know no trainer; `Batch` of the model is what they are made for"),
    Rule("train.run", ("train.engine",), (), "what surrounds a run does not know its steps"),
    Rule("train.evals", ("train.engine", "train.run"), (), "anybody's backbone is evaluated, without a run of ours"),
    Rule("train.evals", ("train.data",), ("train.data.shards", "train.data.resize"),
         "its superpixels lie in shards, and its images are resized as a run's; batches are a run's"),
    Rule("train.evals", ("train.r2o",), (), "an evaluation is not part of the method",
         but=("train.evals.frozen",)),  # its masks, and K-means, are what some protocols look at
)  # fmt: skip
