"""What the tests of clients share: packages from the npm registry and from PyPI, skipped tests, and the table of calls."""
import os, subprocess, sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NODE = ROOT / "target" / "node"


def install(*packages):
    """Installs packages from the npm registry; returns the directory."""
    NODE.mkdir(parents=True, exist_ok=True)
    name = lambda package: package[:1] + package[1:].split("@")[0]
    if missing := [package for package in packages if not (NODE / "node_modules" / name(package)).exists()]:
        subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", *missing], cwd=NODE, check=True)
    return NODE


def install_program(package):
    """Installs a Python program with its dependencies in an environment of its own; returns the directory of its commands."""
    home = ROOT / "target" / f"venv-{package}"
    done = home / "complete"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        subprocess.run([home / "bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", package], check=True)
        done.touch()
    return home / "bin"


def skip(script, test, tool):
    """Reports a skipped test, as kernels/tests/common/skip.rs does."""
    line = f"skipped: {script} {test}, needs {tool}\n"
    sys.stderr.write(line)
    if path := os.environ.get("KIMI_TEST_SKIPPED"):
        with open(path, "a") as file:
            file.write(line)


class Table:
    """The calls of all clients, printed as they come."""

    def __init__(self):
        print(f"{'client':<14} {'call':<26} {'status':>6} {'prompt':>7} {'reused':>7}", flush=True)

    def row(self, client, call, status, prompt=None, reused=None):
        number = lambda n: "" if n is None else f"{n:,}"
        print(f"{client:<14} {call:<26} {status:>6} {number(prompt):>7} {number(reused):>7}", flush=True)
