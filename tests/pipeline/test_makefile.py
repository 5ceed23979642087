"""The Makefile with a stand-in for .venv: what the user types arrives as typed, and nothing of it is run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ODD = 'it\'s a "path" $(touch pwned) `touch pwned` $HOME ${HOME} $(shell touch pwned) ; * # & \\ ü'
RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if "fast-slic" in sys.argv and os.environ.get("FAIL"):
    sys.exit(1)
if sys.argv[1:3] == ["-m", "venv"]:
    import shutil
    os.makedirs(sys.argv[3] + "/bin")
    shutil.copy(sys.argv[0], sys.argv[3] + "/bin/python")
"""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


class Checkout:
    """A copy of what `make` reads, with a recording python."""

    def __init__(self, folder: Path, *, installed: bool) -> None:
        self.folder, self.record = folder, folder / "record"
        for name in ("Makefile", "pyproject.toml", "constraints.txt"):
            shutil.copy(ROOT / name, folder)
        for name in ("voc", "x", "trials"):  # what is in train/evals makes the verbs of evaluations
            (folder / "train" / "evals").mkdir(parents=True, exist_ok=True)
            (folder / "train" / "evals" / f"{name}.py").touch()
        (folder / "train" / "evals" / "frozen" / "protocols").mkdir(parents=True)
        for name in ("__init__", "linear", "knn"):  # what is there makes the verbs of protocols
            (folder / "train" / "evals" / "frozen" / "protocols" / f"{name}.py").touch()
        self.python = folder / "fake-python"
        self.python.write_text(RECORDER)
        self.python.chmod(0o755)
        if installed:
            (folder / ".venv" / "bin").mkdir(parents=True)
            shutil.copy(self.python, folder / ".venv" / "bin" / "python")
            (folder / ".venv" / ".installed").touch()

    def make(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        self.record.write_text("")
        kept = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
        return subprocess.run(
            ["make", f"PYTHON={self.python}", *arguments], cwd=self.folder, capture_output=True, text=True,
            env={**kept, "RECORD": str(self.record), "CC": "true", **environment},
        )  # fmt: skip

    @property
    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in self.record.read_text().splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path, installed=True)


@pytest.mark.processes
@pytest.mark.parametrize(
    ("verb", "given", "expected"),
    [
        ("shards", ("IMAGES", "SHARDS"), ["shards", "--images=", "--shards="]),
        ("preview", ("SHARDS", "PNG"), ["preview", "--shards=", "--out="]),
        ("pretrain", ("SHARDS", "RUN"), ["pretrain", "--shards=", "--run="]),
        ("eval-voc", ("RUN", "VOC"), ["eval-voc", "--run=", "--voc="]),
        ("eval-x", ("RUN", "X"), ["eval-x", "--run=", "--x="]),
        ("eval-frozen", ("WEIGHTS", "DATA"), ["eval-frozen", "--weights=", "--data="]),
        ("eval-knn", ("WEIGHTS", "DATA"), ["eval-knn", "--weights=", "--data="]),
        ("features", ("WEIGHTS", "DATA", "OUT"), ["features", "--weights=", "--data=", "--out="]),
        ("scenes", ("OUT",), ["scenes", "--out="]),
    ],
)
@pytest.mark.parametrize("through", ["command line", "environment"])
def test_odd_paths_arrive_as_typed(
    checkout: Checkout, verb: str, given: tuple[str, ...], expected: list[str], through: str
) -> None:
    values = {name: f"{name} {ODD}" for name in (*given, "CONFIG")}
    if through == "environment":
        done = checkout.make(verb, **values)
    else:
        done = checkout.make(verb, *(f"{name}={value}" for name, value in values.items()))
    assert done.returncode == 0, done.stderr
    (call,) = checkout.calls
    wanted = [option + values[name] for option, name in zip([*expected[1:], "--config="], values, strict=True)]
    assert call == ["-m", "pipeline.cli", expected[0], *wanted]
    assert not list(checkout.folder.rglob("pwned"))


