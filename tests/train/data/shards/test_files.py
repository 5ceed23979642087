"""Where shards come from: verified before use, copied whole or not at all, within bounds, and never as programs."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from pipeline.artifacts.manifest import Manifest, ShardIndex
from pipeline.foundation.errors import InputError
from train.data.shards import files as files_module
from train.data.shards.files import ShardFiles


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R2O_CACHE", str(tmp_path / "marks"))
    monkeypatch.setattr(files_module, "FIRST_PAUSE", 0.001)
    return tmp_path / "marks"


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


@pytest.fixture
def remote(shards: Path) -> str:
    """The shards in a store that is no disk."""
    fs = fsspec.filesystem("memory")
    fs.rm("/set", recursive=True) if fs.exists("/set") else None
    for path in shards.iterdir():
        fs.pipe_file(f"/set/{path.name}", path.read_bytes())
    return "memory://set"


def files_of(place: Path | str, **options: object) -> ShardFiles:
    return ShardFiles(place, Manifest.read(place), **options)


def whole(files: ShardFiles, shard: int) -> bytes:
    return files.read(shard, 0, files.manifest.shards[shard].bytes)


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def counted(monkeypatch: pytest.MonkeyPatch, name: str) -> list[object]:
    calls: list[object] = []
    original: Callable[..., object] = getattr(files_module, name)
    monkeypatch.setattr(files_module, name, lambda *a: calls.append(a) or original(*a))
    return calls


def test_a_flipped_byte_is_found_on_first_use_unless_that_is_turned_off(copied: Path) -> None:
    path = copied / "r2o-000001.tar"
    flip_a_byte(path)
    assert len(whole(files_of(copied, verify=False), 1)) == path.stat().st_size
    with pytest.raises(InputError, match=r"r2o-000001.tar is not what the manifest names"):
        whole(files_of(copied), 1)
    assert len(whole(files_of(copied), 0)) > 0


def test_a_shard_is_hashed_once_for_all_processes_and_again_when_it_changes(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = counted(monkeypatch, "sha256_of_own")
    whole(files_of(copied), 0)
    whole(files_of(copied), 0)  # as another process: only the mark is shared
    assert len(hashed) == 1
    flip_a_byte(copied / "r2o-000000.tar")
    with pytest.raises(InputError, match="is not what the manifest names"):
        whole(files_of(copied), 0)


def test_without_a_place_for_marks_every_process_checks(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R2O_CACHE", "/proc/nowhere")
    hashed = counted(monkeypatch, "sha256_of_own")
    whole(files_of(copied), 0)
    whole(files_of(copied), 0)
    assert len(hashed) == 2


def test_remote_shards_are_read_through_a_bounded_cache(remote: str, shards: Path, tmp_path: Path) -> None:
    manifest = Manifest.read(shards)
    bound = sum(sorted(shard.bytes for shard in manifest.shards)[-2:])
    files = files_of(remote, cache=tmp_path / "disk", cache_bytes=bound)
    for _ in range(2):
        for number, shard in enumerate(manifest.shards):
            assert whole(files, number) == (shards / shard.name).read_bytes()
            held = sum(path.stat().st_size for path in files.cache.iterdir())
            assert held <= bound
    assert files.room == bound // max(shard.bytes for shard in manifest.shards)


def test_the_shard_used_longest_ago_gives_way(remote: str, tmp_path: Path) -> None:
    sizes = [shard.bytes for shard in Manifest.read(remote).shards]
    for number in (0, 1, 0, 2):
        files = files_of(remote, cache=tmp_path / "disk", cache_bytes=sum(sizes[:3]) - 1)
        whole(files, number)
    assert sorted(path.name for path in files.cache.glob("*.tar")) == ["r2o-000000.tar", "r2o-000002.tar"]


def test_a_folder_is_staged_to_another_disk(copied: Path, tmp_path: Path) -> None:
    files = files_of(copied, cache=tmp_path / "disk")
    before = whole(files, 3)
    assert (files.cache / "r2o-000003.tar").read_bytes() == before
    shutil.rmtree(copied)
    assert whole(files, 3) == before


def test_what_was_damaged_in_the_cache_is_fetched_again(remote: str, tmp_path: Path) -> None:
    files = files_of(remote, cache=tmp_path / "disk")
    good = whole(files, 0)
    path = files.cache / "r2o-000000.tar"
    for damage in (lambda: flip_a_byte(path), lambda: path.write_bytes(good[:-100]), lambda: path.write_bytes(b"")):
        damage()
        assert whole(files_of(remote, cache=tmp_path / "disk"), 0) == good


def test_a_source_that_stays_wrong_is_named_and_leaves_nothing(copied: Path, tmp_path: Path) -> None:
    flip_a_byte(copied / "r2o-000000.tar")
    files = files_of(copied, cache=tmp_path / "disk")
    with pytest.raises(InputError, match=r"r2o-000000.tar is not what the manifest names"):
        whole(files, 0)
    assert [path.name for path in files.cache.iterdir() if not path.name.endswith(".lock")] == []


def test_reads_are_retried_and_a_missing_file_is_not(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.foundation.remote_folder import RemoteFolder

    original, calls = RemoteFolder.read_range, []

    def unreliable(self: RemoteFolder, name: str, offset: int, size: int) -> bytes:
        calls.append(name)
        if len(calls) % 3:
            raise OSError(5, "slow down")
        return original(self, name, offset, size)

    monkeypatch.setattr(RemoteFolder, "read_range", unreliable)
    monkeypatch.setattr(files_module, "CHUNK", 10_000)
    files = files_of(remote, cache=tmp_path / "disk")
    assert hashlib.sha256(whole(files, 0)).hexdigest() == files.manifest.shards[0].sha256
    with pytest.raises(InputError, match=r"r2o-000001.tar cannot be read, tried 2 times: slow down"):
        whole(files_of(remote, cache=tmp_path / "other", retries=1), 1)
    fsspec.filesystem("memory").rm("/set/r2o-000002.tar")
    with pytest.raises(InputError, match=r"r2o-000002.tar is missing"):
        whole(files, 2)
    assert files.problems() == {2: "memory://set/r2o-000002.tar is missing; run `make shards` again to remake it"}


PROGRAM = """
import sys, time
from pipeline.artifacts.manifest import Manifest
from pipeline.foundation.folders import LocalFolder
from train.data.shards import files as files_module
files_module.CHUNK = 20_000
original = LocalFolder.read_range
def slow(self, name, offset, size):
    print(offset, flush=True)
    time.sleep(0.05)
    return original(self, name, offset, size)
