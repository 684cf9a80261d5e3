"""What the benchmarks share: scripted servers in processes of their own, and common options."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# The environment of a brain that has no side models: what is measured is something else.
SIDES_OFF = {f"LIMBIC__SIDECARS__{name}__MODE": "off" for name in ("CAHM", "LVM")}


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """An argument parser with ``--json`` and ``--seed``; the first line of ``doc`` describes it."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    return parser


def show_progress(text: str) -> None:
    """One changing line on stderr, when that is a terminal; an empty text ends it."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}" if text else "", end="" if text else "\n", file=sys.stderr)


@contextmanager
def scripted_server(
    *, tokens: int, token_ms: float, ttft_ms: float = 0.0, plain: bool = False
) -> Iterator[str]:
    """The scripted OpenAI server as its own process; yields its address. ``plain``: it has no
    prefill and no tokenize route, like other OpenAI-compatible servers."""
    options = ["--tokens", str(tokens), "--token-ms", str(token_ms), "--ttft-ms", str(ttft_ms)]
    options += ["--plain"] if plain else []
    with _program("tests.fakes.llm_server", options) as url:
        yield url


@contextmanager
def side_models(*, delay_ms: float | None) -> Iterator[str]:
    """Scripted affect and foresight models as one process; ``None``: they never answer."""
    options = ["--never"] if delay_ms is None else ["--delay-ms", str(delay_ms)]
    with _program("benchmarks.side_models", options) as url:
        yield url


@contextmanager
def _program(module: str, options: list[str]) -> Iterator[str]:
    command = [sys.executable, "-m", module, *options]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        yield f"http://127.0.0.1:{int(server.stdout.readline().split()[1])}"
    finally:
        server.terminate()
        server.wait()
