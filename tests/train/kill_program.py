"""Kills a run of two ranks at random instants, again and again, until it has ended for all that.

Started by test_survival.py: SHARDS CONFIG FOLDER KILLS SEED. Everything is imported once, and each attempt forks the
two ranks from here, so that an attempt costs a second or two. FOLDER/undisturbed is the run that nobody kills,
FOLDER/killed the other. Prints what was killed when, as JSON.
"""

import json
import os
import random
import signal
import socket
import sys
import time
from pathlib import Path

import torch

from pipeline.artifacts.run_files import CHECKPOINTS_FOLDER
from pipeline.foundation.errors import exit_code_of
from train import pretrain
from train.engine.checkpoint import checkpoints
from train.run.log import read_log

RANKS = 2
PATIENCE = 240.0  # seconds for anything


def start(arguments: list[str]) -> list[int]:
    """Fork the ranks of a run; gives their process ids."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [fork(rank, port, arguments) for rank in range(RANKS)]


def fork(rank: int, port: int, arguments: list[str]) -> int:
    if child := os.fork():
        return child
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    torch.set_num_threads(1)
    os._exit(exit_code_of(lambda: pretrain.main(arguments)))


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def wait_until(happens, pids: list[int]) -> None:
    """Until it does, or a rank has ended."""
    deadline = time.monotonic() + PATIENCE
    while not happens() and not any(has_ended(pid) for pid in pids):
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.002)


def codes_of(pids: list[int]) -> list[int]:
    """Wait for all ranks; gives their exit codes."""
    wait_until(lambda: all(has_ended(pid) for pid in pids), [])
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def main() -> None:
    shards, config, folder, kills, seed = sys.argv[1:]
    rng, killed, record = random.Random(int(seed)), Path(folder) / "killed", []

    def begin(run: Path, *options: str) -> list[int]:
        return start([f"--shards={shards}", f"--run={run}", f"--config={config}", *options])

    began = time.monotonic()
    pids = begin(reference := Path(folder) / "undisturbed")
    wait_until(lambda: read_log(reference), pids)
    first = time.monotonic() - began
    assert codes_of(pids) == [0, 0]
    reach = first + 5 * (time.monotonic() - began - first) / len(read_log(reference))
    saves = killed / CHECKPOINTS_FOLDER
    while len(record) < int(kills):
        pids = begin(killed, f"--set=pretrain.data.num_workers={rng.choice([0, 1])}")
        how = rng.choices(["at any moment", "inside a save", "one rank"], [30, 15, 3])[0]
        if how == "inside a save":
            wait_until(lambda: any(saves.glob(".*.tmp")), pids)
            time.sleep(rng.uniform(0, 0.02))
        else:
            time.sleep(rng.uniform(0, reach))
        for pid in [rng.choice(pids)] if how == "one rank" else pids:
            os.kill(pid, signal.SIGKILL)
        died = time.monotonic()
        codes = codes_of(pids)
        if codes == [0, 0]:  # it was over before; the next is a run of its own
            killed.rename(killed.with_name(f"killed-{len(record)}"))
            continue
        record.append(
            {
                "how": how,
                "codes": codes,
                "seconds": round(time.monotonic() - died, 1),
                "step": int(checkpoints(killed)[-1].stem.split("-")[1]) if checkpoints(killed) else 0,
                "half_written": len(list(saves.glob(".*.tmp"))),
            }
        )
    assert codes_of(begin(killed)) == [0, 0]
    print(json.dumps(record))


if __name__ == "__main__":
    main()
