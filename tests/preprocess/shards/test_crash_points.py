"""Die at every operation on files that a job makes, run the command again, and compare the bytes.

A forked child runs the job. It dies before or after its n-th operation, for every n until the job ends by itself.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import shutil
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import pytest

from pipeline.artifacts.manifest import MANIFEST_NAME
from preprocess.config import ShardSettings
from preprocess.shards import ray_driver
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import ShardResult, make_shard
from preprocess.shards.plan import Plan
from preprocess.shards.ray_driver import make_missing
from preprocess.sources.list_images import list_images

OPERATIONS = ("replace", "unlink", "rmdir", "mkdir", "fsync", "remove")  # of `os`
MOMENTS = ("before", "after")
ENDED, DIED, FAILED = 0, 9, 1  # exit codes of a child
CHILD_SECONDS = 60  # a child that hangs is killed by then
WHOLE, OTHER, MARKED, LACKING = "whole", "other", "marked", "lacking"  # the sets of the fixture `finished`

# The end of a second run that is no fault.
REFUSED = r"the second run raised InputError: .*: its shards are of another job \(images_per_shard: 2 → 4\); .*"


class Command(NamedTuple):
    """What a user may change from one run to the next."""

    overwrite: bool = False
    limit: float = 0.5
    per_shard: int = 4


PLAIN, OVERWRITE, STRICT = Command(), Command(overwrite=True), Command(limit=0.0)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A folder, the command that dies in it, the command that follows, and the set that must come out.

    `crash_points` is how many there are at least. `starts_as` names the set that the folder holds at first.
    The files `lost` are taken from it. `accepted` are other ends, and how many crash points may have each.
    """

    crash_points: int
    starts_as: str | None = None
    lost: tuple[str, ...] = ()
    first: Command = PLAIN
    again: Command = PLAIN
    becomes: str = WHOLE
    accepted: dict[str, int] = field(default_factory=dict)

    def prepare(self, folder: Path, finished: Path) -> None:
        """Put the folder into the state that the first command finds."""
        shutil.rmtree(folder, ignore_errors=True)
        if self.starts_as is not None:
            shutil.copytree(finished / self.starts_as, folder)
        for name in self.lost:
            (folder / name).unlink()


SCENARIOS = {
    "fresh": Scenario(crash_points=58),
    "overwrite another set": Scenario(crash_points=74, starts_as=OTHER, first=OVERWRITE, again=OVERWRITE),
    # Refused until the folder says whose it is from now on.
    "overwrite another set, then go on without --overwrite": Scenario(
        crash_points=74, starts_as=OTHER, first=OVERWRITE, accepted={REFUSED: 11}
    ),
    "complete a damaged set": Scenario(crash_points=54, starts_as=WHOLE, lost=("r2o-000000.tar", "r2o-000001.index")),
    "make a lost quarantine": Scenario(crash_points=54, starts_as=WHOLE, lost=("quarantine.jsonl",)),
    "take in an image that came back": Scenario(crash_points=50, starts_as=LACKING),
    "change the limit": Scenario(crash_points=4, starts_as=WHOLE, first=STRICT, again=STRICT, becomes=MARKED),
}


def in_this_process(job: ShardJob, pending: Sequence[int], environment: object) -> Iterator[ShardResult]:
    """In place of Ray: the tasks one after the other."""
    return (make_shard(job.task(number), folder=job.folder) for number in pending)


@pytest.fixture(autouse=True, scope="module")
def without_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_driver, "_results", in_this_process)
        yield


def work(images: Path, folder: Path, command: Command) -> None:
    """The driver itself, whose tasks run in this process."""
    settings = ShardSettings.model_validate(
        {
            "images_per_shard": command.per_shard,
            "max_bad_fraction": command.limit,
            "superpixels": {"backend": "grid", "size": 32},
        }
    )
    with list_images(images) as listing:
        make_missing(Plan(listing, settings), str(folder), images=str(images), overwrite=command.overwrite)


class CrashPoint(NamedTuple):
    """Where a job dies: at its n-th operation."""

    number: int
    moment: str


def every_crash_point() -> Iterator[CrashPoint]:
    """Before and after the first operation, the second, and so on without end."""
    return (CrashPoint(number, moment) for number in itertools.count(1) for moment in MOMENTS)


def die_at(point: CrashPoint, job: Callable[[], None]) -> str | None:
    """Run a job in a child that dies at the point. The operation there, or None if the job ended before."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        run_and_exit(point, job, writing)
    os.close(writing)
    with open(reading, encoding="utf-8") as pipe:
        told = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (ENDED, DIED), f"the job failed before its operation {point.number} (exit code {code}):\n{told}"
    return told if code == DIED else None


def run_and_exit(point: CrashPoint, job: Callable[[], None], pipe: int) -> NoReturn:
    """The child's life; nothing of pytest runs after it."""
    code = FAILED
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(CHILD_SECONDS)
        arm(point, pipe)
        job()
        code = ENDED
    except BaseException:
        os.write(pipe, traceback.format_exc().encode())
    finally:
        os._exit(code)


