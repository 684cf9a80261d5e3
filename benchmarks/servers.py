"""What the benchmarks share: a scripted server in a process of its own, and common options."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser with ``--json`` and ``--seed``; the first line of ``doc`` describes it."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    return parser


@contextmanager
def scripted_server(
    *, tokens: int, token_ms: float, first_ms: float | None = None
) -> Iterator[str]:
    """The scripted OpenAI server as its own process; yields its address."""
    command = [sys.executable, "-m", "tests.fakes.llm_server"]
    command += ["--tokens", str(tokens), "--token-ms", str(token_ms)]
    if first_ms is not None:
        command += ["--first-ms", str(first_ms)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline().split()[1])}"
    finally:
        server.terminate()
        server.wait()
