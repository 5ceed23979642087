"""What a run folder says of itself, and that only one run works in it."""

from __future__ import annotations

import hashlib
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
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.artifacts.fingerprint import differences, fingerprint
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.names import Sha256, first_problem
from pipeline.artifacts.run_files import (
    BACKBONE_NAME,
    CHECKPOINTS_FOLDER,
    CONFIG_NAME,
    EVENTS_FOLDER,
    LOG_NAME,
    PANELS_FOLDER,
    RECORD_NAME,
    RUN_LOCK_NAME,
    SKIPPED_NAME,
)
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import read_own, refuse_link, sha256_of, write_atomic
from pipeline.foundation.locks import only_holder
from pipeline.foundation.settings import dump_settings, load_settings
from train.config.batches import BatchPlan
from train.config.pretrain import PretrainSettings

RECORD_FORMAT_VERSION = 2
OWN_FOLDERS = (CHECKPOINTS_FOLDER, PANELS_FOLDER, EVENTS_FOLDER)
OWN_NAMES = (*OWN_FOLDERS, CONFIG_NAME, RECORD_NAME, RUN_LOCK_NAME, LOG_NAME, SKIPPED_NAME, BACKBONE_NAME)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class _Init(_Part):
    path: str
    sha256: Sha256


class _Start(_Part):
    model_config = ConfigDict(extra="allow")  # the rest is for people

    config_sha256: Sha256 | None = None  # from format 2 on
    precision: Literal["fp32", "tf32", "bf16", "fp16"] | None = None  # what `auto` became


class _Record(_Part):
    """run.json. What format 1, of r2o 0.1.0, did not have is None there."""

    format_version: Literal[1, 2] = 1
    fingerprint: Sha256
    shards_fingerprint: Sha256
    shards_content: Sha256 | None = None
    samples: int
    seed: int
    init: _Init | None
    command: list[str] = []
    git_commit: str | None
    versions: dict[str, str]
    config_sha256: Sha256 | None = None
    starts: list[_Start]


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

    @cached_property
    def format_version(self) -> int:
        """Of the run's record; a run that began with format 1 keeps it, and with it its fingerprint."""
        record = read_record(self.path)
        return RECORD_FORMAT_VERSION if record is None else int(record["format_version"])

    @property
    def fingerprint(self) -> str:
        """Of the settings but for how the run is executed and watched, of the shards and their bytes, and of `init`."""
        parts = {"init": self.init_sha256} if self.init else {}
        if self.format_version > 1:
            parts["content"] = self.manifest.content_sha256
        return fingerprint(settings=self.settings.content(), shards=self.manifest.fingerprint, **parts)

    def check(self) -> None:
        """That the folder is new, or of this very run. Raises InputError."""
        record = read_record(self.path)
        if record is None:
            return
        other_content = record["shards_content"] not in (None, self.manifest.content_sha256)
        if record["fingerprint"] == self.fingerprint and not other_content:
            return
        found = differences(self.settings.content(), run_settings(self.path).content(), "pretrain.")
        if (record["init"] or {}).get("sha256") != self.init_sha256:
            found.append("another --init")
        if record["shards_fingerprint"] != self.manifest.fingerprint:
            found.append("other shards")
        elif other_content:
            found.append("other shards: their content differs")
        raise InputError(f"{self.path} holds another run ({'; '.join(found)}); choose another RUN")

    def hold(self, held: ExitStack) -> str:
        """Make the folder if need be, and keep other processes out until `held` ends; gives "".

        Raises:
            InputError: one is in, something of ours in it is a link, or it is of another run.
        """
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file; RUN must be a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        for name in OWN_NAMES:
            refuse_link(self.path / name)
        for folder in OWN_FOLDERS:
            for path in (self.path / folder).glob("*"):
                refuse_link(path)
        busy = f"another process trains in {self.path}; wait for it, stop it, or choose another RUN"
        held.enter_context(only_holder(self.path / RUN_LOCK_NAME, otherwise=busy))
        self.check()
        return ""

    def note_start(self, plan: BatchPlan, device: torch.device, *, step: int) -> str:
        """Write settings and record; `step` steps are done. Gives ""."""
        config, former = dump_settings(pretrain=self.settings), read_record(self.path)
        start = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "step": step,
            "host": platform.node(),
            "num_ranks": plan.num_ranks,
            "local_batch_size": plan.local_batch_size,
            "accumulation": plan.accumulation,
            "device": _name_of(device),
            "precision": self.settings.run.precision,
            "command": sys.argv,
            "git_commit": _git_commit(),
            "versions": library_versions(),
            "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
        }
        record = {
            "format_version": self.format_version,
            "fingerprint": self.fingerprint,
            "shards_fingerprint": self.manifest.fingerprint,
            "shards_content": self.manifest.content_sha256,
            "samples": self.manifest.stored,
            "seed": self.settings.seed,
            "init": {"path": str(self.init), "sha256": self.init_sha256} if self.init else None,
            **{name: start[name] for name in ("command", "git_commit", "versions", "config_sha256")},
            "starts": [*(former or {}).get("starts", []), start],
        }
        writes = [(CONFIG_NAME, config), (RECORD_NAME, json.dumps(sealed(record), indent=1) + "\n")]
        # The record is the later file of a first start, as it says that the run has begun. It is the earlier one of
        # further starts: a kill in between leaves the config of one of the starts that it names.
        for name, text in writes if former is None else reversed(writes):
            write_atomic(self.path / name, text)
        return ""


