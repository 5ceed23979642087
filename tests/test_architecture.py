"""The house: its arrows, by parsing every import; the sizes of its rooms; what must load nothing heavy.

docs/architecture.md describes it. A rule that is in the way is changed here, with its reason.
"""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.house_rules import METHOD_ARROWS, PACKAGES, RULES, Rule

ROOT = Path(__file__).parents[1]
NO_COMMAND = {"preprocess.shards.worker", "preprocess.demo.processes"}  # started by their own parents alone
SHARED_NAMES = {"main", "add_verbs", "score", "P", "R", "T", "S", "E"}  # of commands, verbs, protocols, type variables
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}
HEAVY = ("torch", "ray", "webdataset")
MOST_FILES, MOST_LINES = 12, 300
LONGER: dict[str, str] = {}  # file: why it is better in one piece; three at most


@cache
def commands() -> tuple[str, ...]:
    """Every module that `python -m` starts."""
    started = {name for name, path in modules().items() if '__name__ == "__main__"' in path.read_text()}
    return tuple(sorted(started - NO_COMMAND))


def imports_of(source: str, module: str) -> Iterator[str]:
    """Every dotted name that a module imports, wherever in it, with relative imports resolved.

    `from a.b import c` gives `a.b.c`, which lies under `a.b` whether c is a module or not.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            yield from (".".join([*base, *([node.module] if node.module else []), a.name]) for a in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from (str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


def under(name: str, *parents: str) -> bool:
    return any(not parent or name == parent or name.startswith(parent + ".") for parent in parents)


def broken(module: str, name: str) -> str | None:
    """The reason of the first rule that forbids `module` to import `name`."""
    for rule in (*RULES, Rule("", commands(), (), "what two commands share lies in a room below them")):
        binds = under(module, rule.room) and not under(module, *rule.but)
        if binds and under(name, *rule.these) and not under(name, *rule.those):
            return rule.reason
    if under(module, "train.r2o") and under(name, *PACKAGES):
        own = METHOD_ARROWS.get(module.rpartition(".")[2], set())
        if not any(under(name, f"train.r2o.{other}") for other in own):
            return "the method's files take plain numbers and tensors, one idea a file"
    return None


@cache
def modules() -> dict[str, Path]:
    """Every module of ours by dotted name."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def violations(source: str, module: str) -> list[str]:
    found = {name: broken(module, name) for name in imports_of(source, module)}
    return [f"{module} imports {name}: {reason}" for name, reason in found.items() if reason]


@pytest.mark.parametrize("module", modules())
def test_module_keeps_the_arrows(module: str) -> None:
    assert violations(modules()[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("preprocess.shards.plan", "import train.config.pretrain"),
        ("preprocess.shards.plan", "from train import config"),
        ("preprocess.shards.plan", "import torch"),
        ("preprocess.shards.plan", "def late():\n    import webdataset as wds"),
        ("preprocess.shards.plan", "import ray"),
        ("preprocess.shards.plan", "from pipeline.stages import Stage"),
        ("preprocess.shards.plan", "from pipeline import stages"),
        ("preprocess.sources.tars", "from preprocess.shards.plan import Plan"),
        ("preprocess.demo.scene_art", "from preprocess.sources import tars"),
        ("preprocess.verify", "from preprocess import make_shards"),
        ("train.pretrain", "from preprocess.config import ShardSettings"),
        ("train.pretrain", "import fast_slic"),
        ("train.pretrain", "from torch import distributed"),
        ("train.engine.step", "import torch.distributed as dist"),
        ("train.engine.step", "import importlib\nimportlib.import_module('ray')"),
        ("train.config.pretrain", "import torch"),
        ("train.config.evals", "from train.models.backbone import Backbone"),
        ("train.distributed.collectives", "from train.r2o.loss import Everywhere"),
        ("train.models.formats", "from train.engine.checkpoint import read_checkpoint"),
        ("train.data.loader", "from train.engine.build import Training"),
        ("train.run.probe", "from train.engine import step"),
        ("train.r2o.schedules", "from train.config.pretrain import PretrainSettings"),
        ("train.r2o.schedules", "from torch import Tensor"),
        ("train.r2o.loss", "from train.r2o.masks import mask_pool"),
        ("train.r2o.loss", "from .masks import mask_pool"),
        ("train.r2o.loss", "from . import masks"),
        ("train.r2o.refine", "from train.r2o.model import R2O"),
        ("train.r2o.refine", "from pipeline.artifacts.sample import decode_jpeg"),
        ("train.r2o.model", "from train.config.pretrain import PretrainSettings"),
        ("train.evals.voc", "from train.data.views import make_sample"),
        ("train.evals.voc", "from train.r2o.masks import mask_pool"),
        ("train.evals.voc", "from train import engine"),
        ("train.evals.trials", "from train.evals import voc"),
        ("pipeline.cli", "import torch"),
        ("pipeline.cli", "from train.pretrain import main"),
        ("pipeline.cli", "from preprocess.sources.list_images import list_images"),
        ("pipeline.verbs.training", "from train.models.formats import FORMATS"),
        ("pipeline.launchers.local", "from pipeline.graph import workflow"),
        ("pipeline.artifacts.sample", "from pipeline.config import Recipe"),
        ("pipeline.artifacts.sample", "import preprocess.config"),
        ("pipeline.foundation.files", "from pipeline.artifacts.manifest import Manifest"),
        ("pipeline.graph", "import configs"),
        ("pipeline.graph", "import torch.distributed"),
        ("train.engine.step", "from tests.train import conftest"),
    ],
)
def test_checker_sees_a_wrong_arrow(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("preprocess.shards.ray_driver", "import ray\nfrom ray.util import state"),
        ("preprocess.shards.plan", "from preprocess.sources.listing import Listing"),
        ("train.distributed.world", "import torch.distributed as dist"),
        ("train.r2o.refine", "from train.r2o.kmeans import kmeans\nfrom .masks import mask_pool"),
        ("train.config.batches", "from train.r2o.schedules import target_ema_at"),
        ("pipeline.config", "from train.config.pretrain import PretrainSettings\nfrom preprocess import config"),
        ("pipeline.stages", "from pipeline.artifacts import manifest"),
        ("train.engine.step", "import rayleigh, torchlike, trainer"),
    ],
)
def test_checker_lets_a_right_arrow_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_rules_name_what_is_there() -> None:
    names = set(modules())
    for rule in RULES:
        assert not rule.room or rule.room in names
        ours = [name for name in (*rule.these, *rule.those, *rule.but) if under(name, *PACKAGES)]
        assert names.issuperset(ours), rule
    assert {"pipeline.cli", "preprocess.verify", "train.evals.voc", "train.pretrain"} <= set(commands()) <= names