@pytest.mark.processes
def test_settings_and_processes_are_passed_on(checkout: Checkout) -> None:
    checkout.make("pretrain", "SHARDS=s", "RUN=r", "NPROC=2", "SET=pretrain.seed=1 pretrain.x=[*]")
    (call,) = checkout.calls
    assert call[3:] == ["--shards=s", "--run=r", "--nproc=2", "--set", "pretrain.seed=1", "pretrain.x=[*]"]


@pytest.mark.processes
def test_export_and_init_are_passed_on_as_typed(checkout: Checkout) -> None:
    checkout.make("export", "RUN=r", "OUT=o.pth", "HEADS=")
    (call,) = checkout.calls
    assert call[2:] == ["export", "--run=r", "--out=o.pth"]
    checkout.make("export", f"RUN={ODD}", f"OUT=o {ODD}", f"CHECKPOINT=c {ODD}", "FORMAT=timm", "HEADS=1")
    (call,) = checkout.calls
    assert call[2:] == [
        "export", f"--run={ODD}", f"--out=o {ODD}", "--format=timm", "--heads", f"--checkpoint=c {ODD}",
    ]  # fmt: skip
    checkout.make("pretrain", "SHARDS=s", "RUN=r", f"INIT=i {ODD}")
    (call,) = checkout.calls
    assert call[2:] == ["pretrain", "--shards=s", "--run=r", f"--init=i {ODD}"]
    assert not list(checkout.folder.rglob("pwned"))


@pytest.mark.processes
def test_what_is_said_of_weights_is_passed_on_as_typed(checkout: Checkout) -> None:
    given = {"FORMAT": f"f {ODD}", "BACKBONE": f"b {ODD}", "NPROC": f"n {ODD}"}
    more = {"CHECKPOINT": f"c {ODD}", "OUT": f"o {ODD}", "PROTOCOLS": f"p {ODD}"}
    checkout.make("eval-frozen", "WEIGHTS=w", "DATA=d", *(f"{k}={v}" for k, v in {**given, **more}.items()))
    (call,) = checkout.calls
    options = [f"--{name.lower()}={value}" for name, value in {**given, **more}.items()]
    assert call[2:] == ["eval-frozen", "--weights=w", "--data=d", *options]
    checkout.make("eval-linear", "WEIGHTS=w", "DATA=d", "PROTOCOLS=knn", "SET=eval_frozen.linear.size=64 a.b=[*]")
    (call,) = checkout.calls
    assert call[2:] == ["eval-linear", "--weights=w", "--data=d", "--set", "eval_frozen.linear.size=64", "a.b=[*]"]
    assert not list(checkout.folder.rglob("pwned"))


@pytest.mark.processes
def test_results_are_passed_on_as_typed(checkout: Checkout) -> None:
    checkout.make("results", f"FROM=-f {ODD}")
    (call,) = checkout.calls
    assert call[2:] == ["results", "--", f"-f {ODD}"]
    checkout.make("results", f"FROM={ODD}", "FORMAT=csv", f"OUT=o {ODD}", f"PNG=p {ODD}")
    (call,) = checkout.calls
    assert call[2:] == ["results", "--format=csv", f"--out=o {ODD}", f"--picture=p {ODD}", "--", ODD]
    assert not list(checkout.folder.rglob("pwned"))


@pytest.mark.processes
def test_demo_is_the_workflow_of_its_config(checkout: Checkout) -> None:
    checkout.make("demo", "SET=pretrain.seed=1")
    checkout.make("demo")
    (call,) = checkout.calls
    assert call[2:] == ["run", "--work=runs/demo", "--", "configs/demo.yaml"]
    checkout.make("demo", "WORK=a b", "CONFIG=c d")
    (call,) = checkout.calls
    assert call[2:] == ["run", "--work=a b", "--", "c d"]


@pytest.mark.processes
def test_the_evidence_of_the_demo_is_a_module_of_the_tests(checkout: Checkout) -> None:
    checkout.make("evidence-demo")
    checkout.make("evidence-demo", f"CONFIG={ODD}", f"OUT=o {ODD}")
    (call,) = checkout.calls
    assert call == ["-m", "tests.evidence.demo", f"--config={ODD}", f"--work=o {ODD}"]
    assert not list(checkout.folder.rglob("pwned"))


