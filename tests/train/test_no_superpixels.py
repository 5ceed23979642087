"""Training, its tests and its benchmarks on a machine that has neither Ray nor fast_slic, as a GPU machine may be."""

import subprocess
import sys

import pytest

from tests.gpu.places import ROOT

MAKES_SHARDS = {"tests.gpu.make_shards"}  # a process of its own; a machine with shards of its own does without it
OF_SHARDS = {"detcon_masks", "plan", "shards", "superpixels"}
BENCHMARKS = sorted({path.stem for path in (ROOT / "tests/benchmarks").glob("*.py")} - OF_SHARDS)
WITHOUT = "import sys\nsys.modules.update(dict.fromkeys(('ray', 'fast_slic')))\n"  # to import them raises ImportError
ONE_TEST = "tests/train/data/test_device.py::test_what_is_normalised_is_the_host_s_image"


def names_below(folder: str) -> list[str]:
    paths = (path.relative_to(ROOT).with_suffix("") for path in sorted((ROOT / folder).rglob("*.py")))
    return [".".join(path.parts) for path in paths if path.name != "__init__"]


def run_without(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT + program, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.long
@pytest.mark.processes
def test_all_of_it_can_be_imported() -> None:
    names = [name for folder in ("train", "tests/train", "tests/gpu") for name in names_below(folder)]
    names += [f"tests.benchmarks.{name}" for name in BENCHMARKS]
    wanted = [name for name in names if name not in MAKES_SHARDS]
    assert {"step", "stream", "train"} <= set(BENCHMARKS)
    assert {"train.pretrain", "tests.train.conftest", "tests.train.r2o.test_kmeans", "tests.gpu.ops"} <= set(wanted)
    done = run_without("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *wanted)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("ray", "fast_slic"):
        assert run_without(f"import {name}").returncode != 0


@pytest.mark.long
@pytest.mark.processes
def test_a_test_of_the_trainer_makes_its_shards_and_passes() -> None:
    done = run_without("import pytest; sys.exit(pytest.main(sys.argv[1:]))", "-q", "-p", "no:cacheprovider", ONE_TEST)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "1 passed" in done.stdout
