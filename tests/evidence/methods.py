"""The methods of the evidence on photographs: settings of one recipe, and epochs of about equal compute."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

CONFIG = Path(__file__).parents[2] / "configs/imagenette_methods.yaml"


class Method(NamedTuple):
    """What differs from the recipe.

    Attributes:
        epochs: as many as take at least the CPU seconds of R2O's 16 (docs/log.md, registered on 2026-11-28).
        sets: settings of `pretrain`.
        shards, shard_sets: folder below WORK, and the settings that its shards need beside the recipe's.
    """

    title: str
    epochs: int
    sets: tuple[str, ...] = ()
    shards: str = "shards"
    shard_sets: tuple[str, ...] = ()


def fixed(num_clusters: int) -> tuple[str, ...]:
    """Settings that keep K."""
    ends = (f"curriculum.{end}_num_clusters={num_clusters}" for end in ("initial", "final"))
    return ("curriculum.schedule=constant", "curriculum.hold_epochs=0", *ends)


GRID = ("refine.regions=grid", "refine.grid=[10,10]")
PAINTED = "refine.assign=superpixel"
# As configs/imagenet1k_r50_detcon_b.yaml. C5 of a view of 64 px has four cells, so that a view has four masks at most.
DETCON_B = (
    "refine.clustering=none",
    "data.view_superpixels=true",
    "data.superpixel_maps={felzenszwalb: 16}",
    "objective.loss=detcon_b",
    "objective.view_masks=superpixels",
    "objective.hard_masks=true",
    "objective.masks_per_view=16",
    "objective.temperature=0.1",
    *fixed(16),
)
FELZENSZWALB = (
    "shards.maps.felzenszwalb={backend: felzenszwalb, scale: 1000, min_size: 1000, segmented_at: native, size: 96}"
)
METHODS = {
    "r2o": Method("R2O", 16),
    "byol": Method("BYOL", 19, ("refine.clustering=none", "refine.regions=image", *fixed(1))),
    "painted": Method("R2O, painted", 16, (PAINTED,)),
    "spatial": Method("spatial prior, painted", 16, (PAINTED, *GRID)),
    "unrefined": Method("without refinement", 16, ("refine.clustering=none", PAINTED, *fixed(100))),
    "fixed_k4": Method("fixed K = 4", 16, fixed(4)),
    "fixed_k128": Method("fixed K = 128", 16, fixed(128)),
    "detcon_b": Method("DetCon-B", 16, DETCON_B, "detcon-shards", (FELZENSZWALB,)),
}


def sets_of(method: str, seed: int) -> list[str]:
    """The settings of a run, section and all."""
    found = METHODS[method]
    return [f"pretrain.{one}" for one in (f"seed={seed}", f"epochs={found.epochs}", *found.sets)]
