"""The job while real damage is done to it: every time the result is, byte for byte, that of an undisturbed run."""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from preprocess.config import ShardSettings
from preprocess.shards.job import ShardJob
from preprocess.shards.make_one import make_shard
from preprocess.shards.plan import Plan
from preprocess.sources.list_images import list_images

REPOSITORY = Path(__file__).parents[3]
PER_SHARD = 4
SLOW = 3000  # iterations of SLIC: a quarter of a second an image, so that there is time to kill
KILLS = 30
MARK = "R2O_TEST_RUN"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def samples(folder: Path) -> dict[str, str]:
    """SHA-256 of every member of every tar, read by plain tarfile."""
    found = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            found.update({m.name: hashlib.sha256(tar.extractfile(m).read()).hexdigest() for m in tar})
    return found


def arguments(images: object, shards: object, **settings: object) -> list[str]:
    settings = {"images_per_shard": PER_SHARD, "max_bad_fraction": 0.5} | settings
    return [f"--images={images}", f"--shards={shards}"] + [
        f"--set=shards.{key}={value}" for key, value in settings.items()
    ]


def command(*given: str) -> list[str]:
    return [sys.executable, "-m", "preprocess.make_shards", *given]


def run(*given: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*given), cwd=REPOSITORY, env=os.environ | environment, capture_output=True, text=True, timeout=300
    )


