"""The same questions to a local folder and to one behind a URL (fsspec's memory file system)."""

from __future__ import annotations

import sys
from pathlib import Path

import fsspec
import pytest

from pipeline.foundation.errors import InputError
from pipeline.foundation.folders import Folder, LocalFolder, folder_at, is_url
from pipeline.foundation.remote_folder import RemoteFolder


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
    if request.param == "local":
        yield folder_at(tmp_path / "set")
        return
    fs = fsspec.filesystem("memory")
    yield folder_at("memory://bucket/set")
    fs.store.clear()
    fs.pseudo_dirs.clear()


def test_what_is_written_is_read(folder: Folder):
    assert folder.names() == []
    assert folder.sizes() == {}
    folder.make()
    folder.write("b", b"0123456789")
    folder.write("a é", "né")
    assert folder.names() == ["a é", "b"]
    assert folder.sizes() == {"a é": 3, "b": 10}
    assert folder.size("b") == 10
    assert folder.read("a é") == "né".encode()
    assert folder.read_range("b", 3, 4) == b"3456"
    assert folder.read_range("b", 8, 4) == b"89"
    assert folder.read_range("b", 2, 0) == b""
    with folder.open("b") as file:
        file.seek(7)
        assert file.read() == b"789"
    assert folder_at(folder.root).read("b") == b"0123456789"


def test_a_writer_that_fails_leaves_the_former_file_and_nothing_else(folder: Folder):
    folder.make()
    folder.write("a", b"former")

    def fail() -> None:
        with folder.writer("a") as file:
            file.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert folder.names() == ["a"]
    assert folder.read("a") == b"former"
    with folder.writer("a") as file:
        file.write(b"whole")
    assert (folder.names(), folder.read("a")) == (["a"], b"whole")


def test_what_is_missing_is_file_not_found(folder: Folder):
    folder.make()
    for ask in (folder.read, folder.open, folder.size, lambda name: folder.read_range(name, 0, 1)):
        with pytest.raises(FileNotFoundError):
            ask("nothing")
    folder.remove("nothing")


def test_a_folder_inside_goes_with_all_that_is_in_it(folder: Folder):
    inside = folder.below(".job")
    folder.make()
    inside.make()
    inside.write("one", b"1")
    inside.write("two", b"2")
    folder.write("tar", b"3")
    assert folder.names() == [".job", "tar"]
    assert folder.sizes() == {"tar": 1}
    assert inside.sizes() == {"one": 1, "two": 1}
    folder.remove(".job")
    assert folder.names() == ["tar"]
    assert inside.names() == []


def test_a_name_that_is_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        folder_at(tmp_path / "file").names()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").touch()
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "link").symlink_to(tmp_path / "kept")
    folder_at(tmp_path / "set").remove("link")
    assert (tmp_path / "kept" / "a").exists()
    assert not (tmp_path / "set" / "link").is_symlink()


def test_paths_and_urls_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [is_url(place) for place in ("s3://b/x", "gs://b", "file:///x", "/x", "x", Path("x"))] == [
        True,
        True,
    ] + 4 * [False]
    assert folder_at(f"file://{tmp_path}").root == str(tmp_path)
    assert folder_at("x").root == str(tmp_path / "x")
    assert isinstance(folder_at(Path("x")), LocalFolder)
    assert isinstance(folder_at("memory://x"), RemoteFolder)
    assert folder_at("memory://x/y/").root == "memory://x/y"


def test_an_unknown_protocol_and_a_missing_package_say_what_to_do(monkeypatch):
    with pytest.raises(InputError, match=r"nonsense://x: .*nonsense.*give a path or a URL that fsspec knows"):
        folder_at("nonsense://x")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match="gs:// needs gcsfs; install it"):
        folder_at("gs://bucket/x")


def test_a_store_without_credentials_is_an_os_error(monkeypatch):
    pytest.importorskip("s3fs")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match="NoCredentialsError"):
        folder_at("s3://a-bucket-without-credentials/x").read("y")


@pytest.fixture
def with_links(tmp_path: Path) -> Path:
    """A folder with a link to a file and one to a folder, both of which lead out of it."""
    for name in ("kept", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "outside/file").write_bytes(b"abc")
    (tmp_path / "kept/file").symlink_to(tmp_path / "outside/file")
    (tmp_path / "kept/folder").symlink_to(tmp_path / "outside")
    return tmp_path / "kept"


def test_no_link_is_followed_below_a_folder_that_is_kept(with_links: Path):
    folder = folder_at(with_links)
    assert folder.sizes() == {}
    asks = [
        lambda: folder.open("file"),
        lambda: folder.read("file"),
        lambda: folder.read_range("file", 0, 1),
        lambda: folder.size("file"),
        lambda: folder.below("folder"),
    ]
    for ask in asks:
        with pytest.raises(InputError, match=f"{with_links}/.*: a link, and r2o follows none there"):
            ask()
    folder.write("file", b"new")
    folder.remove("folder")
    assert (with_links.parent / "outside/file").read_bytes() == b"abc"
    assert folder.read("file") == b"new"


def test_links_below_a_folder_of_the_users_are_followed(with_links: Path):
    folder = folder_at(with_links, follow_links=True)
    assert folder.sizes() == {"file": 3}
    assert folder.size("file") == 3
    assert folder.read("file") == folder.below("folder").read("file") == b"abc"


def test_the_folder_itself_may_be_a_link(with_links: Path):
    (with_links.parent / "entrance").symlink_to(with_links.parent / "outside")
    assert folder_at(with_links.parent / "entrance").read("file") == b"abc"
