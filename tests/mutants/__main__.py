"""`make mutants`: do the quick tests see a small fault in the code? Each mutant is tried in a process of its own.

One process collects the tests, and with them loads the code. It forks once a mutant. The child exchanges one function,
or one constant of a module. It runs the tests that mirror the file, then the others of their folder, until one fails.
Without a failure the mutant has survived.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FunctionType
from typing import NamedTuple

import pytest

from pipeline.foundation.files import write_atomic
from pipeline.foundation.progress import Progress
from tests.mutants.operators import Mutant, mutants_of, mutated

QUICK = "not processes and not long and not slow and not system and not gpu"
PATHS = (
    "train/r2o train/engine/lars.py train/engine/build.py train/engine/step.py train/evals/frozen/numerics "
    "train/evals/frozen/protocols train/evals/segmentation/metrics.py"
)
SECONDS, SECONDS_PER_SECOND = 15, 4  # a mutant may take so long, and so many times what the tests take without one


class Planned(NamedTuple):
    """A mutant of a file."""

    path: str
    mutant: Mutant


def main() -> None:
    """Try mutants until all are tried or the time is over; results as JSON, survivors printed."""
    options = _parsed()
    paths = [found for given in options.paths.split() for found in _python_files(given)]
    every = [Planned(path, mutant) for path in paths for mutant in mutants_of(Path(path).read_text(encoding="utf-8"))]
    planned = random.Random(options.seed).sample(every, len(every))[: options.number]
    if options.again:
        wanted = {(r["path"], r["before"], r["after"]) for r in _survivors(options.again)}
        planned = [one for one in every if (one.path, one.mutant.before, one.mutant.after) in wanted]
    tests = {path: options.tests.split() or _tests_of(path) for path in dict.fromkeys(one.path for one in planned)}
    trial = Trial(planned, tests, minutes=options.minutes, out=options.out)
    files = list(dict.fromkeys(name for names in tests.values() for name in names))
    code = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", QUICK, *files], plugins=[trial])
    if trial.in_child:
        sys.stdout.flush()
        os._exit(code)
    if not trial.results:
        sys.exit(f"no mutant was tried: pytest ended with {int(code)}")
    counts = dict(Counter(str(result["verdict"]) for result in trial.results))
    print(f"\n{len(trial.results)} of {len(every)} mutants, seed {options.seed}: {counts}; {options.out}")


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--paths", default=PATHS, help="files and folders, separated by spaces")
    parser.add_argument("--tests", default="", help="instead of those that mirror each file")
    parser.add_argument("--minutes", type=float, default=40)
    parser.add_argument("--number", type=int, help="at most so many")
    parser.add_argument("--seed", type=int, default=0, help="which come first")
    parser.add_argument("--again", type=Path, help="the survivors of these results, and no others")
    parser.add_argument("--out", type=Path, default=Path("runs/mutants.json"))
    return parser.parse_args()


def _survivors(path: Path) -> list[dict[str, str]]:
    return [result for result in json.loads(path.read_text(encoding="utf-8")) if result["verdict"] == "survived"]


def _python_files(path: str) -> list[str]:
    return [path] if path.endswith(".py") else sorted(str(found) for found in Path(path).glob("*.py"))


def _tests_of(path: str) -> list[str]:
    """Those that mirror a file first, then the others of their folder."""
    folder, stem = Path("tests") / Path(path).parent, Path(path).stem
    found = sorted(folder.glob("test_*.py"), key=lambda p: (p.stem != f"test_{stem}", p.stat().st_size))
    assert found, f"{folder} has no tests"
    return [str(p) for p in found]


class Trial:
    """A pytest plugin: in place of running the collected tests once, it forks for every mutant."""

    def __init__(self, planned: list[Planned], tests: dict[str, list[str]], *, minutes: float, out: Path) -> None:
        self.planned, self.tests, self.seconds, self.out = planned, tests, minutes * 60, out
        self.results: list[dict[str, object]] = []
        self.in_child = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """The parent's loop over mutants; None in a child, where pytest goes on with the tests."""
        session.config.pluginmanager.getplugin("capturemanager").suspend(in_=True)
        functions = _loaded_functions()
        limits: dict[frozenset[str], float] = {}
        started, progress = time.monotonic(), Progress("mutants", len(self.planned), "mutants")
        for one in self.planned:
            if time.monotonic() - started > self.seconds:
                break
            tests = frozenset(self.tests[one.path])
            if tests not in limits:
                began = time.monotonic()
                verdict = self._fork(session, one.path, None, functions, seconds=3600)
                if self.in_child:
                    return None
                if verdict != "survived":
                    sys.exit(f"tests fail without a mutant: {' '.join(self.tests[one.path])}")
                limits[tests] = SECONDS + SECONDS_PER_SECOND * (time.monotonic() - began)
            if one.mutant.scope and (_module_of(one.path), one.mutant.scope) not in functions:
                self._note(one, "not loaded")
                continue
            verdict = self._fork(session, one.path, one.mutant, functions, seconds=limits[tests])
            if self.in_child:
                return None
            self._note(one, verdict)
            progress.advance(1, f"{sum(r['verdict'] == 'survived' for r in self.results)} survived")
        return True

    def _note(self, one: Planned, verdict: str) -> None:
        line, before, after = one.mutant.line, one.mutant.before, one.mutant.after
        self.results.append({"path": one.path, "line": line, "verdict": verdict, "before": before, "after": after})
        if verdict == "survived":
            print(f"\n{one.path}:{line}\n- {before}\n+ {after}", flush=True)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.out, json.dumps(self.results, indent=1))

    def _fork(
        self, session: pytest.Session, path: str, mutant: Mutant | None, functions: Functions, *, seconds: float
    ) -> str:
        pid = os.fork()
        if pid == 0:
            self.in_child = True
            os.setsid()
            session.config.get_terminal_writer()._file = io.StringIO()
            names = self.tests[path]
            order = {str(Path(name).resolve()): number for number, name in enumerate(names)}
            session.items = sorted((i for i in session.items if str(i.path) in order), key=lambda i: order[str(i.path)])
            if mutant is not None:
                _put_in(path, mutant, functions)
            return ""
        return _verdict(pid, seconds)


