"""The brain stays light: what importing it may bring in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {
    "torch", "transformers", "peft", "sentence_transformers", "llama_cpp", "vec2text", "numpy",
    "onnxruntime", "polars", "sklearn", "sidecars", "trainers",
}  # fmt: skip


def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("name", ["brain.app", "brain.web", "brain.cli.chat", "brain.cli.serve"])
def test_the_running_brain_loads_no_model_library(name: str) -> None:
    assert not modules_after(f"import {name}") & HEAVY


def test_help_loads_next_to_nothing() -> None:
    loaded = modules_after(
        "import contextlib, io\nfrom brain.cli import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    cli.main(['--help'], standalone_mode=False)"
    )
    assert not loaded & (HEAVY | {"aiohttp", "pydantic", "prompt_toolkit", "structlog"})


def test_a_sidecar_without_a_decoder_loads_no_torch() -> None:
    assert not modules_after("import sidecars.llm") & {"torch", "transformers", "vec2text"}


@pytest.mark.parametrize("name", ["state", "behaviour", "prompt", "schema"])
def test_pure_modules_read_no_clock_and_do_no_input_output(name: str) -> None:
    source = (ROOT / "brain" / f"{name}.py").read_text()
    for word in ("import time", "import os", "import asyncio", "open(", "datetime", "random"):
        assert word not in source, f"brain/{name}.py: {word}"
