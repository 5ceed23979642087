"""What a day found, as text and as an exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Line = dict[str, Any]  # of results.jsonl: a part's end where it has no `what`, else something that a part told
MARKS: dict[object, str] = {True: "ok  ", False: "FAIL"}


def read_results(text: str) -> list[Line]:
    """All lines of results.jsonl."""
    return [json.loads(line) for line in text.splitlines()]


def failures(lines: Iterable[Line]) -> list[str]:
    """Each check that failed and each part that ended badly."""
    found = []
    for line in lines:
        if "what" not in line and line.get("exit", 0) != 0:
            found.append(f"{line['part']} ended with {line['exit']}")
        if line.get("ok", True) is not True:
            found.append(f"{line['part']}: {line.get('what')}")
    return found


def summary_of(lines: Sequence[Line]) -> str:
    """Parts, then what they told, then kernels, then failures."""
    return "\n".join([*_parts(lines), *_told(lines), *_kernels(lines), *_verdict(lines)])


def _parts(lines: Sequence[Line]) -> Iterator[str]:
    yield "part            exit  seconds"
    for line in lines:
        if "what" not in line:
            limit = f"  ended at its limit of {line['limit']} s" if "limit" in line else ""
            seconds = line.get("seconds", f"skipped: {line.get('skipped')}")
            yield f"{line['part']:14} {line.get('exit', '–')!s:>5}  {seconds}{limit}"


def _told(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if "what" in line and line["what"] != "kernel":
            rest = {key: value for key, value in line.items() if key not in ("part", "what", "ok")}
            figures = json.dumps(rest, ensure_ascii=False)[:420]
            yield f"{MARKS.get(line.get('ok'), '    ')} {line['part']}: {line['what']}: {figures}"


def _kernels(lines: Sequence[Line]) -> Iterator[str]:
    for line in lines:
        if line.get("what") == "kernel":
            yield f"  {line['ms']:8.3f} ms {line['count']:6.1f} × {line['name'][:90]}"


def _verdict(lines: Sequence[Line]) -> Iterator[str]:
    bad = failures(lines)
    skipped = [line["part"] for line in lines if "skipped" in line]
    if skipped:
        yield f"skipped: {', '.join(skipped)}"
    yield f"{len(bad)} failed: {'; '.join(bad)}" if bad else "nothing failed"
