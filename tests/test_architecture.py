"""The arrows of the house, by parsing every import; and that what must be instant loads nothing heavy."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipeline", "preprocess", "train")
LEAVES = ("pipeline.artifacts", "pipeline.foundation")
METHOD_ARROWS = {
    "masks": set(),
    "kmeans": set(),
    "schedules": set(),
    "loss": set(),
    "refine": {"masks", "kmeans"},
    "model": {"masks", "kmeans", "schedules", "loss", "refine"},
    "ema": set(),
}
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc"}
HEAVY = ("torch", "ray", "webdataset")


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
    return any(name == parent or name.startswith(parent + ".") for parent in parents)


def allowed(module: str, name: str) -> bool:
    """Whether `module` may import `name`, by DESIGN's arrows."""
    ours = under(name, *PACKAGES)
    if under(name, "tests", "configs"):
        return False
    if under(name, "ray"):
        return module == "preprocess.make_shards"
    if under(name, "torch.distributed"):
        return module == "train.distributed.world"
    if under(module, "train") and under(name, "fast_slic", "skimage"):
        return False
    if under(name, "torch", "torchvision", "webdataset"):  # webdataset imports torch
        return under(module, "train") and module not in ("train.config.pretrain", "train.r2o.schedules")
    if under(module, *LEAVES):
        return not ours or under(name, *LEAVES)
    if under(module, "pipeline"):
        others = ("preprocess.config", "train.config.pretrain", "train.r2o.schedules")
        return not ours or under(name, "pipeline", *others)
    if under(module, "preprocess"):
        return not ours or under(name, "preprocess", *LEAVES)
    return not ours or (under(name, "train", *LEAVES) and allowed_in_train(module, name))


def allowed_in_train(module: str, name: str) -> bool:
    """The arrows inside train: the method's files, and the evaluations."""
    if under(module, "train.r2o"):
        own = METHOD_ARROWS[module.rpartition(".")[2]] if module != "train.r2o" else set()
        return any(under(name, f"train.r2o.{other}") for other in own)
    if under(module, "train.evals"):
        if under(name, "train.r2o"):
            return module in ("train.evals.abo", "train.evals.cub")
        return not under(name, "train.data", "train.engine.step")
    return True


def modules() -> dict[str, Path]:
    """Every module of ours by dotted name."""
    found = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def violations(source: str, module: str) -> list[str]:
    return [f"{module} imports {name}" for name in imports_of(source, module) if not allowed(module, name)]


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
        ("train.pretrain", "from preprocess.config import ShardSettings"),
        ("train.pretrain", "import fast_slic"),
        ("train.pretrain", "from torch import distributed"),
        ("train.engine.step", "import torch.distributed as dist"),
        ("train.engine.step", "import importlib\nimportlib.import_module('ray')"),
        ("train.config.pretrain", "import torch"),
        ("train.r2o.schedules", "from torch import Tensor"),
        ("train.r2o.loss", "from train.r2o.masks import mask_pool"),
        ("train.r2o.loss", "from .masks import mask_pool"),
        ("train.r2o.loss", "from . import masks"),
        ("train.r2o.refine", "from train.r2o.model import R2O"),
        ("train.r2o.refine", "from pipeline.artifacts.sample import decode_jpeg"),
        ("train.r2o.model", "from train.config.pretrain import PretrainSettings"),
        ("train.evals.voc", "from train.data.views import make_sample"),
        ("train.evals.voc", "from train.r2o.masks import mask_pool"),
        ("train.evals.voc", "from train.engine import step"),
        ("pipeline.cli", "import torch"),
        ("pipeline.cli", "from train.pretrain import main"),
        ("pipeline.cli", "from preprocess.sources.list_images import list_images"),
        ("pipeline.artifacts.sample", "from pipeline.config import Recipe"),
        ("pipeline.artifacts.sample", "import preprocess.config"),
        ("pipeline.graph", "import configs"),
        ("train.engine.step", "from tests.train import conftest"),
    ],
)
def test_checker_sees_a_wrong_arrow(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("preprocess.make_shards", "import ray\nfrom ray.util import state"),
        ("train.distributed.world", "import torch.distributed as dist"),
        ("train.r2o.refine", "from train.r2o.kmeans import kmeans\nfrom .masks import mask_pool"),
        ("train.evals.cub", "from train.r2o.kmeans import kmeans"),
        ("pipeline.config", "from train.config.pretrain import PretrainSettings\nfrom preprocess import config"),
        ("pipeline.stages", "from pipeline.artifacts import manifest"),
        ("train.engine.step", "import rayleigh, torchlike, trainer"),
    ],
)
def test_checker_lets_a_right_arrow_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_no_module_is_a_drawer_of_everything() -> None:
    named = {part for path in modules().values() for part in path.relative_to(ROOT).with_suffix("").parts}
    assert not named & FORBIDDEN_NAMES


def test_method_takes_no_config_and_no_cuda() -> None:
    for path in (ROOT / "train" / "r2o").glob("*.py"):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [c for c in calls if isinstance(c.func, ast.Attribute) and c.func.attr == "cuda"], path.name


@pytest.mark.parametrize(
    "module", ["pipeline.cli", "preprocess.config", "train.config.pretrain", "train.r2o.schedules"]
)
def test_instant_modules_load_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_top_level_is_the_fixed_one() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests"} == set(PACKAGES)
