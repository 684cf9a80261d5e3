"""Training state on disk, and averaged weights.

The state is read with ``weights_only``, so that a checkpoint can hold tensors and numbers only.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from brain.errors import ArtifactCorrupt

LAST = "last.pt"


M = TypeVar("M", bound=nn.Module)


class Average(Generic[M]):
    """Exponential moving average of a module; ``module`` is the averaged copy, in eval mode."""

    def __init__(self, module: M, decay: float) -> None:
        self.decay, self.steps = decay, 0
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: M) -> None:
        """One step; the decay ramps up, so that early weights are forgotten quickly."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        mine: list[Tensor] = list(self.module.parameters())
        theirs: list[Tensor] = list(module.parameters())
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write atomically: a killed run leaves the state before."""
    temporary = folder / (LAST + ".part")
    torch.save(state, temporary)
    temporary.replace(folder / LAST)


def load(folder: Path, device: str) -> dict[str, Any] | None:
    """The last state, or None where there is none."""
    path = folder / LAST
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ArtifactCorrupt(f"{path} is not a usable checkpoint; delete it to start over") from (
            error
        )
    return state


def to_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """A detached copy of the weights."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
