"""That all ranks are about to do the same, before the first of them waits for another in a step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from pipeline.artifacts.fingerprint import differences
from pipeline.foundation.errors import AgreedError
from train.distributed.collectives import texts_of_all
from train.distributed.world import World
from train.engine.job import Job
from train.run.folder import library_versions

CODE = Path(__file__).parents[2]  # where the packages lie
PACKAGES = ("pipeline", "train")
OF_THE_MACHINE = {  # settings that decide neither the weights nor what ranks exchange; nodes may differ in them
    "data": {"cache", "cache_gb", "num_workers", "prefetch_batches", "recheck_days", "retries", "verify"},
    "run": {"wandb_project"},
}
DIGITS = 12  # shown and compared, of a SHA-256
SHOWN_KEYS, SHOWN_RANKS = 6, 8


def require_same_job(job: Job, world: World) -> None:
    """Compare settings, code, versions, shards, weights to begin with, and batches, with those of every rank.

    Raises:
        AgreedError: a rank differs from the main one; on every rank.
    """
    told = disagreement([json.loads(text) for text in texts_of_all(json.dumps(identity_of(job)), world)])
    if told:
        raise AgreedError(f"{told}; start all ranks with the same settings, code and shards")


def identity_of(job: Job) -> dict[str, Any]:
    """What must be the same on every rank, as plain JSON values."""
    folder, plan = job.folder, job.plan
    return {
        "pretrain": job.settings.model_dump(mode="json", exclude=OF_THE_MACHINE),
        "code": code_digest(CODE)[:DIGITS],
        "versions": library_versions(),
        "shards": {
            "fingerprint": folder.manifest.fingerprint[:DIGITS],
            "content": folder.manifest.content_sha256[:DIGITS],
        },
        "init": folder.init_sha256 and folder.init_sha256[:DIGITS],
        "batches": {
            "samples": plan.num_samples,
            "ranks": plan.num_ranks,
            "local_batch_size": plan.local_batch_size,
            "accumulation": plan.accumulation,
            "steps": plan.total_steps,
        },
    }


@cache
def code_digest(root: Path) -> str:
    """Hex SHA-256 of the names and bytes of all Python files that a run may load."""
    digest = hashlib.sha256()
    for path in sorted(path for package in PACKAGES for path in (root / package).rglob("*.py")):
        name, content = path.relative_to(root).as_posix(), path.read_bytes()
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def disagreement(facts: Sequence[Mapping[str, Any]]) -> str:
    """In which facts ranks differ from the first one, and which ranks; empty where they agree."""
    ranks: dict[str, list[int]] = {}
    for rank, theirs in enumerate(facts):
        if found := differences(theirs, facts[0]):
            shown = [*found[:SHOWN_KEYS], *(["…"] if len(found) > SHOWN_KEYS else [])]
            ranks.setdefault("; ".join(shown), []).append(rank)
    return "; ".join(f"{_named(who)} from rank 0: {what}" for what, who in ranks.items())


def _named(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} differs"
    shown = ", ".join(map(str, ranks[:SHOWN_RANKS]))
    return f"ranks {shown}{f', … ({len(ranks)})' if len(ranks) > SHOWN_RANKS else ''} differ"
