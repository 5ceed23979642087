"""The cache is ours alone: no link in it is followed, nothing foreign is removed, no folder of others is used."""

import fcntl
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.seal import sealed
from pipeline.foundation.errors import InputError
from train.config.pretrain import PretrainSettings
from train.data.shards import cache as cache_module
from train.data.shards.files import ShardFiles
from train.data.shards.open import describe_reading, open_shards

FIRST = "r2o-000000.tar"


@pytest.fixture(autouse=True)
def marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R2O_CACHE", str(tmp_path / "marks"))
    return tmp_path / "marks"


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def files_of(place: Path, **options: object) -> ShardFiles:
    return ShardFiles(place, Manifest.read(place), **options)


def whole(files: ShardFiles, shard: int) -> bytes:
    return files.read(shard, 0, files.manifest.shards[shard].bytes)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def described(shards: Path, **data: object) -> str:
    settings = PretrainSettings.model_validate({"global_batch_size": 32, "data": {"shuffle_lanes": 2, **data}})
    reader = open_shards(str(shards), Manifest.read(shards), settings.data)
    return describe_reading(reader, settings, node_ranks=range(1), num_ranks=1)


@pytest.mark.parametrize("name", [FIRST, f".{FIRST}.part", f".{FIRST}.lock", ".room.lock"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_the_cache_is_refused_and_what_it_leads_to_stays(
    copied: Path, tmp_path: Path, name: str, dangling: bool
) -> None:
    victim = tmp_path / "thesis"
    if not dangling:
        victim.write_bytes((copied / FIRST).read_bytes())
    files = files_of(copied, cache=tmp_path / "disk")
    files.require_own_folders()
    (files.cache / name).symlink_to(victim)
    with pytest.raises(InputError, match=rf"{name}: a link, and r2o follows none there"):
        whole(files, 0)
    assert (files.cache / name).is_symlink()
    assert not victim.exists() if dangling else victim.read_bytes() == (copied / FIRST).read_bytes()


@pytest.mark.parametrize("name", [FIRST, f".{FIRST}.lock"])
def test_a_pipe_or_a_folder_in_the_cache_is_refused(copied: Path, tmp_path: Path, name: str) -> None:
    files = files_of(copied, cache=tmp_path / "disk", retries=0)
    files.require_own_folders()
    os.mkfifo(files.cache / name)
    with pytest.raises(InputError, match=rf"{name}: no plain file; move it away"):
        whole(files, 0)
    (files.cache / name).unlink()
    (files.cache / name).mkdir()
    with pytest.raises(InputError, match=r"no plain file; move it away|Is a directory"):
        whole(files, 0)


def test_a_mark_that_is_a_link_is_refused_and_nothing_is_written_through_it(
    copied: Path, marks: Path, tmp_path: Path
) -> None:
    whole(files_of(copied), 0)
    (mark,) = (marks / "verified").iterdir()
    mark.unlink()
    (tmp_path / "elsewhere").write_text("mine")
    mark.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"a link, and r2o follows none there"):
        whole(files_of(copied), 0)
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_a_shard_that_is_a_link_is_refused_where_it_lies(copied: Path, tmp_path: Path) -> None:
    (copied / FIRST).rename(tmp_path / "elsewhere.tar")
    (copied / FIRST).symlink_to(tmp_path / "elsewhere.tar")
    for verify in (True, False):
        with pytest.raises(InputError, match=rf"{FIRST}: a link, and r2o follows none there"):
            whole(files_of(copied, verify=verify), 0)


def test_what_is_made_is_for_this_user_alone(copied: Path, marks: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        files = files_of(copied, cache=tmp_path / "scratch" / "disk")
        whole(files, 0)
    finally:
        os.umask(old)
    made = (tmp_path / "scratch", tmp_path / "scratch" / "disk", files.cache, marks, marks / "verified")
    assert [mode_of(folder) for folder in made] == [0o700] * 5


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
@pytest.mark.parametrize("which", ["given", "of the set"])
def test_a_cache_that_others_may_write_is_refused_before_a_run_and_in_it(
    copied: Path, tmp_path: Path, which: str, mode: int
) -> None:
    cache = tmp_path / "disk"
    whole(files_of(copied, cache=cache), 0)
    unsafe = cache if which == "given" else files_of(copied, cache=cache).cache
    unsafe.chmod(mode)
    remedy = f"give a folder of your own, as {cache}/r2o" if which == "given" else "move it away"
    expected = f"{unsafe}: other users may write to this folder of the shard cache; `chmod go-w {unsafe}`, or {remedy}"
    with pytest.raises(InputError) as before:
        described(copied, cache=str(cache))
    with pytest.raises(InputError) as within:
        whole(files_of(copied, cache=cache), 0)
    assert str(before.value) == str(within.value) == expected
    unsafe.chmod(0o755)
    assert "through" in described(copied, cache=str(cache))


@pytest.mark.parametrize("which", ["", "verified"])
def test_marks_that_others_may_write_are_not_believed(copied: Path, marks: Path, which: str) -> None:
    whole(files_of(copied), 0)
    (marks / which).chmod(0o777)
    with pytest.raises(InputError, match="other users may write to this folder of the shard cache"):
        described(copied)
    with pytest.raises(InputError, match="other users may write to this folder of the shard cache"):
        whole(files_of(copied), 0)
    assert len(whole(files_of(copied, verify=False), 0)) == (copied / FIRST).stat().st_size  # no mark is needed
    assert "a node reads" in described(copied, verify=False)


@pytest.mark.system
@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
@pytest.mark.parametrize("which", ["given", "of the set", "link"])
def test_a_folder_of_another_user_is_refused(copied: Path, tmp_path: Path, which: str) -> None:
    cache = tmp_path / "disk"
    files = files_of(copied, cache=cache)
    whole(files, 0)
    owned = {"given": cache, "of the set": files.cache, "link": tmp_path / "disk"}[which]
    if which == "link":
        cache.rename(tmp_path / "real")
        cache.symlink_to(tmp_path / "real")
    os.chown(owned, 12345, -1, follow_symlinks=False)
    with pytest.raises(InputError, match=f"^{owned}: another user owns this folder of the shard cache; "):
        whole(files_of(copied, cache=cache), 0)


def test_a_link_to_the_cache_is_the_user_s_own_and_one_below_it_is_not(copied: Path, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir(mode=0o700)
    (tmp_path / "disk").symlink_to(tmp_path / "big")
    files = files_of(copied, cache=tmp_path / "disk")
    whole(files, 0)
    assert (tmp_path / "big" / files.cache.name / FIRST).is_file()
    files.cache.rename(tmp_path / "moved")
    files.cache.symlink_to(tmp_path / "moved")
    with pytest.raises(InputError, match=f"{files.cache.name}: a link, and r2o follows none there"):
        whole(files_of(copied, cache=tmp_path / "disk"), 0)


def test_only_copies_of_shards_give_way_and_only_they_count(copied: Path, tmp_path: Path) -> None:
    sizes = [shard.bytes for shard in Manifest.read(copied).shards]
    files = files_of(copied, cache=tmp_path / "disk", cache_bytes=max(sizes))
    files.require_own_folders()
    foreign = ("ILSVRC2012_img_train.tar", "thesis.tar", "notes.txt", ".thesis.tar.part", "r2o-000000.tar.bak")
    for name in foreign:
        (files.cache / name).write_bytes(b"x" * sum(sizes))
        os.utime(files.cache / name, (0, 0))
    (files.cache / "r2o-000009.tar").mkdir()
    (files.cache / "r2o-000008.tar").symlink_to(files.cache / "notes.txt")
    (files.cache / ".r2o-000007.tar.part").write_bytes(b"a killed process")
    for number in range(3):
        assert whole(files, number) == (copied / f"r2o-00000{number}.tar").read_bytes()
    left = {path.name for path in files.cache.iterdir() if not path.name.endswith(".lock")}
    assert left == {*foreign, "r2o-000009.tar", "r2o-000008.tar", "r2o-000002.tar"}
    assert all((files.cache / name).stat().st_size == sum(sizes) for name in foreign)


def remade(shards: Path, folder: Path) -> Path:
    """The set with another first shard of the same size under the same fingerprint, honestly described."""
    other = Path(shutil.copytree(shards, folder))
    data = bytearray((other / FIRST).read_bytes())
    data[1000] ^= 1
    (other / FIRST).write_bytes(data)
    content = json.loads((other / "manifest.json").read_bytes())
    content["shards"][0]["sha256"] = hashlib.sha256(data).hexdigest()
    (other / "manifest.json").write_text(json.dumps(sealed(content)))
    return other


def test_two_sets_of_one_fingerprint_never_get_each_other_s_shards(copied: Path, tmp_path: Path) -> None:
    other = remade(copied, tmp_path / "other")
    ours, theirs = (files_of(place, cache=tmp_path / "disk") for place in (copied, other))
    assert ours.cache == theirs.cache
    for _ in range(2):
        for files, place in ((ours, copied), (theirs, other)):
            files.close()  # as where more shards are in use than are kept open
            assert whole(files, 0) == (place / FIRST).read_bytes()


def test_a_copy_that_was_not_compared_is_not_marked_as_whole(copied: Path, tmp_path: Path) -> None:
    good = (copied / FIRST).read_bytes()
    (copied / FIRST).write_bytes(good[:-1] + b"x")
    assert whole(files_of(copied, cache=tmp_path / "disk", verify=False), 0) != good
    (copied / FIRST).write_bytes(good)
    assert whole(files_of(copied, cache=tmp_path / "disk"), 0) == good


def test_a_shard_that_is_replaced_under_a_running_process_is_compared_again(copied: Path, tmp_path: Path) -> None:
    other = remade(copied, tmp_path / "other")
    files = files_of(copied)
    good = whole(files, 0)
    files.close()
    os.replace(other / FIRST, copied / FIRST)
    with pytest.raises(InputError, match=f"{FIRST} is not what the manifest names"):
        whole(files, 0)
    (copied / FIRST).write_bytes(good)
    assert whole(files, 0) == good


def test_the_folder_is_synced_after_a_copy_took_its_name_and_before_it_is_marked(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []

    def noting(module: object, name: str) -> None:
        original: Callable[..., object] = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a: (told.append(name), original(*a))[1])

    noting(cache_module.os, "replace")
    noting(cache_module, "sync_folder")
    noting(cache_module, "leave_mark")
    whole(files_of(copied, cache=tmp_path / "disk"), 0)
    assert told == ["replace", "sync_folder", "leave_mark", "replace"]  # the last is the mark's own


def test_a_copy_under_way_does_not_give_way(copied: Path, tmp_path: Path) -> None:
    sizes = [shard.bytes for shard in Manifest.read(copied).shards]
    files = files_of(copied, cache=tmp_path / "disk", cache_bytes=sum(sizes))
    files.require_own_folders()
    part = files.cache / ".r2o-000007.tar.part"
    part.write_bytes(b"x" * (sum(sizes) - sizes[0]))
    with (files.cache / ".r2o-000007.tar.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        whole(files, 0)
        assert part.exists()
    whole(files, 1)
    assert not part.exists()
