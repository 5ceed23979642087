"""torchrun, but a failing rank's own message is the last one, and its exit code is torchrun's.

`python -m pipeline.launchers.torchrun` takes torchrun's arguments. What torchrun prints about a rank that has
already said what is wrong is left out; a rank that could not say it (killed, crashed) gets one line.
"""

from __future__ import annotations

import logging
import runpy
import signal
import sys
from collections.abc import Sequence

from pipeline.artifacts.errors import EXIT_INPUT_ERROR, EXIT_INTERRUPTED


def main(argv: Sequence[str]) -> int:
    """Run torchrun in this process; gives the exit code of the first rank that failed, or 0."""
    logging.disable(logging.ERROR)  # the agent's own account of the failure; ranks are other processes
    sys.argv = ["torchrun", *argv]
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    except Exception as error:
        if hasattr(error, "get_first_failure"):  # ChildFailedError
            rank, failure = error.get_first_failure()
            return _report(rank, failure.exitcode)
        if hasattr(error, "sigval"):  # SignalException: we were told to stop, and the ranks with us
            return 128 + int(error.sigval)
        raise
    return 0


def _report(rank: int, code: int) -> int:
    if code < 0:
        hint = "; is there enough memory?" if -code == signal.SIGKILL else ""
        print(f"r2o: rank {rank} was ended by {signal.Signals(-code).name}{hint}", file=sys.stderr)
        return 128 - code
    if code not in (EXIT_INPUT_ERROR, EXIT_INTERRUPTED):
        print(f"r2o: rank {rank} failed with exit code {code}; its message is above", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
