"""The images of some classes or names alone."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from preprocess.config import SourceSettings
from preprocess.sources.list_images import list_images
from tests.preprocess.sources.named_files import paths, touch

IMAGENET_100 = Path(__file__).parents[3] / "configs" / "imagenet100.txt"
CMC_SHA256 = "79f3f1552ccc478ce24bd934b4573625db584ddc1f4643ae23c994a94cb11397"


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


def test_imagenet_100_is_cmc_s_list(tmp_path):
    """The digest is of CMC's own file, which holds nothing but the ids."""
    text = IMAGENET_100.read_text(encoding="utf-8")
    ids = [line for line in text.splitlines() if not line.startswith("#")]
    assert hashlib.sha256("".join(f"{one}\n" for one in ids).encode()).hexdigest() == CMC_SHA256
    assert len(set(ids)) == len(ids) == 100
    assert all(re.fullmatch(r"n\d{8}", one) for one in ids)
    notice = text.replace("\n# ", " ")
    for said in ("Copyright (c) 2020, Yonglong Tian", "BSD 2-Clause", "commit bc687a26", "retain the above copyright"):
        assert said in notice
    touch(tmp_path / "train", *(f"{one}/{one}_1.JPEG" for one in (*ids, "n01440764", "n99999999")))
    listing = list_images(tmp_path / "train", SourceSettings(classes=IMAGENET_100))
    assert listing.classes == tuple(sorted(ids))
    assert len(listing) == 100


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
