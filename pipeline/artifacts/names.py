"""Names and digests that are read from files. Each is checked where its file is read, so that none is ever a path."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationError

MOST_IDS = 2**16  # that a 16-bit label map can hold
SHOWN = 60  # characters of a wrong value

ShardName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,199}-[0-9]{6,12}\.tar$")]
Prefix = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{0,199}$")]  # of shards, before their number
MapName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,100}$")]
Key = Annotated[str, Field(pattern=r"^[0-9]{9,18}$")]  # of a sample
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of a file, or a fingerprint

Count = Annotated[int, Field(ge=0, le=2**53)]  # of things or bytes; what every reader of JSON knows exactly
MapSide = Annotated[int, Field(ge=0, le=2**15)]  # pixels
NumIds = Annotated[int, Field(ge=0, le=MOST_IDS)]  # of a label map


def first_problem(error: ValidationError) -> str:
    """Which member of a file is wrong, and how, in a few words; the value is shown cut short."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"])) or "the whole"
    shown = repr(problem["input"])
    return f"{where}: {problem['msg']}, given {shown if len(shown) <= SHOWN else f'{shown[:SHOWN]}…'}"