def _verdict(pid: int, seconds: float) -> str:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.01)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "timed out"


Functions = dict[tuple[str, str], list[FunctionType]]


def _loaded_functions() -> Functions:
    """Every loaded function by module and the name in its code, also those that decorators hold."""
    found = Functions()
    for one in gc.get_objects():
        # checkers of shapes have module and name of what they check, but no file
        if type(one) is FunctionType and one.__code__.co_filename.endswith(".py"):
            found.setdefault((one.__module__, one.__code__.co_qualname), []).append(one)
    return found


def _module_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def _put_in(path: str, mutant: Mutant, functions: Functions) -> None:
    """Give the loaded module the mutant's function, or its constant."""
    source = mutated(Path(path).read_text(encoding="utf-8"), mutant.number)
    code = compile(source, path, "exec", dont_inherit=True)
    if not mutant.scope:
        _exchange_constants(path, code)
        return
    for one in functions[_module_of(path), mutant.scope]:
        one.__code__ = _code_of(code, mutant.scope)


def _code_of(code: CodeType, qualified_name: str) -> CodeType:
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_qualname == qualified_name:
                return inner
            if qualified_name.startswith(f"{inner.co_qualname}."):
                return _code_of(inner, qualified_name)
    raise LookupError(qualified_name)


def _exchange_constants(path: str, code: CodeType) -> None:
    """Run the mutated module aside; what it calls otherwise than before, every module that imported it calls so too."""
    old = sys.modules[_module_of(path)]
    new: dict[str, object] = {"__name__": f"{old.__name__}_mutated", "__file__": path}
    sys.modules[str(new["__name__"])] = old
    exec(code, new)
    for name, value in new.items():
        before = vars(old).get(name)
        if isinstance(value, int | float | str | tuple | dict | frozenset) and value != before and name[0] != "_":
            for module in list(sys.modules.values()):
                if vars(module).get(name) is before:
                    setattr(module, name, value)


if __name__ == "__main__":
    main()