LocalFolder.read_range = slow
from pathlib import Path
files = files_module.ShardFiles(sys.argv[1], Manifest.read(sys.argv[1]), cache=Path(sys.argv[2]))
files.read(0, 0, 10)
"""


@pytest.mark.processes
def test_a_process_killed_while_it_copies_leaves_nothing_that_is_taken_for_whole(copied: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(copied), str(tmp_path / "disk")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(2):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    files = files_of(copied, cache=tmp_path / "disk")
    assert not (files.cache / "r2o-000000.tar").exists()
    assert (files.cache / ".r2o-000000.tar.part").exists()
    assert whole(files, 0) == (copied / "r2o-000000.tar").read_bytes()
    assert not (files.cache / ".r2o-000000.tar.part").exists()


@pytest.mark.processes
def test_two_processes_copy_a_shard_once(copied: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(copied), str(tmp_path / "disk")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    read = [process.communicate(timeout=60)[0].split() for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert sorted(map(len, read))[0] == 0
    assert sorted(map(len, read))[1] == -(-Manifest.read(copied).shards[0].bytes // 20_000)


def test_shards_are_made_ready_ahead(remote: str, tmp_path: Path) -> None:
    import time

    files = files_of(remote, cache=tmp_path / "disk")
    files.fetch_ahead([4, 0])
    until = time.monotonic() + 20
    while len(list(files.cache.glob("*.tar"))) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert sorted(path.name for path in files.cache.glob("*.tar")) == ["r2o-000000.tar", "r2o-000004.tar"]


@pytest.mark.parametrize("name", ["../x.tar", "a/b.tar", "pipe:cat x.tar", "/etc/passwd", ".hidden.tar", "x.tar\n"])
def test_a_name_is_never_a_path_or_a_program(shards: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    content = json.loads((folder / "manifest.json").read_bytes())
    content["shards"][0]["name"] = name
    (folder / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"manifest\.json is damaged \(shards\.0\.name: "):
        Manifest.read(folder)


def test_a_fingerprint_is_never_the_cache_of_somebody_else(shards: Path, tmp_path: Path) -> None:
    """The cache's folder is called after the fingerprint, and what is in it gives way."""
    folder = Path(shutil.copytree(shards, tmp_path / "shards"))
    victim = tmp_path / "victim"
    content = json.loads((folder / "manifest.json").read_bytes())
    for given in (str(victim), "../victim", "../../" + "victim"):
        (folder / "manifest.json").write_text(json.dumps({**content, "fingerprint": given}))
        with pytest.raises(InputError, match=r"manifest\.json is damaged \(fingerprint: "):
            Manifest.read(folder)


def with_index(folder: Path, index: ShardIndex) -> Manifest:
    manifest = Manifest.read(folder)
    data = index.encode()
    (folder / "r2o-000000.index").write_bytes(data)
    first = manifest.shards[0].model_copy(update={"index_sha256": hashlib.sha256(data).hexdigest()})
    return manifest.model_copy(update={"shards": (first, *manifest.shards[1:])})


def test_an_index_is_compared_with_manifest_and_tar(copied: Path) -> None:
    good = ShardIndex.decode((copied / "r2o-000000.index").read_bytes())
    last = good.entries[-1]
    beyond = last.model_copy(update={"members": {**last.members, "jpg": (10**9, 10)}})
    manifest = with_index(copied, ShardIndex(entries=(*good.entries[:-1], beyond)))
    with pytest.raises(InputError, match=f"sample {last.key} lies outside of its tar"):
        ShardFiles(copied, manifest).entry(0, 0)
    manifest = with_index(copied, ShardIndex(entries=good.entries[:-1]))
    with pytest.raises(InputError, match=r"r2o-000000.index is not the index that the manifest names"):
        ShardFiles(copied, manifest).entry(0, 0)
    index = copied / "r2o-000001.index"
    index.write_bytes(index.read_bytes().replace(b'"key":"0000000', b'"key":"0000001'))
    with pytest.raises(InputError, match=r"r2o-000001.index is not the index that the manifest names"):
        files_of(copied).entry(1, 0)


@pytest.mark.processes
def test_it_travels_to_a_worker_and_through_a_fork(shards: Path) -> None:
    files = files_of(shards)
    expected = whole(files, 0)
    assert whole(pickle.loads(pickle.dumps(files)), 0) == expected
    files.fetch_ahead([1, 2])
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, bytes([whole(files, 0) == expected]))
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1) == b"\1"
    files.close()
