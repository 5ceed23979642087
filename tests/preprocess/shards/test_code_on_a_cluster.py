"""A cluster's workers run the code of the driver, and of what `ray job submit` ships."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.preprocess.shards.damage_jobs import REPOSITORY, arguments, command, contents, samples, undisturbed


@pytest.mark.slow
def test_a_cluster_gets_our_code_and_what_the_user_names(images, tmp_path):
    """The driver's checkout is a copy in which the json member has another name: the workers must run that."""
    from ray.cluster_utils import Cluster

    copy = tmp_path / "checkout"
    for package in ("pipeline", "preprocess"):
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    sample = copy / "pipeline" / "artifacts" / "sample.py"
    sample.write_text(sample.read_text().replace('META_MEMBER = "json"', 'META_MEMBER = "meta"'))
    (tmp_path / "env.yaml").write_text(yaml.safe_dump({"env_vars": {"TMPDIR": str(tmp_path)}}))
    given = [*arguments(images, tmp_path / "s"), f"--runtime-env={tmp_path / 'env.yaml'}"]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 * 2**20})
    try:
        done = subprocess.run(
            command(*given), cwd=copy, env=os.environ | {"RAY_ADDRESS": cluster.address}, capture_output=True, text=True
        )
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stderr
    assert {name.partition(".")[2] for name in samples(tmp_path / "s")} == {"jpg", "superpixels.png", "meta"}


def submitted(given: list[str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """What came of a command of Ray's job server, asked again until it has an agent."""
    deadline = time.monotonic() + seconds
    while True:
        done = subprocess.run(given, capture_output=True, text=True, timeout=300)
        if "No available agent" not in done.stderr + done.stdout or time.monotonic() > deadline:
            return done
        time.sleep(2)


@pytest.mark.slow
def test_ray_job_submit(images, tmp_path):
    """With Ray's own command, which ships the working folder."""
    from ray.cluster_utils import Cluster

    copy = tmp_path / "checkout"
    for package in ("pipeline", "preprocess"):
        shutil.copytree(REPOSITORY / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    head = {"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": True, "dashboard_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        address = f"http://{cluster.head_node.webui_url}"
        submit = [shutil.which("ray", path=str(Path(sys.executable).parent)), "job", "submit", f"--address={address}"]
        submit += [f"--working-dir={copy}", "--", sys.executable, "-m", "preprocess.make_shards"]
        done = subprocess.run(
            [*submit, *arguments(images, tmp_path / "s")], capture_output=True, text=True, timeout=300
        )
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    assert contents(tmp_path / "s") == undisturbed(images, tmp_path / "expected")
