"""Samples that could not be read: named in the run folder, counted over all ranks, and not more than was allowed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline.artifacts.run_files import SKIPPED_NAME
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import write_atomic
from pipeline.foundation.progress import say
from train.data.shards.reader import Skipped

SHOWN = 5  # lines a step


class SkippedLog:
    """`skipped.jsonl`: one line a sample and epoch. A resumed run drops what lies after its first step."""

    def __init__(self, run: Path, *, first_step: int) -> None:
        self._path = run / SKIPPED_NAME
        self.lines = [line for line in _read(self._path) if line["step"] < first_step]
        if self._path.exists():
            write_atomic(self._path, "".join(json.dumps(line) + "\n" for line in self.lines))

    def count_in(self, epoch: int) -> int:
        """Samples of an epoch that the log names."""
        return sum(line["epoch"] == epoch for line in self.lines)

    def write(self, skipped: Iterable[Skipped], *, step: int) -> None:
        """Append, and say so."""
        new = [{"step": step, **one._asdict()} for one in skipped]
        self.lines += new
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(line) + "\n" for line in new))
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


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    *lines, _ = path.read_text(encoding="utf-8").split("\n")  # a last line that a kill cut short is not one
    return [json.loads(line) for line in lines if line]
