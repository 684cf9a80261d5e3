"""How soon ``limbic`` answers, and how much memory the brain takes.

``limbic --help``: from process start to exit. ``limbic chat``: from process start to the prompt, on
a pseudo-terminal with an empty data directory, while the real chat model begins to load beside it;
resident memory of the brain's process at the prompt and after one turn. Medians.

Run:  python -m benchmarks.startup [--json] [--check]
Exit: 0, or with ``--check`` 1 when a target is missed (0.3 s, 1.5 s, 80 MB).
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson
import pexpect

from benchmarks.servers import parser_of, show_progress

HELP_S, PROMPT_S, RESIDENT_MB = 0.3, 1.5, 80.0
PROMPT = "you>"
CURSOR_QUESTION, CURSOR_ANSWER = "\x1b[6n", "\x1b[1;1R"


def help_s() -> float:
    """Seconds of one ``limbic --help``."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "brain", "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def python_s() -> float:
    """Seconds of an interpreter that does nothing, for comparison."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    return time.perf_counter() - began


def resident_mb(pid: int) -> float:
    """Resident memory of a process (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"no resident size for process {pid}")


def until_prompt(child: Any) -> None:
    """Wait for the prompt as a terminal does: it answers where its cursor is."""
    while child.expect_exact([PROMPT, CURSOR_QUESTION]) == 1:
        child.send(CURSOR_ANSWER)


def chat(*, speak: bool) -> dict[str, float]:
    """One start of ``limbic chat``; with ``speak`` also one turn."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {**os.environ, "LIMBIC__PATHS__DATA": folder, "TERM": "xterm-256color"}
        environ.pop("LIMBIC_CONFIG", None)
        began = time.perf_counter()
        child = pexpect.spawn(
            sys.executable, ["-m", "brain", "chat"], env=environ, timeout=120, encoding="utf-8"
        )
        try:
            until_prompt(child)
            found = {"prompt_s": time.perf_counter() - began, "prompt_mb": resident_mb(child.pid)}
            if speak:
                child.sendline("Hello there")
                child.expect_exact("first token")
                until_prompt(child)
                found["turn_mb"] = resident_mb(child.pid)
            child.sendcontrol("d")
            child.expect(pexpect.EOF)
        finally:
            child.close(force=True)
        return found


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")
    args = parser.parse_args(argv)
    help_s()  # compiles what is not compiled yet
    helps, pythons, starts = [], [], []
    for number in range(args.repeats):
        helps.append(help_s())
        pythons.append(python_s())
        starts.append(chat(speak=number == 0))
        show_progress(f"{number + 1}/{args.repeats} starts")
    show_progress("")
    result: dict[str, Any] = {
        "python_s": round(statistics.median(pythons), 3),
        "help_s": round(statistics.median(helps), 3),
        "prompt_s": round(statistics.median(s["prompt_s"] for s in starts), 3),
        "prompt_mb": round(statistics.median(s["prompt_mb"] for s in starts), 1),
        "turn_mb": round(starts[0]["turn_mb"], 1),
        "repeats": args.repeats,
    }
    if args.json:
        print(orjson.dumps(result).decode())
    else:
        print(
            f"limbic --help {result['help_s']:.2f} s (python alone {result['python_s']:.2f} s);"
            f" limbic chat to prompt {result['prompt_s']:.2f} s; brain"
            f" {result['prompt_mb']:.0f} MB at the prompt, {result['turn_mb']:.0f} MB after a turn"
        )
    missed = (
        result["help_s"] > HELP_S
        or result["prompt_s"] > PROMPT_S
        or max(result["prompt_mb"], result["turn_mb"]) > RESIDENT_MB
    )
    return int(args.check and missed)


if __name__ == "__main__":
    sys.exit(main())
