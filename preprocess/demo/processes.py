"""Scenes made by several processes. Each is asked for one after the other, and ends when its connection does.

So none outlives the process that started it, however that ended. Ctrl-C reaches that one alone.

python -m preprocess.demo.processes CONNECTION   (a file descriptor; started by `write_scenes` alone)
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from queue import SimpleQueue

from pipeline.foundation.errors import InputError
from preprocess.config import SceneSettings
from preprocess.demo.scene_files import PlannedScene, write_scene

WORTH_A_PROCESS = 64 * 128**2  # pixels: about a second of work, twice what a process takes to start
AHEAD = 2  # scenes that a process has been asked for, so that it never waits to be asked
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def processes_for(settings: SceneSettings, count: int) -> int:
    """How many processes `count` scenes are worth: at most one for each core that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, count * settings.size**2 // WORTH_A_PROCESS))


def write_scenes(
    folder: Path, settings: SceneSettings, planned: Sequence[PlannedScene], *, processes: int, done: Callable[[], None]
) -> None:
    """Write the files of all `planned` scenes below `folder`, the same ones whichever process makes which.

    Args:
        processes: 1 makes all of them in this one.
        done: called after each.
    Raises:
        OSError: as writing a file raised it, wherever it was. InputError: a process was killed.
    """
    if processes == 1:
        for one in planned:
            write_scene(folder, settings, one)
            done()
        return
    left = iter(planned)
    with ExitStack() as held:
        connections = [held.enter_context(_started()) for _ in range(processes)]
        try:
            for connection in connections:
                connection.send((folder, settings))
            asked = {connection: sum(_ask(connection, left) for _ in range(AHEAD)) for connection in connections}
            while busy := [connection for connection, count in asked.items() if count]:
                for ready in wait(busy):
                    assert isinstance(ready, Connection)
                    _require_made(ready.recv())
                    done()
                    asked[ready] += _ask(ready, left) - 1
        except (EOFError, ConnectionError):
            raise InputError(
                "a process that made scenes was killed, for memory or from outside; run the same command again"
            ) from None


@contextmanager
def _started() -> Iterator[Connection]:
    """The connection of a new process, which is killed in the end."""
    ours, theirs = Pipe()
    with ours, theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "preprocess.demo.processes", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
        try:
            theirs.close()
            yield ours
        finally:
            process.kill()
            process.wait()


def _ask(connection: Connection, left: Iterator[PlannedScene]) -> int:
    """Ask for the next scene, if one is left; how many were asked for."""
    for one in left:
        connection.send(one)
        return 1
    return 0


def _require_made(answer: tuple[str, tuple[object, ...]]) -> None:
    """Raises what a process raised."""
    kind, told = answer
    if kind == "OSError":
        raise OSError(*told)
    if kind == "bug":
        raise RuntimeError(*told)


def _serve(connection: Connection) -> None:
    """Make what is asked for, for as long as the process that asks is there."""
    folder, settings = connection.recv()
    asked: SimpleQueue[PlannedScene] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, asked), daemon=True).start()
    while True:
        answer: tuple[str, tuple[object, ...]] = "made", ()
        try:
            write_scene(folder, settings, asked.get())
        except OSError as error:
            answer = "OSError", (error.errno, error.strerror, error.filename)
        except Exception:
            answer = "bug", (traceback.format_exc(),)
        with suppress(OSError):  # nobody is there any more; the other thread ends this process
            connection.send(answer)


def _listen(connection: Connection, asked: SimpleQueue[PlannedScene]) -> None:
    """Note what is asked for. At the connection's end, end this process at once, so that it writes nothing more."""
    with suppress(EOFError, OSError):
        while True:
            asked.put(connection.recv())
    os._exit(0)


if __name__ == "__main__":
    with suppress(EOFError, ConnectionError):  # it ended before it had asked
        _serve(Connection(int(sys.argv[1])))
