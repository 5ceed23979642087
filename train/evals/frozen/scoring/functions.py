"""The code of every protocol, by its name in `FROZEN_PROTOCOLS`."""

from __future__ import annotations

from collections.abc import Mapping

from train.evals.frozen.protocols import abo, cub, discovery, overclustering
from train.evals.frozen.scoring.evaluation import ScoreFunction

SCORE_FUNCTIONS: Mapping[str, ScoreFunction] = {
    "overclustering": overclustering.score,
    "discovery": discovery.score,
    "cub": cub.score,
    "abo": abo.score,
}
