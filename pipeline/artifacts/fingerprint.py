"""A canonical hash of what decides a result: settings and inputs, never where or how wide it ran."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pydantic import BaseModel


def fingerprint(**parts: object) -> str:
    """Hex SHA-256 of named parts (JSON values or settings), the same on every machine and in every order.

    Raises:
        ValueError: a part holds NaN or an infinity. TypeError: it holds something that is not JSON.
    """
    plain = {
        name: part.model_dump(mode="json") if isinstance(part, BaseModel) else part for name, part in parts.items()
    }
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(ours: Mapping[str, object], theirs: Mapping[str, object], prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two nested mappings, each as `key: theirs → ours`."""
    found: list[str] = []
    for key in sorted({*ours, *theirs}):
        left, right = ours.get(key, "(absent)"), theirs.get(key, "(absent)")
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            found.append(f"{prefix}{key}: {right} → {left}")
    return found