@pytest.mark.processes
def test_mutants_are_a_module_of_the_tests(checkout: Checkout) -> None:
    checkout.make("mutants", "PATHS=train/r2o a.py", "MINUTES=3", "N=9", "SEED=2", f"OUT=o {ODD}", "AGAIN=b c")
    (call,) = checkout.calls
    given = ["--paths=train/r2o a.py", "--minutes=3", "--number=9", "--seed=2", "--again=b c", f"--out=o {ODD}"]
    assert call == ["-m", "tests.mutants", *given]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["shards"], "IMAGES"), (["shards", "IMAGES=x"], "SHARDS"), (["pretrain", "SHARDS=x"], "RUN"),
        (["export", "OUT=x"], "RUN"), (["export", "RUN=x"], "OUT"),
        (["eval-voc", "RUN=x"], "VOC"), (["eval-x", "RUN=x"], "X"),
        (["eval-frozen", "DATA=x"], "WEIGHTS"), (["eval-linear", "WEIGHTS=x"], "DATA"),
        (["features", "WEIGHTS=x", "DATA=y"], "OUT"),
        (["preview", "SHARDS=x"], "PNG"), (["results"], "FROM"), (["shards", "IMAGES=", "SHARDS=x"], "IMAGES"),
    ],
)  # fmt: skip
def test_a_missing_variable_is_named_before_anything_is_installed(
    tmp_path: Path, arguments: list[str], missing: str
) -> None:
    checkout = Checkout(tmp_path, installed=False)
    done = checkout.make(*arguments)
    assert done.returncode != 0
    assert done.stderr.splitlines()[0].startswith(f"r2o: error: {missing} is missing: make {arguments[0]} ")
    assert checkout.calls == []


@pytest.mark.processes
def test_install_happens_once_with_every_version_constrained(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, installed=False)
    assert checkout.make("test").returncode == 0
    version_check, venv, *installs, tests = checkout.calls
    assert version_check[0] == "-c"
    assert venv == ["-m", "venv", ".venv"]
    assert all(call[:3] == ["-m", "pip", "install"] and call[4:6] == ["-c", "constraints.txt"] for call in installs)
    assert [call[6:] for call in installs] == [
        ["cython", "numpy", "setuptools", "wheel"],
        ["--no-build-isolation", "fast-slic"],
        ["--no-build-isolation", "-e", ".[dev]"],
    ]
    assert tests == ["-m", "pytest", "-m", "not slow and not system and not gpu"]
    checkout.make("test", "TESTS=", "PYTEST_ARGS=-q --durations=3")
    assert checkout.calls == [["-m", "pytest", "-m", "", "-q", "--durations=3"]]


@pytest.mark.processes
def test_other_versions_can_be_installed_elsewhere(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, installed=True)
    assert checkout.make("test", "VENV=.venv-old", f"CONSTRAINTS={ODD}").returncode == 0
    _, venv, *installs, tests = checkout.calls
    assert venv == ["-m", "venv", ".venv-old"]
    assert {tuple(call[4:6]) for call in installs} == {("-c", ODD)}
    assert tests[:2] == ["-m", "pytest"]


@pytest.mark.processes
def test_a_failed_install_leaves_no_valid_stamp(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path, installed=True)
    os.utime(tmp_path / "constraints.txt", (2**31, 2**31))
    shutil.rmtree(tmp_path / ".venv" / "bin")
    assert checkout.make("test", FAIL="1").returncode != 0
    assert not (tmp_path / ".venv" / ".installed").exists()


@pytest.mark.processes
def test_without_a_goal_the_verbs_are_printed(checkout: Checkout) -> None:
    done = checkout.make()
    assert checkout.calls == []
    verbs = (
        "demo shards preview pretrain export results eval-voc eval-x eval-frozen features test quick fuzz lint bench "
        "gpu-day evidence-demo mutants"
    )
    for verb in verbs.split():
        assert f"make {verb}" in done.stdout


def test_constraints_are_plain_pins() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(name and version and "/" not in line for line in lines for name, _, version in [line.partition("==")])
    assert "fast-slic==0.4.0" in lines
