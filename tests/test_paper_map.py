"""docs/paper_map.md names only what exists, and every configuration."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "paper_map.md").read_text(encoding="utf-8")
CODE = sorted(set(re.findall(r"`((?:train|preprocess|pipeline)/[\w/]+\.py)(?::([\w.]+))?`", TEXT)))
TESTS = sorted(set(re.findall(r"`((?:[\w/]+/)?test_\w+\.py)(?:::(\w+))?`", TEXT)))


def names_in(path: Path) -> set[str]:
    """Functions, classes, their methods, and constants of a module."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {t.id for t in targets if isinstance(t, ast.Name)}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
    return names


@pytest.mark.parametrize(("file", "name"), CODE)
def test_code_that_the_map_names_exists(file: str, name: str) -> None:
    assert (ROOT / file).is_file()
    assert not name or name in names_in(ROOT / file)


@pytest.mark.parametrize(("file", "name"), TESTS)
def test_tests_that_the_map_names_exist(file: str, name: str) -> None:
    found = list((ROOT / "tests").rglob(file.removeprefix("tests/")))
    assert len(found) == 1, f"{file}: {found}"
    assert not name or name in names_in(found[0])


def test_every_configuration_is_on_the_map() -> None:
    named = set(re.findall(r"`(?:configs/)?(\w+)\.yaml`", TEXT))
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == named
