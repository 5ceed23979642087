"""The images of some classes or names alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from tests.preprocess.sources.named_files import paths, touch


@pytest.fixture
def animals(tmp_path) -> Path:
    touch(tmp_path / "in", "n01/n01_1.JPEG", "n01/n01_2.JPEG", "n02/n02_1.JPEG", "n03/n03_1.JPEG", "n03/readme.txt")
    return tmp_path / "in"


def written(folder: Path, *lines: str) -> Path:
    path = folder.parent / "wanted.txt"
    path.write_text("\n".join(lines))
    return path


def test_chosen_classes(animals):
    wanted = written(animals, "# ImageNet-2", "n03 tench, Tinca tinca", "", "n01")
    listing = list_images(animals, SourceSettings(classes=wanted))
    assert [source.name for source in listing] == [b"n01/n01_1.JPEG", b"n01/n01_2.JPEG", b"n03/n03_1.JPEG"]
    assert listing.classes == ("n01", "n03")
    assert listing.ignored == 1


def test_chosen_names_are_base_names_or_paths(animals):
    wanted = written(animals, "n01_2.JPEG", "n02/n02_1.JPEG")
    assert paths(animals, names=wanted) == [b"n01/n01_2.JPEG", b"n02/n02_1.JPEG"]


def test_both_must_agree(animals):
    classes = written(animals, "n01", "n02")
    names = animals.parent / "names.txt"
    names.write_text("n01_2.JPEG\nn03_1.JPEG\n")
    assert paths(animals, classes=classes, names=names) == [b"n01/n01_2.JPEG"]


def test_what_matches_nothing_is_an_error(animals):
    wanted = written(animals, "n01", *(f"n9{number}" for number in range(5)))
    with pytest.raises(
        InputError, match=r"wanted\.txt: 5 of 6 classes match no image \(n90, n91, n92, …\); correct the file"
    ):
        list_images(animals, SourceSettings(classes=wanted))
    with pytest.raises(InputError, match=r"1 of 1 names match no image \(n01\)"):
        list_images(animals, SourceSettings(names=written(animals, "n01")))


def test_a_filter_that_is_empty_or_not_there(animals):
    with pytest.raises(InputError, match=r"shards\.source\.classes=.*wanted\.txt: names nothing"):
        list_images(animals, SourceSettings(classes=written(animals, "# nothing")))
    with pytest.raises(InputError, match=r"shards\.source\.names=.*gone\.txt: cannot be read"):
        list_images(animals, SourceSettings(names=animals / "gone.txt"))
