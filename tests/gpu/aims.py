"""What is aimed at on a GPU, and whether a day's results reach it. Only what was measured on a CUDA device counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.gpu.summary import Line

MET, NOT_MET, NOT_MEASURED = "met", "not met", "not measured"
CARDS = ("H100", "H200")  # whose speed the absolute aims are for; ratios hold on any card
RATE_BATCH, MANY_CORES = 256, 16


class Finding(NamedTuple):
    """What was measured, as text; `reached` None: it says nothing about the aim."""

    shown: str
    reached: bool | None


class Aim(NamedTuple):
    """`find` gives None where its figures are not among the lines."""

    name: str
    wanted: str
    find: Callable[[Sequence[Line]], Finding | None]


class Verdict(NamedTuple):
    """A row of the table."""

    name: str
    wanted: str
    measured: str
    verdict: str


def verdicts(lines: Sequence[Line]) -> list[Verdict]:
    """Every aim, with what the day says of it."""
    on_device = [line for line in lines if line.get("device") == "cuda" and line.get("ok") is True]
    facts = [line for line in lines if line["part"] == "env"]
    rows = []
    for aim in AIMS:
        found = aim.find([*on_device, *facts])
        reached = found.reached if found else None
        verdict = NOT_MEASURED if reached is None else MET if reached else NOT_MET
        rows.append(Verdict(aim.name, aim.wanted, found.shown if found else "", verdict))
    return rows


def told(lines: Sequence[Line], part: str, what: str) -> Line | None:
    """The last line of a part about something."""
    return next((line for line in reversed(lines) if (line["part"], line.get("what")) == (part, what)), None)


def steps_of(lines: Sequence[Line]) -> dict[int, dict[str, Line]]:
    """The steps that `bench` timed, and BYOL's bare passes: by batch, then kind."""
    found: dict[int, dict[str, Line]] = {}
    for line in lines:
        if line["part"] == "bench" and "batch" in line:
            found.setdefault(line["batch"], {})[line.get("kind", "bare")] = line
    return dict(sorted(found.items()))


def is_meant_card(lines: Sequence[Line]) -> bool:
    """Whether the GPU is one of CARDS."""
    name = (told(lines, "env", "gpu") or {}).get("name") or ""
    return any(card in name for card in CARDS)


def _on_the_card(lines: Sequence[Line], shown: str, reached: bool) -> Finding:
    """A figure whose aim is for the cards of CARDS."""
    return Finding(shown, reached) if is_meant_card(lines) else Finding(f"{shown}, on another card", None)


def _largest(lines: Sequence[Line], *kinds: str) -> tuple[int, list[Line]] | None:
    """The largest batch of which all these kinds were measured."""
    having = [(batch, steps) for batch, steps in steps_of(lines).items() if all(kind in steps for kind in kinds)]
    if not having:
        return None
    batch, steps = having[-1]
    return batch, [steps[kind] for kind in kinds]


def _ratio_to_byol(kind: str, most: float) -> Callable[[Sequence[Line]], Finding | None]:
    def find(lines: Sequence[Line]) -> Finding | None:
        if (found := _largest(lines, kind, "byol")) is None:
            return None
        batch, (ours, byol) = found
        ratio = ours["ms"] / byol["ms"]
        return Finding(f"{ratio:.3f} at batch {batch}", ratio <= most)

    return find


def _bare(lines: Sequence[Line]) -> Finding | None:
    if (found := _largest(lines, "bare", "byol")) is None:
        return None
    batch, (bare, byol) = found
    share = bare["ms"] / byol["ms"]
    return Finding(f"{share:.3f} at batch {batch}", share >= 0.9)


def _compiled_rate(lines: Sequence[Line]) -> Finding | None:
    line = told(lines, "compile", f"compiled step of {RATE_BATCH}")
    if line is None or "images_s" not in line:
        return None
    rate = line["images_s"]
    return _on_the_card(lines, f"{rate:,.0f}", rate >= 1300)


def _data_wait(lines: Sequence[Line]) -> Finding | None:
    line = told(lines, "stream", "host")
    if line is None:
        return None
    share, cores = line["data_wait_mean"], line["cores"]
    reached = share < 0.01
    return Finding(f"{share:.2%} with {cores} cores", reached if reached or cores >= MANY_CORES else None)


def _clustering(lines: Sequence[Line]) -> Finding | None:
    line = told(lines, "bench", "K-means, ms")
    if line is None:
        return None
    ms = line["g8_k128"]
    return _on_the_card(lines, f"{ms:.2f} ms", ms <= 5)


def _augmentation(lines: Sequence[Line]) -> Finding | None:
    line, found = told(lines, "bench", "augmentation, ms"), _largest(lines, "r2o_k128")
    if line is None or found is None or f"pairs{found[0]}" not in line:
        return None
    share = line[f"pairs{found[0]}"] / found[1][0]["ms"]
    return Finding(f"{share:.1%} at batch {found[0]}", share <= 0.05)


def _memory(lines: Sequence[Line]) -> Finding | None:
    if (found := _largest(lines, "byol", "r2o_k4", "r2o_k128")) is None:
        return None
    batch, steps = found
    ratios = {step["kind"]: step["gib"] / step["estimated_gib"] for step in steps}
    worst = max(ratios, key=lambda kind: abs(ratios[kind] - 1))
    shown = f"{ratios[worst] - 1:+.1%} at batch {batch} ({worst})"
    return Finding(shown, round(abs(ratios[worst] - 1), 6) <= 0.15)


AIMS = (
    Aim("R2O's step against BYOL's, K = 4", "at most 1.15", _ratio_to_byol("r2o_k4", 1.15)),
    Aim("R2O's step against BYOL's, K = 128", "at most 1.25", _ratio_to_byol("r2o_k128", 1.25)),
    Aim("BYOL's bare passes against its step", "at least 0.9", _bare),
    Aim("images/s at batch 256, compiled, on an H100", "at least 1,300", _compiled_rate),
    Aim("data_wait, host decodes", "below 1 % with 16 cores", _data_wait),
    Aim("K-means of 25,600 rows, K = 128, on an H100", "at most 5 ms", _clustering),
    Aim("augmentation's share of the step, K = 128", "at most 5 %", _augmentation),
    Aim("peak memory against the dry run's estimate", "within 15 %", _memory),
)
