"""Lists: any line end, no name that is a path, no name twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.foundation.errors import InputError
from train.evals.datasets.lists import (
    read_class_names,
    read_pairs,
    read_text_lines,
    require_different,
    require_disjoint,
    require_name,
)

LIST = Path("list.txt")


def test_lines_have_no_bom_no_spaces_and_any_end(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeffa \r\n\r\n b c\n\td\r".encode())
    assert read_text_lines(path, purpose="names") == ["a", "b c", "d"]
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"list\.txt cannot be read: not UTF-8 text; it must hold names"):
        read_text_lines(path, purpose="names")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe cannot be read: not a regular file"):
        read_text_lines(tmp_path / "pipe", purpose="names")
    with pytest.raises(InputError, match="No such file or directory"):
        read_text_lines(tmp_path / "none", purpose="names")


@pytest.mark.parametrize("name", ["", "/a", "../a", "a/../b", "a/..", "a\0", "C:/a", "C:\\a", "a\\..\\b", "\\a"])
def test_a_path_is_no_name(name: str) -> None:
    with pytest.raises(InputError, match=r"list\.txt lists .*, which is no name below images; remove it"):
        require_name(name, path=LIST, below="images")


@pytest.mark.parametrize("name", ["a", "a/b.jpg", "..a", "a..", "a b", "ä"])
def test_a_name_is_a_name(name: str) -> None:
    assert require_name(name, path=LIST, below="images") == name


def test_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text("2 b c\n1  a\n")
    assert read_pairs(path, purpose="pairs") == {"2": "b c", "1": "a"}
    for text, message in (("1 a\n1 b\n", "a line of 1 twice"), ("1\n", "'1' is no line of pairs"), ("\n", "is empty")):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_pairs(path, purpose="pairs")


def test_names_differ() -> None:
    require_different(["a", "b"], path=LIST)
    require_disjoint(["a", "b"], ["c"], where="lists")
    with pytest.raises(InputError, match=r"list\.txt lists b twice"):
        require_different(["a", "b", "b"], path=LIST)
    with pytest.raises(InputError, match="lists: both list a, and 1 more"):
        require_disjoint(["c", "a", "b"], ["a", "c", "d"], where="lists")


def test_class_names(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("a\nb\nc\n")
    assert read_class_names(path, least=2, most=3, order="in order") == ("a", "b", "c")
    for least, most in ((4, 5), (1, 2)):
        with pytest.raises(
            InputError, match=f"must hold {least} to {most} different class names, one a line, in order"
        ):
            read_class_names(path, least=least, most=most, order="in order")
    path.write_text("a\na\n")
    with pytest.raises(InputError, match="different class names"):
        read_class_names(path, least=1, most=3, order="in order")
