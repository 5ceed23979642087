"""Ranks whose settings, code or shards differ end before the first step, and say which differs in what."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.errors import AgreedError
from tests.train.conftest import SMALL_RUN
from train.config.pretrain import PretrainSettings
from train.distributed.world import World
from train.engine import same_job
from train.engine.job import Job, check_job
from train.engine.same_job import code_digest, disagreement, identity_of, require_same_job

ROOT = Path(__file__).parents[3]
SMALL: dict[str, Any] = {
    **SMALL_RUN,
    "run": {"log_every_steps": 1, "panel_images": 1, "probe_every_epochs": None},
}


def job_of(shards: Path, folder: Path, /, **changes: Any) -> Job:
    nested = {
        name: {**SMALL.get(name, {}), **value} if isinstance(value, dict) else value for name, value in changes.items()
    }
    settings = PretrainSettings.model_validate({**SMALL, **nested})
    return check_job(settings, shards=str(shards), run=folder, num_ranks=2, node_ranks=range(2))


def told(ours: Job, *others: Job) -> str:
    return disagreement([identity_of(job) for job in (ours, *others)])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"seed": 1}, "pretrain.seed: 0 → 1"),
        ({"optim": {"base_lr": 0.4}}, "pretrain.optim.base_lr: 0.3 → 0.4"),
        ({"run": {"log_every_steps": 2}}, "pretrain.run.log_every_steps: 1 → 2"),
        ({"run": {"panels_every_epochs": 2}}, "pretrain.run.panels_every_epochs: 10 → 2"),
        ({"run": {"probe_every_epochs": 1}}, "pretrain.run.probe_every_epochs: None → 1"),
        ({"data": {"on_damage": "skip"}}, "pretrain.data.on_damage: fail → skip"),
        (
            {"seed": 3, "epochs": 2},
            "batches.steps: 4 → 8; pretrain.epochs: 1 → 2; pretrain.seed: 0 → 3",
        ),
    ],
)
def test_what_decides_weights_or_collectives_is_compared(
    shards: Path, tmp_path: Path, changes: dict[str, Any], expected: str
) -> None:
    ours, theirs = job_of(shards, tmp_path / "run"), job_of(shards, tmp_path / "run", **changes)
    assert told(ours, ours, ours) == ""
    assert told(ours, theirs) == f"rank 1 differs from rank 0: {expected}"
    assert told(ours, ours, theirs, theirs) == f"ranks 2, 3 differ from rank 0: {expected}"


def test_what_describes_a_machine_is_not(shards: Path, tmp_path: Path) -> None:
    of_the_node = {
        "cache": str(tmp_path / "cache"), "cache_gb": 7, "num_workers": 2, "prefetch_batches": 5, "retries": 9,
        "verify": False, "recheck_days": None,
    }  # fmt: skip
    copied = Path(shutil.copytree(shards, tmp_path / "copied"))
    theirs = job_of(copied, tmp_path / "other", data=of_the_node)
    assert told(job_of(shards, tmp_path / "run"), theirs) == ""


@pytest.mark.parametrize(("member", "named"), [("sha256", "content"), ("fingerprint", "fingerprint")])
def test_other_shards_are_named(shards: Path, tmp_path: Path, member: str, named: str) -> None:
    copied, manifest = Path(shutil.copytree(shards, tmp_path / "copied")), Manifest.read(shards)
    if member == "sha256":
        first, *rest = manifest.shards
        changes: dict[str, Any] = {"shards": (first.model_copy(update={"sha256": "0" * 64}), *rest)}
    else:
        changes = {"fingerprint": "0" * 64}
    (copied / "manifest.json").write_bytes(manifest.model_copy(update=changes).encode())
    line = told(job_of(shards, tmp_path / "run"), job_of(copied, tmp_path / "run"))
    assert line.startswith(f"rank 1 differs from rank 0: shards.{named}: ")
    assert len(line.split("; ")) == 1


def test_other_code_is_named(tmp_path: Path) -> None:
    for name in ("pipeline/a.py", "train/b.py", "train/deep/c.py", "tests/d.py"):
        (tmp_path / "one" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one" / name).write_text("x = 1\n")
    (tmp_path / "one" / "train" / "b.pyc").write_text("compiled")
    digests = {code_digest(tmp_path / "one")}
    for number, (name, text) in enumerate(
        [("train/deep/c.py", "x = 2\n"), ("pipeline/a.py", "x = 1"), ("train/e.py", "x = 1\n")]
    ):
        other = Path(shutil.copytree(tmp_path / "one", tmp_path / f"{number}"))
        (other / name).write_text(text)
        digests.add(code_digest(other))
    assert len(digests) == 4
    other = Path(shutil.copytree(tmp_path / "one", tmp_path / "same"))
    (other / "tests" / "d.py").write_text("x = 2\n")
    assert code_digest(other) in digests
    facts = {"code": "aaaa", "versions": {"torch": "2.1"}}
    assert disagreement([facts, {**facts, "code": "bbbb"}]) == "rank 1 differs from rank 0: code: aaaa → bbbb"


def test_many_ranks_and_keys_stay_one_short_line() -> None:
    facts = [{"a": {str(key): 0 for key in range(9)}}, *[{"a": {str(key): 1 for key in range(9)}}] * 20]
    assert disagreement(facts) == (
        "ranks 1, 2, 3, 4, 5, 6, 7, 8, … (20) differ from rank 0: a.0: 0 → 1; a.1: 0 → 1; a.2: 0 → 1; a.3: 0 → 1; "
        "a.4: 0 → 1; a.5: 0 → 1; …"
    )


def test_every_rank_raises_the_same(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = job_of(shards, tmp_path / "run"), job_of(shards, tmp_path / "run", seed=1)
    texts: list[str] = []
    monkeypatch.setattr(same_job, "texts_of_all", lambda text, world: texts.append(text) or texts)
    require_same_job(ours, World(0, 2, None))  # type: ignore[arg-type]
    with pytest.raises(AgreedError, match=r"^rank 1 differs from rank 0: pretrain\.seed: 0 → 1; start all ranks with"):
        require_same_job(theirs, World(1, 2, None))  # type: ignore[arg-type]


@pytest.mark.processes
@pytest.mark.parametrize("other", ["seed", "shards"])
def test_two_ranks_that_differ_end_before_the_first_step(shards: Path, tmp_path: Path, other: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"pretrain": SMALL}))
    copied = Path(shutil.copytree(shards, tmp_path / "copied"))
    first, *rest = Manifest.read(shards).shards
    changed = Manifest.read(shards).model_copy(
        update={"shards": (first.model_copy(update={"index_sha256": "0" * 64}), *rest)}
    )
    (copied / "manifest.json").write_bytes(changed.encode())
    if other == "seed":  # of a RUN that is rank 0's, which rank 1 alone would find to be another's
        job = job_of(shards, tmp_path / "run")
        (tmp_path / "run").mkdir()
        job.folder.note_start(job.plan, torch.device("cpu"), step=0)
    former = sorted(path.name for path in (tmp_path / "run").glob("*"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in (0, 1):
        place = copied if rank and other == "shards" else shards
        command = [sys.executable, "-m", "train.pretrain", f"--shards={place}", f"--config={config}"]
        command += [f"--run={tmp_path / 'run'}", *(["--set=pretrain.seed=1"] if rank and other == "seed" else [])]
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": port}
        surroundings = {**{name: str(value) for name, value in names.items()}, "MASTER_ADDR": "127.0.0.1"}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **surroundings}
        processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], errors
    named = "pretrain.seed: 0 → 1;" if other == "seed" else "shards.content: "
    (line,) = errors[0].splitlines()
    assert line.startswith(f"r2o: error: rank 1 differs from rank 0: {named}")
    assert errors[1] == ""
    assert sorted(path.name for path in (tmp_path / "run").glob("*")) == former
