"""The process that makes every shard: a child, so that an image at which native code dies costs that image alone.

The child is kept from shard to shard. It marks in shared memory which image it is at. When a decoder kills it, or one
image takes too much CPU time, that image is tried once more alone; if it kills again, it goes into quarantine and the
shard is made without it. A child that is killed from outside (SIGKILL, SIGTERM) says nothing about an image.

python -m preprocess.shards.worker CONNECTION MARK   (file descriptors; started by `Child` alone)
"""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import signal
import struct
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from multiprocessing.connection import Connection, Pipe
from typing import Any

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, folder_at
from preprocess.shards.folder.records import check_owner
from preprocess.shards.make_one import ShardResult, Watch, make_shard, pack_sample, read_source
from preprocess.shards.plan import ShardTask
from preprocess.sources.reader import Reader

MARK = struct.Struct("<q")
NO_IMAGE = -1  # what the mark holds while the child is at none
OWN_DOING = frozenset(
    {signal.SIGSEGV, signal.SIGFPE, signal.SIGBUS, signal.SIGILL, signal.SIGABRT, signal.SIGSYS, signal.SIGPROF}
)
MOST_DEATHS = 3  # in company, of an image that lives when tried alone
# One thread; and glibc keeps what it frees, where it would give it back after every image and fetch it again page by
# page: a fifth of the time of a shard.
ENVIRONMENT = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1") | {
    "MALLOC_TOP_PAD_": str(64 * 2**20)
}


class Died(Exception):
    """The child ended by signal `number` (or exit code −`number`) at image `image`, if it was at one."""

    def __init__(self, number: int, image: int | None) -> None:
        super().__init__(number, image)
        self.number, self.image = number, image

    @property
    def is_own_doing(self) -> bool:
        """Whether code that handled an image brought it about."""
        return self.image is not None and self.number in OWN_DOING

    def __str__(self) -> str:
        return signal.Signals(self.number).name if self.number > 0 else f"exit code {-self.number}"


class Child:
    """A process that makes shards, started when it is first needed and again after each death."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._mark: mmap.mmap | None = None

    def ask(self, verb: str, *arguments: object) -> Any:
        """Have the child do something; its answer.

        Raises:
            Died: it did not survive. InputError, OSError: as the child raised them. RuntimeError: a bug in it.
        """
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._connection is not None
        assert self._mark is not None
        try:
            self._connection.send((verb, arguments))
            kind, answer = self._connection.recv()
        except (EOFError, OSError):
            code = self._process.wait()
            image = MARK.unpack_from(self._mark)[0]
            self.close()
            raise Died(-code, None if image == NO_IMAGE else image) from None
        if kind == "answer":
            return answer
        raise {"InputError": InputError, "OSError": OSError}.get(kind, RuntimeError)(*answer)

    def close(self) -> None:
        """End the child; it ends by itself when its connection does."""
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._mark is not None:
            self._mark.close()
        self._process = self._connection = self._mark = None

    def _start(self) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(MARK.pack(NO_IMAGE))
            file.flush()
            self._mark = mmap.mmap(file.fileno(), MARK.size)
            self._connection, theirs = Pipe()
            with theirs:
                fds = (theirs.fileno(), file.fileno())
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "preprocess.shards.worker", *map(str, fds)],
                    pass_fds=fds,
                    env=os.environ | ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    stdin=subprocess.DEVNULL,
                )


@cache
def the_child() -> Child:
    """This process's own."""
    return Child()


def make_shard_isolated(task: ShardTask, *, folder: str, owned: bool = True, child: Child | None = None) -> ShardResult:
    """`make_shard` in the child, without the images that kill it.

    Args:
        folder: path or URL; a job works in it that must still be the task's when the shard is done, unless not `owned`.
    Raises:
        InputError: as `make_shard`; or the child was killed from outside again and again.
    """
    child = child or the_child()
    bad: dict[int, str] = {}
    deaths: Counter[int] = Counter()
    killed = 0
    while True:
        try:
            result: ShardResult = child.ask("make", task, folder, owned, bad)
            return result
        except Died as death:
            if death.image is not None and death.is_own_doing:
                deaths[death.image] += 1
                if (again := _tried_alone(child, task, death.image)) or deaths[death.image] >= MOST_DEATHS:
                    bad[death.image] = _reason(again or death, task)
                continue
            killed += 1
            if killed > task.settings.retries:
                raise InputError(_given_up(task, death, killed)) from None