def arm(point: CrashPoint, pipe: int) -> None:
    """Let this process die at the point. It first tells the pipe at which operation."""
    numbers = itertools.count(1)

    def dying(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if next(numbers) != point.number:
                return operation(*arguments, **options)
            os.write(pipe, f"{point.moment} {name} of {file_of(name, arguments)}".encode())
            try:
                if point.moment == "after":
                    operation(*arguments, **options)
            finally:
                os._exit(DIED)

        return counted

    for name in OPERATIONS:
        setattr(os, name, dying(name, getattr(os, name)))


def file_of(name: str, arguments: tuple[Any, ...]) -> Path:
    """The path that an operation is about: of a replace the target, of an fsync the open file."""
    if name == "fsync":
        return Path(f"/proc/self/fd/{arguments[0]}").resolve()
    return Path(arguments[1] if name == "replace" else arguments[0])


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by name, and of every folder that it is one."""
    return {
        str(path.relative_to(folder)): "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
    }


def what_differs(found: dict[str, str], wanted: dict[str, str]) -> str:
    """What is wrong with a folder, in words; empty if nothing is."""
    wrong = {
        "missing": wanted.keys() - found.keys(),
        "left over": found.keys() - wanted.keys(),
        "other bytes": {name for name in wanted.keys() & found.keys() if found[name] != wanted[name]},
    }
    return "; ".join(f"{what}: {', '.join(sorted(names))}" for what, names in wrong.items() if names)


def misleads_readers(folder: Path, sets: list[Path]) -> bool:
    """Whether a manifest is there, but not all of one of these sets."""
    found = contents(folder).items()
    return (folder / MANIFEST_NAME).exists() and not any(found >= contents(one).items() for one in sets)


def fault_after(run: Callable[[], None], folder: Path, wanted: dict[str, str]) -> str:
    """What is wrong after the second run, in words; empty if nothing is."""
    try:
        run()
    except Exception as error:
        return f"the second run raised {type(error).__name__}: {error}"
    return what_differs(contents(folder), wanted)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory, make_folder: Callable[..., Path]) -> Path:
    """Seven images and one that is none."""
    root = make_folder(tmp_path_factory.mktemp("images"), 7, classes=("cat",))
    (root / "cat" / "bad.jpg").write_bytes(b"no")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, images: Path) -> Path:
    """Sets that no crash disturbed.

    `other` has smaller shards; `marked` has too many bad images; of `lacking` an image was away when it was made.
    """
    root = tmp_path_factory.mktemp("finished")
    work(images, root / WHOLE, PLAIN)
    work(images, root / OTHER, Command(per_shard=2))
    work(images, root / MARKED, STRICT)
    away = next((images / "cat").glob("image*"))
    with pytest.MonkeyPatch.context() as patch:

        def without_one(job: ShardJob, pending: Sequence[int], environment: object) -> Iterator[ShardResult]:
            away.rename(root / "away")
            yield from list(in_this_process(job, pending, environment))

        patch.setattr(ray_driver, "_results", without_one)
        work(images, root / LACKING, PLAIN)
    (root / "away").rename(away)
    return root


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # other tests leave threads
@pytest.mark.parametrize("name", SCENARIOS)
def test_after_any_crash_the_next_run_gives_the_same_bytes(
    name: str, images: Path, finished: Path, tmp_path: Path
) -> None:
    scenario, folder = SCENARIOS[name], tmp_path / "shards"
    wanted = contents(finished / scenario.becomes)
    readable = [finished / one for one in (scenario.starts_as, scenario.becomes) if one is not None]
    crash_points, ends, faults = 0, Counter[str](), list[str]()
    for point in every_crash_point():
        scenario.prepare(folder, finished)
        operation = die_at(point, lambda: work(images, folder, scenario.first))
        if operation is None:
            break
        crash_points += 1
        died = f"{name}: died {operation}"
        if not scenario.lost and misleads_readers(folder, readable):
            faults.append(f"{died}: a manifest without all of its set")
        if fault := fault_after(lambda: work(images, folder, scenario.again), folder, wanted):
            end = next((end for end in scenario.accepted if re.fullmatch(end, fault)), "")
            ends[end] += 1
            if ends[end] > scenario.accepted.get(end, 0):
                faults.append(f"{died}: {fault}")
    assert not faults, "\n".join(faults).replace(f"{tmp_path}/", "")
    assert crash_points >= scenario.crash_points, f"{name}: only {crash_points} crash points"
    assert not what_differs(contents(folder), wanted), f"{name}: without a crash another set comes out"
