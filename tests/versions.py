"""`make test-versions`: the tests with the oldest versions that pyproject.toml admits, and with the newest, by Python.

Each row of its table has an environment of its own in build/versions/. A Python that is not on this machine is a line
that says so. torch from the package index brings CUDA, several GB an environment; `--torch REQUIREMENT` names another.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
ENVIRONMENTS = ROOT / "build" / "versions"
TESTS = ["tests/convert", "tests/loader", "tests/shards", "tests/trainer"]
FOR_TESTS = ("pytest", "pytest-xdist", "hypothesis")  # of the extra `dev`
SHOWN = ("torch", "numpy", "datasets", "webdataset", "pyarrow", "pillow", "click")
LIST = "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"


def required() -> list[str]:
    """What the base install and these tests require, as pyproject.toml says it."""
    dev = PROJECT["optional-dependencies"]["dev"]
    return PROJECT["dependencies"] + [r for r in dev if re.split(r"[<>=\[]", r)[0] in FOR_TESTS]


def oldest(requirements: list[str]) -> list[str]:
    """Every lower bound as a pin: `torch>=2.6` becomes `torch==2.6`."""
    if odd := [r for r in requirements if not re.fullmatch(r"[\w-]+>=[\d.]+", r)]:
        raise ValueError(f"wants a lower bound and nothing else: {odd}")
    return [r.replace(">=", "==") for r in requirements]


def interpreter(version: str) -> str | None:
    """The path of this Python, if it is on this machine: on PATH, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for path in [shutil.which(f"python{version}"), *sorted(map(str, pyenv.glob(f"{version}.*/bin/python")))]:
        if path and subprocess.run([path, "-c", "import venv"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def run_row(version: str, which: str, torch: str | None, tests: list[str]) -> bool | None:
    """Install and test; prints one row. Returns whether all tests passed, None without this Python."""
    say = f"| {version} | {which} |".__add__
    base = interpreter(version)
    if base is None:
        print(say(" not run: this Python is not on this machine | - |"), flush=True)
        return None
    environment = ENVIRONMENTS / f"{version}-{which}"
    shutil.rmtree(environment, ignore_errors=True)
    subprocess.run([base, "-m", "venv", environment], check=True)
    python, log = str(environment / "bin" / "python"), environment / "log"
    pins = oldest(required()) if which == "oldest" else [torch] if torch else []
    (environment / "constraints").write_text("\n".join(pins) + "\n")
    wanted = [r for r in required() if r not in PROJECT["dependencies"]]
    with open(log, "w") as out:
        install = [python, "-m", "pip", "install", "-c", environment / "constraints", "-e", ROOT, *wanted]
        if subprocess.run(install, stdout=out, stderr=out, check=False).returncode:
            print(say(f" does not install: see {log.relative_to(ROOT)} | - |"), flush=True)
            return False
        test = [python, "-m", "pytest", "-q", "-n", "2", *tests]
        passed = subprocess.run(test, cwd=ROOT, stdout=out, stderr=out, check=False).returncode == 0
    versions = subprocess.run([python, "-c", LIST, *SHOWN], capture_output=True, text=True, check=True).stdout.strip()
    end = log.read_text().rstrip().splitlines()[-1].strip("= ")
    print(say(f" {versions} | {end}{'' if passed else f': see {log.relative_to(ROOT)}'} |"), flush=True)
    return passed


def main() -> int:
    rows = [f"{PYTHONS[0]}-oldest", *(f"{version}-newest" for version in PYTHONS)]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(rows)} (default: all)")
    parser.add_argument("--torch", metavar="REQUIREMENT", help="torch of the newest rows, as pip takes it")
    parser.add_argument("--tests", nargs="+", default=TESTS, metavar="PATH", help=f"(default: {' '.join(TESTS)})")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(rows):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(rows)}")
    print("| Python | versions | installed | tests |\n|---|---|---|---|", flush=True)
    results = [run_row(*row.split("-"), args.torch, args.tests) for row in args.rows or rows]
    return 1 if False in results else 0


if __name__ == "__main__":
    sys.exit(main())
