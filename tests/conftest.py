"""Shape annotations of the method are checked in every test; tests leave the cores to each other.

`--no-processes` (`make quick`): a test that starts a process, Ray or ranks without its mark fails.
"""

import os
import signal
import sys
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

import pytest
from jaxtyping import install_import_hook

os.environ.setdefault("OMP_NUM_THREADS", "1")
install_import_hook("train.r2o", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

# Tests press Ctrl-C on their children, which inherit what a shell that started us in the background had ignored.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

STARTS_A_PROCESS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}  # audit events
in_a_test: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-processes", action="store_true", help="fail every test that starts a process")


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--no-processes"):
        return
    sys.addaudithook(_refuse)
    start = BaseProcess.start

    def started(process: BaseProcess) -> None:
        _refuse("subprocess.Popen", ())  # a spawned process of multiprocessing raises no event of its own
        start(process)

    BaseProcess.start = started  # type: ignore[method-assign]


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if in_a_test and event in STARTS_A_PROCESS:
        raise RuntimeError(f"{in_a_test[-1]} starts a process ({event}); give it @pytest.mark.processes")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    in_a_test.append(item.nodeid)
    try:
        return (yield)
    finally:
        in_a_test.pop()
