"""Recipe files: one TOML reproduces one row of the results. Unknown keys are errors."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from brain.errors import ConfigError


@dataclass
class Recipe:
    """Our two-head recipe.

    ``share`` weights the stores, in the order they are given (how often a document of it is drawn
    per epoch). ``target_mrr`` and ``target_hit`` are the wished ratios over the best baseline;
    the rank head's checkpoint is chosen by the mean of the two ratios, each over its target.
    """

    name: str
    kind: str = "two-heads"
    epochs: int = 40
    batch: int = 4096
    lr: float = 1e-3
    skip_lr: float = 5e-5
    weight_decay: float = 0.05
    warmup: float = 0.05
    ema: float = 0.995
    vector_dropout: float = 0.2
    rank_dropout: float = 0.25
    own_weight: float = 1.0
    ridge: float = 0.03
    seed: int = 0
    target_mrr: float = 1.15
    target_hit: float = 1.3
    share: list[float] = field(default_factory=list)
    vector: dict[str, int] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)


VECTOR_SHAPE = {"hidden": 256, "layers": 1, "heads": 4, "ff": 1024}
RANK_SHAPE = {
    "hidden": 256,
    "layers": 2,
    "heads": 4,
    "ff": 1024,
    "queries": 8,
    "candidate_hidden": 512,
    "bilinear_heads": 4,
    "bilinear_rank": 64,
    "mix": 32,
}


def read_toml(path: Path) -> dict[str, Any]:
    """The file as a dict; ConfigError (exit 78) where it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error


def two_heads(values: dict[str, Any], path: Path) -> Recipe:
    """A checked recipe from a file's values."""
    known = {f.name for f in fields(Recipe)}
    problems = [f"{path}: unknown key {key!r}" for key in values if key not in known]
    for part, shape in (("vector", VECTOR_SHAPE), ("rank", RANK_SHAPE)):
        given = values.get(part, {})
        problems += [f"{path}: unknown key {part}.{k}" for k in given if k not in shape]
        values = values | {part: shape | given}
    if problems:
        raise ConfigError(*problems)
    recipe = Recipe(**({"name": path.stem} | values))
    for part in (recipe.vector, recipe.rank):
        if part["hidden"] % part["heads"]:
            raise ConfigError(f"{path}: hidden must be a multiple of heads")
    return recipe
