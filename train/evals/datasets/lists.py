"""Text files that name images and classes. What they name is never a path to elsewhere."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.foundation.errors import InputError
from pipeline.foundation.files import open_regular

CLASSES_NAME = "classes.txt"
MOST_CLASSES = 2**15 - 1  # that the labels of an image can tell apart


def read_text_lines(path: Path, *, purpose: str) -> list[str]:
    """The lines of a text that are not empty, without spaces at their ends, line ends of any kind and a BOM.

    Args:
        purpose: what the file must hold, for the message.
    Raises:
        InputError: it cannot be read, is a pipe or a device, or is no UTF-8 text.
    """
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            text = file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise InputError(f"{path} cannot be read: {reason}; it must hold {purpose}") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_pairs(path: Path, *, purpose: str) -> dict[str, str]:
    """Lines of an id and what belongs to it, by id. Raises InputError where a line is none, or an id comes twice."""
    found: dict[str, str] = {}
    for line in read_text_lines(path, purpose=purpose):
        key, _, value = line.partition(" ")
        if not value.strip():
            raise InputError(f"{path}: '{line:.60}' is no line of {purpose}; put that right")
        if key in found:
            raise InputError(f"{path} has a line of {key} twice; remove one")
        found[key] = value.strip()
    if not found:
        raise InputError(f"{path} is empty; it must hold {purpose}")
    return found


def require_name(name: str, *, path: Path, below: str) -> str:
    """`name` itself. Raises InputError where it leads out of the folder `below`; `path` is the file that lists it."""
    parts = re.split(r"[/\\]", name)
    if not parts[0] or parts[0].endswith(":") or ".." in parts or "\0" in name:
        raise InputError(f"{path} lists {name!r}, which is no name below {below}; remove it")
    return name


def require_different(names: Sequence[str], *, path: Path) -> None:
    """Raises InputError where a name comes twice in the list that `path` holds."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"{path} lists {name} twice; remove one")
        seen.add(name)


def require_disjoint(train: Sequence[str], val: Sequence[str], *, where: str) -> None:
    """Raises InputError where an image is in both lists; `where` names them."""
    both = sorted(set(train) & set(val))
    if both:
        more = f", and {len(both) - 1} more" if len(both) > 1 else ""
        raise InputError(f"{where}: both list {both[0]}{more}; what is scored must not be fitted on, take it off one")


def read_class_names(path: Path, *, least: int, most: int, order: str) -> tuple[str, ...]:
    """Names of classes, one a line. Raises InputError where there are too few or too many, or two are equal."""
    names = read_text_lines(path, purpose=f"one class name a line, {order}")
    if not least <= len(names) <= most or len(set(names)) < len(names):
        raise InputError(f"{path} must hold {least} to {most} different class names, one a line, {order}")
    return tuple(names)
