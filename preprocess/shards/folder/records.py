"""What a job of shards notes while it works: `.job/job.json`, and a file for each shard that is done."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.label_maps import MAIN_MAP
from pipeline.artifacts.names import Prefix, Sha256
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder
from preprocess.shards.make_one import ShardResult
from preprocess.shards.plan import Plan

JOB_FOLDER, JOB_NAME = ".job", "job.json"
ANOTHER = "choose another SHARDS folder, or add --overwrite to make them again"
STAMPS = "stamps"


class JobRecord(BaseModel):
    """What is being made, and whose folder it is.

    Attributes:
        replaces: prefixes of former shards that are still to be removed; until then none of this job is there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: dict[str, Any]
    versions: dict[str, str]
    fingerprint: Sha256
    listed: int
    format_version: Literal[1, 2] = 1
    replaces: tuple[Prefix, ...] = ()

    def encode(self) -> str:
        """One line of JSON, since format 2 with a checksum."""
        members = self.model_dump(mode="json", exclude_defaults=True)
        return json.dumps(sealed(members) if self.format_version > 1 else members) + "\n"

    @classmethod
    def decode(cls, data: bytes) -> JobRecord:
        """The reverse of `encode`. Raises ValueError where the bytes are none."""
        members = _object(data)
        return cls.model_validate(unsealed(members, required=members.get("format_version", 1) != 1))


class Note(NamedTuple):
    """A shard that is done, and `stamps_digest` of its images when they were listed (None: not known)."""

    result: ShardResult
    stamps: str | None

    def encode(self) -> str:
        """One line of JSON with a checksum."""
        return json.dumps(sealed({**self.result.model_dump(mode="json"), STAMPS: self.stamps})) + "\n"

    @classmethod
    def decode(cls, data: bytes, plan: Plan) -> Note:
        """The reverse of `encode`; notes of format 1 may lack stamps and checksum. Raises ValueError."""
        members = dict(unsealed(_object(data), required=plan.format_version > 1))
        stamps = members.pop(STAMPS, None)
        if stamps is not None and not isinstance(stamps, str):
            raise ValueError("stamps are no text")
        result = ShardResult.model_validate(members)
        if result.max_superpixels.keys() != {MAIN_MAP, *plan.settings.maps}:
            raise ValueError("not the maps of the job")
        return cls(result, stamps)


def check_owner(folder: Folder, fingerprint: str) -> None:
    """That the job of this fingerprint still works here. A worker asks before it publishes a shard.

    Raises:
        InputError: it ended, or another one has begun.
    """
    try:
        record = read_job_record(folder)
    except (FileNotFoundError, NotADirectoryError):
        record = None
    if record is None or record.fingerprint != fingerprint or record.replaces:
        raise InputError(f"{folder.root}: the job that wanted this shard is gone; nothing was written")


def read_job_record(folder: Folder) -> JobRecord:
    """What is being made in a folder of shards. Raises InputError where the file is damaged; OSError."""
    data = folder.below(JOB_FOLDER).read(JOB_NAME)
    try:
        return JobRecord.decode(data)
    except ValueError:
        raise InputError(f"{folder.root}/{JOB_FOLDER}/{JOB_NAME}: damaged; {ANOTHER}") from None


def _object(data: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(loaded, dict):
        raise ValueError("not a JSON object")
    return loaded
