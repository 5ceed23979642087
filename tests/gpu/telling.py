"""What a part finds, as lines of JSON in results.jsonl."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.gpu.places import OUT, PART, ROOT

OURS = (str(ROOT / "train"), str(ROOT / "tests"))


def tell(what: str, **figures: object) -> None:
    """Append a line to the results, and print it. `ok=False` fails the day."""
    line = json.dumps({"part": PART, "what": what, **figures}, default=str)
    with (OUT / "results.jsonl").open("a") as file:
        file.write(line + "\n")
    print(line, flush=True)


@contextmanager
def check(what: str) -> Iterator[dict[str, Any]]:
    """A check that fails is told and ends nothing else; what it puts into the dict is told too."""
    found: dict[str, Any] = {}
    began = time.perf_counter()
    try:
        yield found
        tell(what, ok=found.pop("ok", True), seconds=round(time.perf_counter() - began, 2), **found)
    except Exception as error:
        traceback.print_exc()
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(OURS)]
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in frames]
        found.pop("ok", None)
        tell(what, ok=False, error=f"{type(error).__name__}: {str(error)[:300]}", at=places[-4:], **found)
