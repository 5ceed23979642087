from __future__ import annotations

import os
import random
from urllib.parse import unquote_to_bytes

import pytest

from preprocess.shards.tar_writer import OURS, names_of_others

CASES = [
    (["cls", "txt"], ["cls", "txt"]),
    (["json", "superpixels.png", "JPG"], ["source.json", "source.superpixels.png", "source.JPG"]),
    (["source.json", "cls"], ["source.json", "cls"]),
    (["json", "source.json"], ["source.json", "source.source.json"]),
    (["source.json", "json"], ["source.source.json", "source.json"]),
    (["source.source.json", "source.json", "json"], ["source.source.json", "source.source.source.json", "source.json"]),
    (["JSON", "json"], ["source.JSON", "source.source.json"]),
    (["txt", "TXT", "Txt"], ["txt", "source.TXT", "source.source.Txt"]),
    (["t\udcff", "100%"], ["t%FF", "100%"]),
    (["t\udcff%", "t%FF%25"], ["t%FF%25", "source.t%FF%25"]),
    (["a\nb", "é", "\x7f\x85"], ["a%0Ab", "é", "%7F%C2%85"]),
]


@pytest.mark.parametrize(("others", "names"), CASES)
def test_names(others, names):
    assert names_of_others(others, fold_case=True) == names


def test_format_1_told_case_apart():
    assert names_of_others(["txt", "TXT", "json"], fold_case=False) == ["txt", "TXT", "source.json"]


def test_whatever_the_names_each_has_its_own_and_none_is_ours():
    rng = random.Random(0)
    parts = ["json", "JSON", "source.", "Source.", "jpg", "superpixels.png", "\udcff", "%FF", "\n", "é", "x"]
    for _ in range(3000):
        others = list({"".join(rng.choices(parts, k=rng.randint(1, 3))) for _ in range(rng.randint(1, 9))})
        names = names_of_others(others, fold_case=True)
        assert len({name.lower() for name in names}) == len(others)
        for other, name in zip(others, names, strict=True):
            assert not OURS.fullmatch(name)
            assert name.isprintable()
            assert name.encode().decode() == name
            bare = name
            while not bare.endswith(other) and unquote_to_bytes(bare) != os.fsencode(other):
                assert bare.startswith("source.")
                bare = bare.removeprefix("source.")
