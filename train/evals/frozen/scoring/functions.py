"""The code of every protocol, by its name in `FROZEN_PROTOCOLS`."""

from __future__ import annotations

from collections.abc import Mapping

from train.evals.frozen.protocols import abo, classes, context, cub, discovery, knn, linear, overclustering
from train.evals.frozen.scoring.evaluation import ScoreFunction

SCORE_FUNCTIONS: Mapping[str, ScoreFunction] = {
    "linear": linear.score,
    "knn": knn.score,
    "context": context.score,
    "overclustering": overclustering.score,
    "discovery": discovery.score,
    "classes": classes.score,
    "cub": cub.score,
    "abo": abo.score,
}
