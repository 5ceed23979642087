"""Who this process is: srun's variables, torchrun's, and which GPU."""

import os
import socket

import pytest

from pipeline.foundation.errors import InputError
from train.distributed.environment import adopt_ranks, local_gpu, node_ranks
from train.distributed.world import world_from_environment

SRUN = {
    "SLURM_PROCID": "13", "SLURM_LOCALID": "5", "SLURM_NODEID": "1", "SLURM_STEP_NUM_TASKS": "28",
    "SLURM_STEP_TASKS_PER_NODE": "8(x3),4", "SLURM_STEP_NODELIST": "gpu-[07-09,12],big", "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "2",
}  # fmt: skip
TORCHRUNS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def adopted(monkeypatch: pytest.MonkeyPatch, **given: str) -> dict[str, str]:
    """torchrun's variables, as `adopt_ranks` leaves them."""
    for name in (*SRUN, *TORCHRUNS):
        monkeypatch.setenv(name, "")  # so that what `adopt_ranks` sets is taken away again
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    adopt_ranks()
    return {name: os.environ[name] for name in TORCHRUNS if name in os.environ}


def test_sruns_variables_tell_the_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    found = adopted(monkeypatch, **SRUN)
    assert found == {
        "RANK": "13", "WORLD_SIZE": "28", "LOCAL_RANK": "5", "LOCAL_WORLD_SIZE": "8", "MASTER_ADDR": "gpu-07",
        "MASTER_PORT": str(20_000 + (123456 + 2 * 97) % 10_000),
    }  # fmt: skip
    assert node_ranks() == range(8, 16)
    assert adopted(monkeypatch, **{**SRUN, "SLURM_NODEID": "3"})["LOCAL_WORLD_SIZE"] == "4"
    assert adopted(monkeypatch, **{**SRUN, "SLURM_STEP_NODELIST": "r[1-2]n[03,04],x"})["MASTER_ADDR"] == "r1n03"
    assert adopted(monkeypatch, **SRUN, MASTER_ADDR="10.0.0.1")["MASTER_ADDR"] == "10.0.0.1"


def test_torchruns_variables_win_and_a_batch_script_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    assert adopted(monkeypatch, **SRUN, RANK="3", WORLD_SIZE="4") == {"RANK": "3", "WORLD_SIZE": "4"}
    assert adopted(monkeypatch, SLURM_PROCID="0", SLURM_NTASKS="28", SLURM_JOB_ID="1") == {}
    assert adopted(monkeypatch, **{**SRUN, "SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_half_an_environment_of_srun_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    without = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_NODELIST"}
    with pytest.raises(InputError, match="SLURM_STEP_NODELIST"):
        adopted(monkeypatch, **without)


def test_srun_shows_each_task_its_own_gpu_or_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    adopted(monkeypatch, **SRUN)
    assert local_gpu(8) == 5
    assert local_gpu(1) == 0
    adopted(monkeypatch, RANK="5", WORLD_SIZE="8", LOCAL_RANK="5", LOCAL_WORLD_SIZE="8")
    assert local_gpu(1) == 5  # too many processes for one GPU: whoever asks finds that out


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc', which is no number"),
        ({"WORLD_SIZE": "2", "RANK": ""}, "RANK is '', which is no number"),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1', which is no number"),
        ({"WORLD_SIZE": "9" * 5000}, "which is no number"),
        ({"LOCAL_WORLD_SIZE": "x"}, "LOCAL_WORLD_SIZE is 'x', which is no number"),
        ({"LOCAL_RANK": "1.0"}, r"LOCAL_RANK is '1\.0', which is no number"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "abc"}, "MASTER_PORT is 'abc', which is no number"),
        ({"WORLD_SIZE": "2", "RANK": "5"}, "RANK is 5, but there are 2 by WORLD_SIZE"),
        ({"RANK": "1"}, "RANK is 1, but there are 1 by WORLD_SIZE"),  # left over from another job
        ({"SLURM_STEP_NUM_TASKS": "abc"}, "srun's environment does not tell the ranks"),
        ({**SRUN, "SLURM_PROCID": "x"}, "RANK is 'x', which is no number"),
    ],
)
def test_what_names_no_rank_is_one_line(given: dict[str, str], complaint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=complaint):
        adopted(monkeypatch, **given)


@pytest.mark.parametrize("name", ["RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_ranks_that_do_not_know_where_to_meet_are_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    adopted(monkeypatch, **{other: value for other, value in whole.items() if other != name})
    with pytest.raises(InputError, match=f"WORLD_SIZE is 2, but {name} is not set"), world_from_environment():
        pass


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_place_where_ranks_cannot_meet_is_one_line(rank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        address = "localhost" if rank == "0" else "nohost.invalid"
        port = str(taken.getsockname()[1])
        adopted(monkeypatch, RANK=rank, WORLD_SIZE="2", MASTER_ADDR=address, MASTER_PORT=port)
        with (
            pytest.raises(InputError, match=f"rank {rank} cannot meet the others at {address}:{port} \\(The "),
            world_from_environment(timeout_minutes=0.01),
        ):
            pass
