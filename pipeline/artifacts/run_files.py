"""Names inside a run folder, each said once. Trainer, evaluations, estimates and workflow read the same ones."""

from __future__ import annotations

CONFIG_NAME = "config.yaml"
RECORD_NAME = "run.json"  # fingerprints, seed, versions, commit and command, and every start
RUN_LOCK_NAME = ".lock"
LOG_NAME = "log.jsonl"
EVENTS_FOLDER = "tensorboard"
SKIPPED_NAME = "skipped.jsonl"
CHECKPOINTS_FOLDER = "checkpoints"
PANELS_FOLDER = "panels"
BACKBONE_NAME = "backbone.pt"
RESULTS_NAME = "results.json"  # in an evaluation's own folder, written last
PREDICTIONS_NAME = "predictions.png"
KEYS_NAME = "keys.json"  # of written features, a key a row
SUMMARY_NAME = "summary.json"  # of all protocols on frozen features, written last


def evaluation_folder(name: str) -> str:
    """The folder of an evaluation's results."""
    return f"eval-{name}"


def not_finite_name(step: int) -> str:
    """What is left of a step whose loss or gradient was not finite."""
    return f"not-finite-step-{step:08d}.json"
