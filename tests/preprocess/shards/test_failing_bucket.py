"""Images and shards in an S3 store that fails now and then."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.preprocess.shards.damage_jobs import SLOW, arguments, contents, run, started, undisturbed, wait_for

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


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
