"""Samples that could not be read: named in the run folder, counted over all ranks, and not more than was allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts.json_lines import keep_lines
from pipeline.artifacts.run_files import SKIPPED_NAME
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import append_whole
from pipeline.foundation.progress import say
from train.data.shards.reader import Skipped

SHOWN = 5  # lines a step
KINDS = {"step": int, "epoch": int, "sample_id": int, "shard": str, "key": str, "reason": str}


class SkippedLog:
    """`skipped.jsonl`: one line a sample and epoch. A resumed run drops what lies after its first step."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        self._path = run / SKIPPED_NAME
        self.lines = keep_lines(self._path, fits=_is_line, wanted=lambda line: line["step"] < first_step)

    def count_in(self, epoch: int) -> int:
        """Samples of an epoch that the log names."""
        return sum(line["epoch"] == epoch for line in self.lines)

    def write(self, skipped: Iterable[Skipped], *, step: int) -> None:
        """Append, and say so."""
        new = [{"step": step, **one._asdict()} for one in skipped]
        self.lines += new
        append_whole(self._path, "".join(json.dumps(line) + "\n" for line in new).encode())
        for line in new[:SHOWN]:
            say(f"pretrain: step {step}: skipped {line['shard']}, sample {line['key'] or '?'}: {line['reason']}")
        if len(new) > SHOWN:
            say(f"pretrain: step {step}: skipped {len(new) - SHOWN} more; {self._path} names them")


def require_few_skipped(count: int, *, num_samples: int, max_fraction: float, epoch: int) -> None:
    """Raises InputError where more samples of an epoch are gone than `data.max_skipped_fraction` allows."""
    if count > max_fraction * num_samples:
        raise InputError(
            f"epoch {epoch}: {count} of {num_samples} samples were skipped, more than "
            f"pretrain.data.max_skipped_fraction {max_fraction:g} allows; {SKIPPED_NAME} names them, `make verify "
            "SHARDS=… REPAIR=1 IMAGES=…` makes them again"
        )


def _is_line(line: dict[str, Any]) -> bool:
    return line.keys() == KINDS.keys() and all(type(line[name]) is kind for name, kind in KINDS.items())
