"""The house: its arrows, by parsing every import; the sizes of its rooms; what must load nothing heavy.

docs/architecture.md describes it. A rule that is in the way is changed here, with its reason.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "preprocess", "train")
GROUND = ("pipeline.artifacts", "pipeline.foundation")
COMMANDS = (
    "pipeline.cli", "pipeline.launchers.ranks",
    "preprocess.make_shards", "preprocess.preview", "preprocess.scenes", "preprocess.verify",
    "train.evals.voc", "train.export", "train.pretrain",
)  # fmt: skip
METHOD_ARROWS = {
    "masks": set(),
    "kmeans": set(),
    "schedules": set(),
    "loss": set(),
    "ema": set(),
    "refine": {"masks", "kmeans"},
    "model": {"masks", "kmeans", "schedules", "loss", "refine"},
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}
HEAVY = ("torch", "ray", "webdataset")
MOST_FILES, MOST_LINES = 12, 300
LONGER: dict[str, str] = {}  # file: why it is better in one piece; three at most


class Rule(NamedTuple):
    """`room` may import of `these` only `those`; `but`: modules that the rule does not bind."""

    room: str
    these: tuple[str, ...]
    those: tuple[str, ...]
    reason: str
    but: tuple[str, ...] = ()


RULES = (
    Rule("", ("tests", "configs"), (), "what is shipped runs without its tests; configs are loaded by path"),
    Rule("", COMMANDS, (), "what two commands share lies in a room below them"),
    Rule("", ("ray",), (), "one file knows Ray, so that shards can be made without it",
         but=("preprocess.shards.ray_driver",)),
    Rule("pipeline", ("torch", "torchvision", "webdataset"), (), "`r2o --help`, status and dry runs are instant"),
    Rule("preprocess", ("torch", "torchvision", "webdataset"), (), "shards are made on CPU nodes without torch"),
    Rule("train", ("fast_slic", "skimage"), (), "superpixels are made once, before; the trainer never waits for them"),
    Rule("train", ("torch.distributed",), (), "one room knows ranks", but=("train.distributed",)),
    Rule("pipeline.foundation", PACKAGES, ("pipeline.foundation",), "everything stands on it"),
    Rule("pipeline.artifacts", PACKAGES, GROUND, "contracts know nobody who keeps them"),
    Rule("pipeline", PACKAGES, ("pipeline", "preprocess.config", "train.config", "train.r2o.schedules"),
         "stages are started as processes; only their settings are read"),
    Rule("pipeline.launchers", PACKAGES, ("pipeline.launchers", "pipeline.stages", *GROUND),
         "a launcher starts any stage and knows none"),
    Rule("preprocess", PACKAGES, ("preprocess", *GROUND), "preprocess and train meet in the shards alone"),
    Rule("preprocess.sources", ("preprocess",), ("preprocess.sources", "preprocess.config"),
         "what images there are does not depend on what is made of them"),
    Rule("preprocess.demo", ("preprocess",), ("preprocess.demo", "preprocess.config"), "scenes are images like others"),
    Rule("train", PACKAGES, ("train", *GROUND), "preprocess and train meet in the shards alone"),
    Rule("train.config", ("torch", "torchvision", "webdataset"), (), "settings are read by dry runs"),
    Rule("train.config", ("train",), ("train.config", "train.r2o.schedules"), "settings know nobody who reads them"),
    Rule("train.distributed", ("train",), ("train.distributed",), "ranks exchange tensors, whatever they mean"),
    Rule("train.models", ("train",), ("train.models",), "a backbone is loaded without a trainer"),
    Rule("train.data", ("train",), ("train.data", "train.config", "train.models.backbone", "train.r2o.model"),
         "batches are the same for every method of training"),
    Rule("train.run", ("train.engine",), (), "what surrounds a run does not know its steps"),
    Rule("train.evals", ("train.engine", "train.data", "train.run", "train.distributed"), (),
         "anybody's backbone is evaluated, without a run of ours"),
    Rule("train.evals", ("train.r2o",), (), "an evaluation is not part of the method", but=("train.evals.cub",)),
)  # fmt: skip


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
    for rule in RULES:
        binds = under(module, rule.room) and not under(module, *rule.but)
        if binds and under(name, *rule.these) and not under(name, *rule.those):
            return rule.reason
    if under(module, "train.r2o") and under(name, *PACKAGES):
        own = METHOD_ARROWS.get(module.rpartition(".")[2], set())
        if not any(under(name, f"train.r2o.{other}") for other in own):
            return "the method's files take plain numbers and tensors, one idea a file"
    return "only the trainer needs torch.distributed" if under(name, "torch.distributed") and module[0] == "p" else None


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
        ("train.evals.cub", "from train.r2o.kmeans import kmeans"),
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
        ours = [name for name in (*rule.these, *rule.those) if under(name, *PACKAGES)]
        assert names.issuperset(ours), rule
    assert names.issuperset(COMMANDS)


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


def test_no_class_and_no_public_function_is_defined_twice() -> None:
    places: dict[str, list[str]] = {}
    for module, path in modules().items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(module)
    twice = {name: found for name, found in places.items() if len(found) > 1 and name not in ("main", "add_verbs")}
    assert not twice


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
    text = (ROOT / "pyproject.toml").read_text()
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert [package for package in packages if f'"{package}"' not in text] == []


def test_the_page_names_every_file_and_no_other() -> None:
    named = re.findall(
        r"^\| `([\w/]+\.py)`", (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    there = [str(path.relative_to(ROOT)) for path in modules().values() if path.name != "__init__.py"]
    assert sorted(named) == sorted(there)
