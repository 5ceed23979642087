"""No room for what the job writes."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest

from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images
from tests.preprocess.shards.damage_jobs import REPOSITORY, arguments, contents, run, undisturbed

pytestmark = pytest.mark.processes


def test_a_file_size_limit_stops_the_job_and_nothing_is_half_written(images, tmp_path):
    """As a full disk does, for one who is not root: no file may grow over 20 kB."""
    expected = undisturbed(images, tmp_path / "expected", images_per_shard=25)
    program = (
        "import resource, sys; from preprocess.config import ShardSettings\n"
        "from preprocess.shards.job import ShardJob\n"
        "from preprocess.shards.plan import Plan; from preprocess.shards.make_one import make_shard\n"
        "from preprocess.sources.list_images import list_images\n"
        "plan = Plan(list_images(sys.argv[1]), ShardSettings(images_per_shard=25, max_bad_fraction=0.5))\n"
        "job = ShardJob(sys.argv[2], plan); job.begin()\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "job.record(make_shard(plan.task(0), folder=job.folder))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(images), str(tmp_path / "s")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert "File too large" in done.stderr
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == [".job"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    job = ShardJob(tmp_path / "s", Plan(list_images(images), ShardSettings(images_per_shard=25, max_bad_fraction=0.5)))
    job.load()
    for number in job.pending():
        job.record(make_shard(job.plan.task(number), folder=job.folder))
    job.finish()
    assert contents(tmp_path / "s") == expected


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_one_line_and_resumable(images, tmp_path):
    """A tmpfs of 300 kB that is made larger afterwards."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        done = run(*arguments(images, disk / "s"))
        assert done.returncode == 2
        assert "No space left on device; put that right and run the same command again" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("r2o: error: ")
        assert not (disk / "s" / "manifest.json").exists()
        whole = {path.name for path in (disk / "s").glob("*.json")}
        assert not whole
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert run(*arguments(images, disk / "s")).returncode == 0
        assert contents(disk / "s") == undisturbed(images, tmp_path / "expected")
    finally:
        subprocess.run(["umount", str(disk)], check=True)
