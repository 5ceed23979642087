"""Start the ranks of a job on this machine, each told who it is by torchrun's variables.

`python -m pipeline.launchers.ranks COUNT MODULE ARGUMENT…`. Several machines are torchrun's or srun's. On one, torchrun
would do as well, but for three things: a rank's own line stays the last one that is said, SIGUSR1 and SIGTERM reach the
ranks and leave them the time that they need, and the exit code is theirs.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from pipeline.foundation.exit_codes import EXIT_INPUT_ERROR, EXIT_INTERRUPTED, EXIT_REQUEUE, exit_code_of_signal
from pipeline.foundation.signals import STOP_SIGNALS

TOGETHER = (0, EXIT_REQUEUE, EXIT_INTERRUPTED)  # codes with which all ranks end, each in its time
POLL = 0.05  # seconds


def main(argv: Sequence[str]) -> int:
    """Run the ranks to their end; gives 0, or the exit code of the first that failed."""
    count, *program = int(argv[0]), *argv[1:]
    ranks = _Ranks()
    former = {s: signal.signal(s, ranks.forward) for s in STOP_SIGNALS if signal.getsignal(s) != signal.SIG_IGN}
    try:
        ranks.start(count, program)
        return ranks.wait()
    finally:
        ranks.kill()
        for number, handler in former.items():
            signal.signal(number, handler)


class _Ranks:
    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.told: list[int] = []  # signals that were passed on

    def start(self, count: int, program: Sequence[str]) -> None:
        port = _free_port()
        for rank in range(count):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = {**os.environ, **{name: str(value) for name, value in {**names, **address}.items()}}
            self.processes.append(subprocess.Popen([sys.executable, "-m", *program], env=environment))
        for number in [*self.told]:  # what came while they were being started
            self._send(number)

    def forward(self, number: int, frame: FrameType | None) -> None:
        """Signal handler."""
        self.told.append(number)
        self._send(number)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)  # nothing where it has ended

    def wait(self) -> int:
        """Until all have ended, or one has failed by itself."""
        while True:
            codes = [process.poll() for process in self.processes]
            failed = [(rank, code) for rank, code in enumerate(codes) if code is not None and code not in TOGETHER]
            if failed:
                self.kill()  # first, so that nothing is said after the cause
                return self._report(*failed[0])
            if None not in codes:
                return max(code for code in codes if code is not None)
            time.sleep(POLL)

    def _report(self, rank: int, code: int) -> int:
        if code < 0 and -code in self.told:  # before it could end in good order; nothing that was saved is lost
            return EXIT_INTERRUPTED if -code == signal.SIGINT else EXIT_REQUEUE
        if code < 0:
            hint = "; is there enough memory?" if -code == signal.SIGKILL else ""
            print(f"r2o: rank {rank} was ended by {signal.Signals(-code).name}{hint}", file=sys.stderr)
            return exit_code_of_signal(-code)
        if code != EXIT_INPUT_ERROR:
            print(f"r2o: rank {rank} failed with exit code {code}; its message is above", file=sys.stderr)
        return code

    def kill(self) -> None:
        """End those that are left: without the one that failed they cannot go on."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