def test_nobody_imports_in_a_circle() -> None:
    known = modules()
    needs = {
        module: {
            n for name in imports_of(path.read_text(), module) for n in (name, name.rpartition(".")[0]) if n in known
        }
        - {module}
        for module, path in known.items()
        if path.name != "__init__.py"
    }
    while free := [module for module, needed in needs.items() if not needed & needs.keys()]:
        for module in free:
            del needs[module]
    assert not needs


def test_rooms_are_small() -> None:
    rooms = {path.parent for path in modules().values()}
    crowded = {str(room.relative_to(ROOT)): n for room in rooms if (n := len(list(room.glob("*.py")))) > MOST_FILES}
    assert not crowded


def test_long_files_are_few_and_each_has_its_reason() -> None:
    paths = [path for package in (*PACKAGES, "tests") for path in (ROOT / package).rglob("*.py")]
    long = {str(path.relative_to(ROOT)) for path in paths if len(path.read_text().splitlines()) > MOST_LINES}
    assert long == set(LONGER)
    assert len(LONGER) <= 3
    assert all(LONGER.values())


def test_no_module_is_a_drawer_of_everything() -> None:
    named = {part for path in modules().values() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not named & FORBIDDEN_NAMES


def public_names(node: ast.stmt) -> list[str]:
    """What a statement of a module defines under a name without underscore."""
    named = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else []
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    named += [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
    return [name for name in named if not name.startswith("_")]


def test_no_public_name_is_defined_twice() -> None:
    """A constant counts where another file imports it: a file may have its own TILE."""
    places: dict[str, list[str]] = {}
    imported = {name for module, path in modules().items() for name in imports_of(path.read_text(), module)}
    for module, path in modules().items():
        for name in {n for node in ast.parse(path.read_text()).body for n in public_names(node)}:
            if not name.isupper() or f"{module}.{name}" in imported:
                places.setdefault(name, []).append(module)
    assert not {name: found for name, found in places.items() if len(found) > 1 and name not in SHARED_NAMES}


def test_private_names_stay_in_their_file() -> None:
    for module, path in modules().items():
        ours = [name for name in imports_of(path.read_text(), module) if under(name, *PACKAGES)]
        assert not [name for name in ours if name.rpartition(".")[2].startswith("_")], module


def test_method_takes_no_config_and_no_cuda() -> None:
    for path in (ROOT / "train" / "r2o").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "cuda"], path.name


@pytest.mark.processes
@pytest.mark.parametrize(
    "module",
    ["pipeline.cli", "preprocess.config", "train.config.pretrain", "train.config.evals", "train.r2o.schedules"],
)
def test_instant_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level_is_the_fixed_one() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(PACKAGES)


def test_every_package_is_named_for_the_installation() -> None:
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(named) == sorted(name for name, path in modules().items() if path.name == "__init__.py")


def test_the_page_names_every_file_and_no_other() -> None:
    named = re.findall(
        r"^\| `([\w/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    there = [str(path.relative_to(ROOT)) for path in modules().values() if path.name != "__init__.py"]
    assert sorted(named) == sorted(there)