def _tried_alone(child: Child, task: ShardTask, image: int) -> Died | None:
    """How the child died of this image alone; None if it did not, or was killed from outside."""
    try:
        child.ask("try", task, image)
    except Died as death:
        return death if death.is_own_doing else None
    return None


def _reason(death: Died, task: ShardTask) -> str:
    if death.number == signal.SIGPROF:
        return f"took more CPU time than max_cpu_seconds={task.settings.max_cpu_seconds:g}, also when tried again"
    return f"native code died of it ({death}), also when tried again"


def _given_up(task: ShardTask, death: Died, killed: int) -> str:
    at = f" at {task.sources[death.image].name!r}" if death.image is not None else ""
    return (
        f"{task.name}: the process that makes it was killed {killed} times ({death}{at}; out of memory?); lower "
        "shards.workers or shards.max_memory_mb and run the same command again to go on"
    )


class _Marking(Watch):
    """Marks in shared memory which image comes next, and limits its CPU time."""

    def __init__(self, mark: mmap.mmap, parent: int) -> None:
        self._mark, self._parent = mark, parent
        self.max_cpu_seconds = 0.0

    def image(self, number: int) -> None:
        """Mark it; end where nobody waits for this shard any more."""
        self._note(number, seconds=self.max_cpu_seconds)

    def images_done(self) -> None:
        """Mark that it is at none."""
        self._note(NO_IMAGE, seconds=0.0)

    def _note(self, number: int, *, seconds: float) -> None:
        if os.getppid() != self._parent:
            os._exit(1)
        MARK.pack_into(self._mark, 0, number)
        signal.setitimer(signal.ITIMER_PROF, seconds)


class _Owned(Watch):
    """Asks, before a shard is published, whether the job that wanted it still works there."""

    def __init__(self, inner: Watch, folder: Folder, fingerprint: str) -> None:
        self._inner, self._folder, self._fingerprint = inner, folder, fingerprint

    def image(self, number: int) -> None:
        """Passed on."""
        self._inner.image(number)

    def images_done(self) -> None:
        """Raises InputError where the job is gone."""
        self._inner.images_done()
        check_owner(self._folder, self._fingerprint)


def serve(connection: Connection, mark: mmap.mmap) -> None:
    """The child: answer requests until the connection ends."""
    watch = _Marking(mark, os.getppid())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's
    while True:
        try:
            verb, arguments = connection.recv()
        except (EOFError, OSError):
            return
        task: ShardTask = arguments[0]
        watch.max_cpu_seconds = task.settings.max_cpu_seconds
        _limit_memory(task.settings.max_memory_mb)
        try:
            answer = VERBS[verb](*arguments, watch=watch)
            connection.send(("answer", answer))
        except InputError as error:
            connection.send(("InputError", (str(error),)))
        except OSError as error:
            connection.send(("OSError", (error.errno, error.strerror or str(error), error.filename)))
        except Exception:
            connection.send(("RuntimeError", (traceback.format_exc(),)))
        watch.images_done()


def _make(task: ShardTask, place: str, owned: bool, bad: Mapping[int, str], *, watch: Watch) -> ShardResult:
    folder = folder_at(place)
    return make_shard(task, folder=folder, bad=bad, watch=_Owned(watch, folder, task.fingerprint) if owned else watch)


def _try(task: ShardTask, image: int, *, watch: Watch) -> None:
    source = task.sources[image]
    with Reader(task.root, task.kind, task.column) as reader, contextlib.suppress(Exception):
        watch.image(image)
        pack_sample(read_source(reader, source, task.settings), source, reader=reader, task=task)


VERBS: dict[str, Callable[..., ShardResult | None]] = {"make": _make, "try": _try}


def _limit_memory(mebibytes: int) -> None:
    """Bound this process's data; where the system cannot, the pixel limit is the bound."""
    with contextlib.suppress(ValueError, OSError):
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (mebibytes * 2**20, hard))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), mmap.mmap(int(sys.argv[2]), MARK.size))
