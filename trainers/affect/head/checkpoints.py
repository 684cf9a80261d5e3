"""Checkpoints of a head in training: written whole, with the random numbers to go on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def rng_state() -> dict[str, Tensor]:
    """The state of PyTorch's random numbers, for a checkpoint: a run that goes on from it drops out
    what it would have dropped."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def set_rng_state(state: dict[str, Tensor] | None) -> None:
    """Go on from ``rng_state``; checkpoints of earlier versions hold none."""
    if state is None:
        return
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def save(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint, whole or not at all."""
    part = path.with_suffix(".part")
    torch.save(state, part)
    part.replace(path)


def done_with(run: Path, name: str) -> None:
    """Remove the checkpoint of a model whose results are kept, or are not worth keeping."""
    (run / f"{name}.ckpt").unlink(missing_ok=True)