def undisturbed(images: Path, folder: Path, **settings: object) -> dict[str, str]:
    """What the shards must be, made in this process, one after the other."""
    wanted = ShardSettings.model_validate({"images_per_shard": PER_SHARD, "max_bad_fraction": 0.5} | settings)
    job = ShardJob(folder, Plan(list_images(images), wanted))
    job.begin()
    for task in job.plan.tasks():
        job.record(make_shard(task, folder=job.folder))
    job.finish()
    return contents(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory, make_folder):
    root = make_folder(tmp_path_factory.mktemp("source") / "images", 99, classes=("cat", "dog"))
    (root / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    return root


@pytest.fixture(scope="module")
def slow_result(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("slow") / "shards"
    found = undisturbed(images, folder, superpixels={"iterations": SLOW})
    assert len(samples(folder)) == 99 * 3
    return found


@contextlib.contextmanager
def started(given: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A driver, and the end of all that it started."""
    mark = os.urandom(8).hex()
    with log.open("ab") as out:
        driver = subprocess.Popen(
            command(*given), cwd=REPOSITORY, env=os.environ | {MARK: mark} | environment, stdout=out, stderr=out
        )
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()
        end_all(mark)


def end_all(mark: str) -> None:
    """A killed driver's Ray lives on for a while; nothing of it shall disturb the next one's."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                process.kill()


@pytest.mark.slow
def test_thirty_kills_of_workers_and_drivers(images, slow_result, tmp_path):
    """Ray's workers, the processes in which they make shards, and drivers, at random instants."""
    seed = int(os.environ.get("R2O_KILL_SEED", time.time_ns() % 2**32))
    print(f"R2O_KILL_SEED={seed}")
    dice, shards, log = random.Random(seed), tmp_path / "s", tmp_path / "log"
    given = arguments(images, shards, **{"superpixels.iterations": SLOW, "retries": 100, "workers": 2})
    killed = {"driver": 0, "worker": 0, "process": 0}
    code: int | None = None
    while code is None:
        with started(given, log) as driver:
            code = disturbed(driver, dice, killed)
        if code == 0 and sum(killed.values()) < KILLS:  # done before its time: begin again
            shutil.rmtree(shards)
            code = None
    print(killed)
    assert code == 0, log.read_text()
    assert contents(shards) == slow_result


def disturbed(driver: subprocess.Popen[bytes], dice: random.Random, killed: dict[str, int]) -> int | None:
    """Kill until it is enough, from when the first shard is in the making; the exit code, None for a killed driver."""
    while not victim_of(driver, "process", dice):
        if (code := driver.poll()) is not None:
            return code
        time.sleep(0.05)
    while sum(killed.values()) < KILLS:
        time.sleep(dice.uniform(0.05, 1.0))
        if (code := driver.poll()) is not None:
            return code
        kind = dice.choices(["driver", "worker", "process"], [1, 3, 3])[0]
        if victim := victim_of(driver, kind, dice):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
                killed[kind] += 1
        if kind == "driver":
            driver.wait()
            return None
    return driver.wait(300)


def victim_of(driver: subprocess.Popen[bytes], kind: str, dice: random.Random) -> psutil.Process | None:
    """The driver, one of its Ray workers that has a task, or a process in which such a one makes a shard."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(driver.pid)
        if kind == "driver":
            return parent
        below = parent.children(recursive=True)
        found = {
            "worker": [p for p in below if p.cmdline()[:1] == ["ray::make_shard_isolated"]],
            "process": [p for p in below if "preprocess.shards.worker" in p.cmdline()],
        }[kind]
        return dice.choice(found) if found else None
    return None


@pytest.mark.slow
def test_a_node_lost_in_mid_job(images, slow_result, tmp_path):
    """Three nodes on this machine; one is killed. The same driver goes on, and nobody runs anything again."""
    from ray.cluster_utils import Cluster

    shards, log = tmp_path / "s", tmp_path / "log"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    try:
        others = [cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20) for _ in range(2)]
        given = arguments(images, shards, **{"superpixels.iterations": SLOW})
        with started(given, log, RAY_ADDRESS=cluster.address) as driver:
            wait_for(lambda: len(list((shards / ".job").glob("*.tar.json"))) >= 3, driver, log)
            cluster.remove_node(others[0], allow_graceful=False)
            assert driver.wait(300) == 0, log.read_text()
    finally:
        cluster.shutdown()
    assert contents(shards) == slow_result


def wait_for(condition: Callable[[], bool], driver: subprocess.Popen[bytes], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_makes_the_same_bytes(images, tmp_path, workers):
    expected = undisturbed(images, tmp_path / "expected")
    done = run(*arguments(images, tmp_path / "s", workers=workers))
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "s") == expected
    assert samples(tmp_path / "s") == samples(tmp_path / "expected")


@pytest.mark.slow
def test_two_drivers_at_once(images, slow_result, tmp_path):
    """One wins; the other says so and touches nothing."""
    shards = tmp_path / "s"
    given = arguments(images, shards, **{"superpixels.iterations": SLOW})
    logs = [tmp_path / "one", tmp_path / "two"]
    with started(given, logs[0]) as one, started(given, logs[1]) as two:
        codes = sorted((one.wait(300), two.wait(300)))
    assert codes == [0, 2]
    assert sorted("another job is making these shards" in log.read_text() for log in logs) == [False, True]
    assert contents(shards) == slow_result


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


class Faulty:
    """Moto's S3, of which every few requests fail as a store under load fails them."""

    def __init__(self, application: Callable[..., object], every: int) -> None:
        self.application, self.every, self.requests, self.failed = application, every, 0, 0
        self.lock = threading.Lock()

    def __call__(self, environ: dict[str, object], start: Callable[..., object]) -> object:
        with self.lock:
            self.requests += 1
            fails = self.every and self.requests % self.every == 0
            self.failed += bool(fails)
        if not fails:
            return self.application(environ, start)
        body = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
        start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]


@pytest.fixture
def s3(monkeypatch):
    """A server on loopback that fails every seventh request, and the environment in which clients find it."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    faulty = Faulty(server.DomainDispatcherApplication(server.create_backend_app), every=0)
    http = make_server("127.0.0.1", 0, faulty, threaded=True)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    environment = CREDENTIALS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{http.server_port}"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    yield faulty
    http.shutdown()
    thread.join()


@pytest.mark.slow
def test_images_and_shards_in_a_bucket_that_fails(images, tmp_path, s3):
    program = (
        "import fsspec, sys; fs = fsspec.filesystem('s3'); fs.mkdir('source'); fs.mkdir('made')\n"
        "fs.put(sys.argv[1], 'source/train', recursive=True)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(images)], check=True, timeout=120)
    s3.every = 7
    log, given = tmp_path / "log", arguments("s3://source/train", "s3://made/set")
    marker = "import fsspec; print(len(fsspec.filesystem('s3').glob('made/set/.job/*.tar.json')))"
    with started(given, log) as driver:
        wait_for(lambda: int(subprocess.check_output([sys.executable, "-c", marker])) >= 3, driver, log)
    s3_again = run(*given)
    assert s3_again.returncode == 0, s3_again.stderr
    assert "going on: " in s3_again.stderr
    assert s3.failed > 20
    s3.every = 0
    fetch = "import fsspec, sys; fsspec.filesystem('s3').get('made/set', sys.argv[1], recursive=True)"
    subprocess.run([sys.executable, "-c", fetch, str(tmp_path / "fetched")], check=True, timeout=120)
    assert contents(tmp_path / "fetched") == undisturbed(images, tmp_path / "expected")


@pytest.mark.slow
def test_two_drivers_at_once_in_a_bucket(images, tmp_path, s3):
    program = "import fsspec; fsspec.filesystem('s3').mkdir('second')"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    given, logs = (
        arguments(images, "s3://second/set", **{"superpixels.iterations": SLOW}),
        [tmp_path / "one", tmp_path / "two"],
    )
    with started(given, logs[0]) as one, started(given, logs[1]) as two:
        codes = sorted((one.wait(300), two.wait(300)))
    assert codes == [0, 2], [log.read_text() for log in logs]
    assert sorted("another job is making these shards" in log.read_text() for log in logs) == [False, True]


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
