"""What a run folder says of itself, and that only one run works in it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from pipeline.artifacts.fingerprint import differences, fingerprint
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.run_files import CONFIG_NAME, RECORD_NAME, RUN_LOCK_NAME
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import sha256_of, write_atomic
from pipeline.foundation.locks import only_holder
from pipeline.foundation.settings import dump_settings, load_settings
from train.config.batches import BatchPlan
from train.config.pretrain import PretrainSettings


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run: its settings, shards and, by `fingerprint`, what decides its weights.

    Attributes:
        init: the file of weights that it begins with, where there is one.
    """

    path: Path
    settings: PretrainSettings
    manifest: Manifest
    init: Path | None = None

    @cached_property
    def init_sha256(self) -> str | None:
        """Hex SHA-256 of `init`."""
        return sha256_of(self.init) if self.init else None

    @property
    def fingerprint(self) -> str:
        """Of the settings but for how the run is executed and watched, of the shards, and of `init`."""
        parts = {"init": self.init_sha256} if self.init else {}
        return fingerprint(settings=self.settings.content(), shards=self.manifest.fingerprint, **parts)

    def check(self) -> None:
        """That the folder is new, or of this very run. Raises InputError."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; RUN must be a folder")
        record = self._record()
        if record is not None and record["fingerprint"] != self.fingerprint:
            theirs = load_settings(PretrainSettings, "pretrain", self.path / CONFIG_NAME).content()
            found = differences(self.settings.content(), theirs, "pretrain.")
            if (record.get("init") or {}).get("sha256") != self.init_sha256:
                found.append("another --init")
            found = found or ["other shards"]
            raise InputError(f"{self.path} holds another run ({'; '.join(found)}); choose another RUN")

    def hold(self, held: ExitStack) -> str:
        """Make the folder if need be, and keep other processes out until `held` ends; gives "".

        Raises:
            InputError: one is in.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        busy = f"another process trains in {self.path}; wait for it, stop it, or choose another RUN"
        held.enter_context(only_holder(self.path / RUN_LOCK_NAME, otherwise=busy))
        return ""

    def note_start(self, plan: BatchPlan, device: torch.device, *, step: int) -> str:
        """Write settings and record; `step` steps are done. Gives ""."""
        write_atomic(self.path / CONFIG_NAME, dump_settings(pretrain=self.settings))
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "host": platform.node(),
            "num_ranks": plan.num_ranks,
            "local_batch_size": plan.local_batch_size,
            "accumulation": plan.accumulation,
            "device": _name_of(device),
            "command": sys.argv,
            "git_commit": _git_commit(),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "torchvision": torchvision.__version__,
                "numpy": np.__version__,
            },
        }
        record = {
            "fingerprint": self.fingerprint,
            "shards_fingerprint": self.manifest.fingerprint,
            "samples": self.manifest.stored,
            "seed": self.settings.seed,
            "init": {"path": str(self.init), "sha256": self.init_sha256} if self.init else None,
            **{name: start[name] for name in ("command", "git_commit", "versions")},
            "starts": [*(self._record() or {}).get("starts", []), start],
        }
        write_atomic(self.path / RECORD_NAME, json.dumps(record, indent=1) + "\n")
        return ""

    def _record(self) -> dict[str, Any] | None:
        return read_record(self.path)


def read_record(run: Path) -> dict[str, Any] | None:
    """What a run folder's run.json says; None where there is none. Raises InputError where it is damaged."""
    path = run / RECORD_NAME
    try:
        record: dict[str, Any] = json.loads(path.read_bytes())
        return record
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise InputError(f"{path} is damaged; choose another RUN") from None


def _name_of(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"


def _git_commit() -> str | None:
    """The checkout's commit; None outside a checkout or without git."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
