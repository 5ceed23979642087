"""The part `pytest`: the project's tests that need a GPU."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.gpu.places import DRY, ROOT
from tests.gpu.telling import tell

MARK = "pytest.mark.gpu"


def main() -> None:
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    # collecting all of tests/ would need ray, moto and more
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    print(done.stdout, done.stderr)
    passed = sum(map(int, re.findall(r"(\d+) passed", done.stdout)))
    ok = bool(files) and done.returncode == 0 and (passed > 0 or DRY)
    last = [line for line in done.stdout.splitlines() if line.strip()][-12:]
    names = [str(path.relative_to(ROOT)) for path in files]
    tell("pytest -m gpu", ok=ok, exit=done.returncode, passed=passed, files=names, said=last)


if __name__ == "__main__":
    main()