def library_versions() -> dict[str, str]:
    """Of what computes the weights."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
    }


def read_record(run: Path) -> dict[str, Any] | None:
    """What a run folder's run.json says; None where there is none.

    Raises:
        InputError: it is damaged, a link, or of another format.
    """
    path = run / RECORD_NAME
    try:
        loaded = json.loads(read_own(path))
        version = loaded.get("format_version", 1) if isinstance(loaded, dict) else 1
        if isinstance(version, int) and version > RECORD_FORMAT_VERSION:
            raise InputError(
                f"{path}: format version {version}, but this r2o reads up to {RECORD_FORMAT_VERSION}; use the r2o that "
                "wrote it"
            )
        record = _Record.model_validate(unsealed(loaded, required=version != 1))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; put that right, or choose another RUN") from None
    except (ValueError, RecursionError) as error:
        why = first_problem(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{path} is damaged ({why}); put a whole one back, or choose another RUN") from None
    return record.model_dump(mode="json")


def run_settings(run: Path) -> PretrainSettings:
    """The settings of a run, by its config.yaml. Raises InputError as `run_config`, or where they are no settings."""
    run_config(run)
    return load_settings(PretrainSettings, "pretrain", run / CONFIG_NAME)


def run_config(run: Path) -> str:
    """The text of a run's config.yaml, compared with what run.json says of it.

    Raises:
        InputError: it cannot be read, is a link, or was changed.
    """
    path, again = run / CONFIG_NAME, "`make pretrain` with the settings of this run writes it again"
    record = read_record(run)
    try:
        data = read_own(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; {again}") from None
    known = [start["config_sha256"] for start in (record or {}).get("starts", [])]
    if any(known) and hashlib.sha256(data).hexdigest() not in known:
        raise InputError(f"{path} was changed after it was written; {again}")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{path} is no text; {again}") from None


def has_begun(run: Path) -> bool:
    """Whether a run folder holds what a run leaves once it has a checkpoint, whether or not that is there still."""
    record = read_record(run)
    # Format 1 noted a start before there was a checkpoint.
    noted = record is not None and record["format_version"] > 1
    left = noted or (run / BACKBONE_NAME).exists() or any((run / CHECKPOINTS_FOLDER).glob("*.pt"))
    # Whatever the log holds: no line of it may be whole any more.
    return left or ((run / LOG_NAME).exists() and (run / LOG_NAME).stat().st_size > 0)


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
