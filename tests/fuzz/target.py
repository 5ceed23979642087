"""What is fuzzed: a file, and what a command makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.foundation.errors import InputError


class Target(NamedTuple):
    """A file, and what a command makes of it. `is_users`: another content is another input, and no fault."""

    path: Path
    read: Callable[[], Any]
    is_users: bool = False


class Refused(InputError):
    """What is found out is put right without a word: the content is not taken."""
