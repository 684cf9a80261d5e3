"""Training state on disk, and averaged weights.

The state is read with ``weights_only``, so that a checkpoint can hold tensors and plain types only.
Its ``header`` says of which run it is: recipe and data, as nested dicts.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from brain.errors import ArtifactCorrupt, ConfigError

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


def load(folder: Path, device: str, header: dict[str, Any]) -> dict[str, Any] | None:
    """The last state, or None where there is none.

    Raises:
        ArtifactCorrupt: the file cannot be read.
        ConfigError: the state is of another run than ``header`` says, or says of none.
    """
    path = folder / LAST
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ArtifactCorrupt(f"{path} is not a usable checkpoint; delete it to start over") from (
            error
        )
    if "header" not in state:
        raise ConfigError(
            f"{path} is of an earlier version that did not keep its recipe and data, so it cannot "
            "be gone on from; delete it to start over"
        )
    if found := differences(state["header"], header):
        raise ConfigError(
            f"{path} is of another run: {', '.join(found)}; delete it to start over, or give "
            "another --out"
        )
    return state


def differences(was: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two headers, each as ``recipe.batch is 64, was 32``."""
    if isinstance(was, dict) and isinstance(now, dict):
        found = []
        for key in sorted({*was, *now}):
            path = f"{name}.{key}" if name else str(key)
            found += differences(was.get(key), now.get(key), path)
        return found
    return [] if was == now else [f"{name} is {_short(now)}, was {_short(was)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def to_cpu(module: nn.Module) -> dict[str, torch.Tensor]:
    """A detached copy of the weights."""
    return {name: value.detach().cpu().clone() for name, value in module.state_dict().items()}
