"""A checksum inside a JSON file that nothing else protects: a changed file is not taken for what was written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.artifacts.fingerprint import fingerprint

CHECKSUM = "checksum"


def sealed(members: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a JSON object and, last, the SHA-256 of the others (canonical JSON).

    Raises:
        ValueError: they hold NaN or an infinity. TypeError: something that is not JSON.
    """
    others = {name: value for name, value in members.items() if name != CHECKSUM}
    return {**others, CHECKSUM: fingerprint(**others)}


def unsealed(loaded: Any, *, required: bool) -> dict[str, Any]:
    """The members of a JSON object that was read, without their checksum, which is compared.

    Args:
        required: whoever wrote it left a checksum; files of former releases have none.
    Raises:
        ValueError: it is no object, the checksum is missing, or it does not fit.
    """
    if not isinstance(loaded, dict):
        raise ValueError("not a JSON object")
    if CHECKSUM not in loaded and not required:
        return loaded
    others = {name: value for name, value in loaded.items() if name != CHECKSUM}
    if CHECKSUM not in loaded:
        raise ValueError("its checksum is missing")
    if loaded[CHECKSUM] != fingerprint(**others):
        raise ValueError("its checksum does not fit: it was changed after it was written")
    return others
