from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
from pyarrow import parquet

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources import parquet as ours
from preprocess.sources.list_images import list_images
from preprocess.sources.listing import Listing
from preprocess.sources.reader import Reader

CLASSES = ["tench, Tinca tinca", "goldfish"]


def images(count: int, *, seed: int = 0) -> list[bytes]:
    rng = random.Random(seed)
    return [rng.randbytes(rng.randrange(1, 3000)) for _ in range(count)]


def write(path: Path, columns: Mapping[str, object], *, features: object = None, group: int = 4) -> Path:
    table = pa.table(dict(columns))
    if features is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path, row_group_size=group)
    return path


def hub_images(data: list[bytes | None]) -> pa.Array:
    """A column as Hugging Face's Image feature is stored."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array([{"bytes": image, "path": None} for image in data], kind)


def read_all(listing: Listing) -> list[bytes]:
    with Reader(listing.root, listing.kind, listing.column) as reader:
        return [reader.read(source) for source in listing]


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """Two files as the hub keeps them, of 10 and 7 images."""
    features = {"image": {"_type": "Image"}, "label": {"names": CLASSES, "_type": "ClassLabel"}}
    for number, count in enumerate((10, 7)):
        labels = pa.array([i % 2 for i in range(count)], pa.int64())
        columns = {"image": hub_images(list(images(count, seed=number))), "label": labels, "id": list(range(count))}
        write(tmp_path / "data" / f"train-{number:05d}-of-00002.parquet", columns, features=features)
    return tmp_path / "data"


def test_files_of_the_hub(hub: Path):
    listing = list_images(hub)
    names = [
        f"train-{n:05d}-of-00002.parquet/{row:08d}".encode() for n, count in ((0, 10), (1, 7)) for row in range(count)
    ]
    assert [source.name for source in listing] == names
    assert {source.size for source in listing} == {0}
    assert [source.class_name for source in listing] == [CLASSES[row % 2] for count in (10, 7) for row in range(count)]
    assert listing.classes == ("goldfish", "tench, Tinca tinca")
    assert (listing.kind, listing.column) == ("rows", "image")
    assert listing.described == "column image of 2 Parquet files"
    assert read_all(listing) == images(10) + images(7, seed=1)


def test_rows_in_any_order_keep_few_groups(hub: Path):
    listing, expected = list_images(hub), images(10) + images(7, seed=1)
    order = [number for _ in range(3) for number in range(17)]
    random.Random(0).shuffle(order)
    with Reader(listing.root, listing.kind, listing.column) as reader:
        assert [reader.read(listing[number]) for number in order] == [expected[number] for number in order]
        assert reader._rows is not None
        assert len(reader._rows._groups) == ours.ROW_GROUPS


def test_few_files_stay_open(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ours, "OPEN_FILES", 1)
    listing, expected = list_images(hub), images(10) + images(7, seed=1)
    assert listing[0].offset == 0  # its own files are open now
    before = len(os.listdir("/proc/self/fd"))
    with Reader(listing.root, listing.kind, listing.column) as reader:
        for number in (0, 16, 9, 10, 4, 16):
            assert reader.read(listing[number]) == expected[number]
            assert len(os.listdir("/proc/self/fd")) <= before + 1
    assert len(os.listdir("/proc/self/fd")) == before


def test_one_file(hub: Path):
    listing = list_images(hub / "train-00001-of-00002.parquet")
    assert listing.root == str(hub)
    assert read_all(listing) == images(7, seed=1)
    assert listing.described == "column image of 1 Parquet file"


def test_behind_a_url(hub: Path):
    fs = fsspec.filesystem("memory")
    try:
        for path in hub.iterdir():
            fs.pipe(f"/bucket/{path.name}", path.read_bytes())
        local, remote = list_images(hub), list_images("memory://bucket")
        assert [image._replace(stamp=0) for image in remote] == [image._replace(stamp=0) for image in local]
        assert remote.sha256 == local.sha256
        assert read_all(remote) == read_all(local)
    finally:
        fs.store.clear()


def test_classes_of_the_hub_can_be_chosen(hub: Path, tmp_path: Path):
    (tmp_path / "classes.txt").write_text("tench, Tinca tinca\n")
    listing = list_images(hub, SourceSettings(classes=tmp_path / "classes.txt"))
    assert {source.class_name for source in listing} == {"tench, Tinca tinca"}
    assert read_all(listing) == images(10)[::2] + images(7, seed=1)[::2]


def test_a_row_without_image_is_empty(tmp_path: Path):
    data = [b"one", None, b"three"]
    write(tmp_path / "struct.parquet", {"image": hub_images(data)})
    column = pa.array([None, *hub_images(data)[:1].to_pylist()], hub_images([]).type)
    write(tmp_path / "null.parquet", {"image": column})
    write(tmp_path / "plain.parquet", {"image": pa.array(data, pa.binary())})
    assert read_all(list_images(tmp_path / "struct.parquet")) == [b"one", b"", b"three"]
    assert read_all(list_images(tmp_path / "null.parquet")) == [b"", b"one"]
    assert read_all(list_images(tmp_path / "plain.parquet")) == [b"one", b"", b"three"]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
@pytest.mark.parametrize("name", ["jpg", "IMG", "whatever"])
def test_the_only_likely_column(tmp_path: Path, kind: pa.DataType, name: str):
    columns = {"caption": ["a", "b"], name: pa.array([b"1", b"2"], kind), "n": [1, 2]}
    listing = list_images(write(tmp_path / "a.parquet", columns))
    assert listing.column == name
    assert read_all(listing) == [b"1", b"2"]


def test_which_column_is_asked_where_it_is_unclear(tmp_path: Path):
    columns = {"left": pa.array([b"l"]), "right": pa.array([b"r"]), "caption": ["x"]}
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(InputError, match=r"a\.parquet: which column.*left, right; set shards\.source\.image"):
        list_images(path)
    assert read_all(list_images(path, SourceSettings(image="right"))) == [b"r"]
    with pytest.raises(InputError, match="no image column 'caption'; those that may: left, right"):
        list_images(path, SourceSettings(image="caption"))


def test_every_file_must_have_the_column(tmp_path: Path):
    write(tmp_path / "a.parquet", {"image": pa.array([b"1"])})
    write(tmp_path / "b.parquet", {"picture": pa.array([b"1"])})
    with pytest.raises(InputError, match=r"b\.parquet: no image column 'image'"):
        list_images(tmp_path)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (pa.array([3, None, -1]), ["3", None, None]),
        (pa.array(["cat", None, ""]), ["cat", None, None]),
        (pa.array(["cat", None, "dog"]).dictionary_encode(), ["cat", None, "dog"]),
        (pa.array([[1], [2], None]), [None, None, None]),
        (hub_images([b"mask", b"mask", b"mask"]), [None, None, None]),
    ],
)
def test_labels(tmp_path: Path, label: pa.Array, expected: list[str | None]):
    path = write(tmp_path / "a.parquet", {"image": pa.array([b"1", b"2", b"3"]), "label": label})
    assert [source.class_name for source in list_images(path)] == expected


def test_a_label_without_a_name_is_its_number(tmp_path: Path):
    columns = {"image": pa.array([b"1", b"2"]), "label": [1, 2]}
    path = write(tmp_path / "a.parquet", columns, features={"label": {"names": CLASSES}})
    assert [source.class_name for source in list_images(path)] == ["goldfish", "2"]


def test_another_file_of_as_many_rows_is_another_source(tmp_path: Path):
    path = write(tmp_path / "a.parquet", {"image": pa.array([b"1", b"2"])})
    before = list_images(path).sha256
    assert list_images(path).sha256 == before
    write(path, {"image": pa.array([b"1", b"222222"])})
    assert list_images(path).sha256 != before


def test_training_and_test_files_are_not_mixed(hub: Path):
    write(hub / "test-00000-of-00001.parquet", {"image": pa.array([b"1"])})
    with pytest.raises(InputError, match=r"files of test, train in one; give a pattern"):
        list_images(hub)
    assert len(list_images(hub / "train-*")) == 17


def test_no_parquet(tmp_path: Path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(InputError, match=r"a\.parquet: no whole Parquet file .*fetch it again"):
        list_images(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"b: no file ends in \.parquet"):
        list_images(tmp_path / "b", SourceSettings(format="parquet"))


def test_damage_inside_is_an_error_of_the_file(hub: Path):
    path = hub / "train-00000-of-00002.parquet"
    listing = list_images(path)
    data = bytearray(path.read_bytes())
    start = parquet.ParquetFile(path).metadata.row_group(0).column(0).data_page_offset
    data[start : start + 40] = b"\xff" * 40
    status = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # a disk that rots tells no time
    with Reader(listing.root, listing.kind, listing.column) as reader:
        with pytest.raises(OSError):  # noqa: PT011 pyarrow's own words
            reader.read(listing[0])
        assert reader.read(listing[9]) == images(10)[9]


def test_without_pyarrow(hub: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"Parquet needs pyarrow; pip install -e '\.\[parquet\]'"):
        list_images(hub)
