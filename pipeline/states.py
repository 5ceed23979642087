"""What is known of the stages of a workflow: WORK/.r2o/<stage>.json, with a checksum; those of 0.1.0 have none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.artifacts.names import Sha256
from pipeline.artifacts.seal import sealed, unsealed
from pipeline.foundation.errors import InputError
from pipeline.foundation.files import read_own, write_atomic

STATE_FOLDER, CONTENTS_NAME = ".r2o", "inputs.jsonl"


class StageState(BaseModel):
    """What is known of a stage. `parts` are what its fingerprint covers; `seconds` of the call that finished it.

    `inputs_by`: what the digests of its inputs cover; 0.1.0, which does not say it, took names and sizes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    status: Literal["started", "finished"]
    fingerprint: Sha256
    parts: dict[str, Any]
    inputs_by: Literal["sizes", "content"] = "sizes"
    command: tuple[str, ...]
    seconds: float | None = None


def read_state(work: Path, name: str) -> StageState | None:
    """A stage's state, None where it never started.

    Raises:
        InputError: the file is damaged, cannot be read, or is a link.
    """
    path = work / STATE_FOLDER / f"{name}.json"
    try:
        data = read_own(path)
        state = StageState.model_validate(unsealed(json.loads(data), required=False))
    except FileNotFoundError:
        return None
    except InputError:  # a link
        raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}; put that right and run the same command again"
        ) from None
    except (ValueError, RecursionError):
        state = None
    if state is None or state.stage != name:
        raise InputError(f"{path} is damaged; put a whole one back, or move it and the output of stage {name} away")
    return state


def write_state(work: Path, state: StageState) -> None:
    """Store a stage's state atomically."""
    text = json.dumps(sealed(state.model_dump(mode="json")), indent=1)
    write_atomic(work / STATE_FOLDER / f"{state.stage}.json", text + "\n")
