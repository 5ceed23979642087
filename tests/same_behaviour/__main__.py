"""Does this checkout do what another one does? For refactorings, which must change nothing that users see.

python -m tests.same_behaviour BEFORE_CHECKOUT [--after CHECKOUT] [--out FOLDER] [--only ROW …]

Both run the same things, each with its own code and, where it has one, its own .venv. Results are compared exactly.
Losses, weights, shards, texts and exit codes count; times and speeds do not. The exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import takewhile, zip_longest
from pathlib import Path

from tests.same_behaviour.checkout import Checkout, interpreter_of
from tests.same_behaviour.inputs import write_inputs
from tests.same_behaviour.rows import ROWS, Row, Values

HERE = Path(__file__).resolve().parents[2]
SHOWN = 80  # characters of a value
HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")
LISTED = 10  # differences of a row


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a row has found in one checkout, or why it could not."""

    values: Values
    seconds: float
    problem: str = ""


def main(argv: Sequence[str] | None = None) -> int:
    """The command; its exit code: 0 where all is equal, 1 where anything differs, 2 for a mistake."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_behaviour", description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path, help="the other checkout")
    parser.add_argument("--after", type=Path, default=HERE, help="what to compare with it (this checkout)")
    parser.add_argument("--out", type=Path, help="new folder, in which all results stay")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=f"of {', '.join(ROWS)}")
    args = parser.parse_args(argv)
    roots = [root.resolve() for root in (args.before, args.after)]
    for root in roots:
        if not (root / "pipeline" / "cli.py").is_file():
            parser.error(f"{root} is no checkout of r2o")
    if args.out and args.out.exists():
        parser.error(f"{args.out} exists; give a new folder")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in the background; children would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    wanted = {"own-code", *(args.only or ROWS)}
    wanted |= {"run"} if any(ROWS[name].after_run for name in wanted) else set()
    rows = {name: row for name, row in ROWS.items() if name in wanted}
    with tempfile.TemporaryDirectory(prefix="r2o-same-") as scratch:
        return compare(*roots, out=args.out.resolve() if args.out else Path(scratch).resolve() / "out", rows=rows)


def compare(before: Path, after: Path, *, out: Path, rows: dict[str, Row]) -> int:
    """Measure the rows in both checkouts, print what was found; gives the exit code."""
    inputs, names = out / "inputs", names_of((before, after), out)
    write_inputs(inputs)
    checkouts = [Checkout(root=root, work=out / name, inputs=inputs, names=names)
                 for name, root in (("before", before), ("after", after))]  # fmt: skip
    measured: dict[str, tuple[Measured, Measured]] = {}
    began = time.monotonic()
    for name, row in rows.items():
        with ThreadPoolExecutor(2) as threads:
            first, second = threads.map(lambda checkout, row=row: measure(row, checkout, checkouts[0]), checkouts)
        measured[name] = first, second
        print(f"{name}: {verdict(first, second)}", file=sys.stderr, flush=True)
    for number, checkout in enumerate(checkouts):
        values = {name: pair[number].values for name, pair in measured.items()}
        (out / f"{checkout.work.name}.json").write_text(json.dumps(values, indent=1, ensure_ascii=False))
    print(report(f"{before} → {after}", measured, time.monotonic() - began))
    return int(any(problems_of(*pair) for pair in measured.values()))


def names_of(checkouts: Sequence[Path], out: Path) -> dict[str, str]:
    """What stands in texts for the places of both checkouts."""
    works = {str(out / name): "<work>" for name in ("before", "after")}
    roots = {str(root): "<checkout>" for root in checkouts}
    pythons = {str(interpreter_of(root)): "<python>" for root in checkouts}
    return {**roots, **pythons, **works, str(out / "inputs"): "<inputs>"}


def measure(row: Row, checkout: Checkout, before: Checkout) -> Measured:
    """Measure a row; whatever goes wrong is its result, so that the other rows are still measured."""
    began = time.monotonic()
    try:
        values, problem = row.measure(checkout, before), ""
    except Exception as error:
        values, problem = {}, f"{type(error).__name__}: {error}"
    return Measured(values=values, seconds=time.monotonic() - began, problem=problem)


def problems_of(before: Measured, after: Measured) -> list[str]:
    """Every difference, as one line each."""
    broken = [f"{name} broke: {side.problem}" for name, side in (("before", before), ("after", after)) if side.problem]
    if broken:
        return [" ".join(line.split())[: 4 * SHOWN] for line in broken]
    names = dict.fromkeys([*before.values, *after.values])
    found = [name for name in names if before.values.get(name) != after.values.get(name)]
    return [difference(name, before.values.get(name), after.values.get(name)) for name in found]


def difference(name: str, before: str | None, after: str | None) -> str:
    """Where two values first differ."""
    if before is None or after is None:
        return f"{name}: only {'after' if before is None else 'before'}"
    pairs = zip_longest(before.splitlines(), after.splitlines(), fillvalue="")
    one, other = next((pair for pair in pairs if pair[0] != pair[1]), (before, after))
    if (short := HASH.sub(r"\1…", one)) != (other_short := HASH.sub(r"\1…", other)):
        one, other = short, other_short
    equal = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
    start = max(0, equal - SHOWN // 2)
    return f"{name}: {one[start : start + SHOWN]!r} → {other[start : start + SHOWN]!r}"


def verdict(before: Measured, after: Measured) -> str:
    """A row's result in a few words."""
    problems = problems_of(before, after)
    if not problems:
        return f"equal ({len(before.values)})"
    return f"DIFFERS ({len(problems)} of {max(len(before.values), len(after.values))}): {problems[0]}"


def report(what: str, measured: dict[str, tuple[Measured, Measured]], seconds: float) -> str:
    """The table, and below it the differences."""
    lines = [
        f"{what}, {seconds / 60:.1f} min",
        "",
        "| what | result | before | after |",
        "|---|---|---:|---:|",
    ]
    for name, pair in measured.items():
        result = verdict(*pair).replace("|", "\\|")
        lines.append(f"| {name} | {result} | {pair[0].seconds:.0f} s | {pair[1].seconds:.0f} s |")
    for name, pair in measured.items():
        problems = problems_of(*pair)
        if len(problems) > 1:
            more = len(problems) - LISTED
            lines += ["", f"{name}:", *(f"- {problem}" for problem in problems[:LISTED])]
            lines += [f"- and {more} more"] if more > 0 else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
