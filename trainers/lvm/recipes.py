"""Recipe files: one TOML reproduces one row of the results. Unknown keys are errors."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

from brain.errors import ConfigError


@dataclass
class Recipe:
    """Our two-head recipe.

    ``share`` weights the stores, in the order they are given (how often a document of it is drawn
    per epoch). ``target_mrr`` and ``target_hit`` are the wished ratios over the best baseline;
    the rank head's checkpoint is chosen by the mean of the two ratios, each over its target.
    ``dev_share`` of the training documents are held out to choose epochs by; with 0 the split that
    is reported chooses them. ``toward_scalars`` starts the vector head from a ridge whose penalty
    draws it to the five scalars, not to zero. ``density`` is how many training windows of the first
    store fit how much the candidates' density counts against them; 0 leaves it out.
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
    toward_scalars: bool = False
    dev_share: float = 0.0
    density: int = 6_000
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


def mistakes(kind: type, values: dict[str, Any], path: Path) -> list[str]:
    """What cannot be a recipe of this kind: unknown keys, and values of another type than the
    default's."""
    known = {f.name: f for f in fields(kind)}
    problems = [f"{path}: unknown key {key!r}" for key in values if key not in known]
    for name, given in values.items():
        if name not in known:
            continue
        field_ = known[name]
        wanted: type = str
        if field_.default is not MISSING:
            wanted = type(field_.default)
        elif field_.default_factory is not MISSING:
            wanted = type(field_.default_factory())
        if type(given) is not wanted and not (wanted is float and type(given) is int):
            word = {int: "a whole number", float: "a number", str: "text", bool: "true or false",
                    list: "a list", dict: "a table"}[wanted]  # fmt: skip
            problems.append(f"{path}: {name} must be {word}, not {given!r}")
    return problems


def two_heads(values: dict[str, Any], path: Path) -> Recipe:
    """A checked recipe from a file's values."""
    if problems := mistakes(Recipe, values, path):
        raise ConfigError(*problems)
    for part, shape in (("vector", VECTOR_SHAPE), ("rank", RANK_SHAPE)):
        given = values.get(part, {})
        problems += [f"{path}: unknown key {part}.{k}" for k in given if k not in shape]
        problems += [
            f"{path}: {part}.{k} must be a whole number, not {v!r}"
            for k, v in given.items()
            if type(v) is not int
        ]
        values = values | {part: shape | given}
    if problems:
        raise ConfigError(*problems)
    recipe = Recipe(**({"name": path.stem} | values))
    for network in (recipe.vector, recipe.rank):
        if network["hidden"] % network["heads"]:
            raise ConfigError(f"{path}: hidden must be a multiple of heads")
    return recipe


@dataclass
class Tripwire:
    """After ``epoch``: if ``metric`` is under ``below``, ``set`` these terms from then on."""

    epoch: int
    metric: str
    below: float
    set: dict[str, float]


TERMS: dict[str, float] = {
    "mse": 1.0,
    "roll": 0.0,
    "horizon": 3,
    "direction": 0.0,
    "adaptive": 0,
    "future": 0.0,
}


@dataclass
class Guarded:
    """A recipe of the earlier line: one vector, MSE and weighted guards in stages.

    ``stage`` entries set terms from an epoch on; tripwires override stages for good. After an
    epoch whose cosine or margin is under the best epoch's by more than ``rollback_*`` the best
    weights come back and the rate is halved. ``parameters`` is the size that the network's width
    follows from; 0 means the architecture's own width.
    """

    name: str
    kind: str = "guarded"
    architecture: str = "gru"
    parameters: int = 0
    epochs: int = 20
    batch: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.01
    dropout: float = 0.1
    context_dropout: float = 0.0
    temporal: bool = True
    causal: bool = False
    residual: float = 0.0
    direction_margin: float = 0.01
    future_margin: float = 0.008
    rollback_cosine: float = 0.03
    rollback_margin: float = 0.10
    full_check_every: int = 1
    seed: int = 0
    stage: list[dict[str, float]] = field(default_factory=list)
    tripwire: list[Tripwire] = field(default_factory=list)

    def terms(self, epoch: int, overrides: dict[str, float]) -> dict[str, float]:
        """The weights that hold in this epoch (the first is 1)."""
        terms = dict(TERMS)
        for stage in self.stage:
            if epoch >= stage["from"]:
                terms.update({k: v for k, v in stage.items() if k != "from"})
        return terms | overrides


def guarded(values: dict[str, Any], path: Path) -> Guarded:
    """A checked recipe of kind ``guarded``."""
    if problems := mistakes(Guarded, values, path):
        raise ConfigError(*problems)
    for stage in values.get("stage", []):
        problems += [f"{path}: unknown term {k!r}" for k in stage if k not in TERMS | {"from": 1}]
        if "from" not in stage:
            problems.append(f"{path}: a stage lacks 'from'")
    wires = []
    for wire in values.get("tripwire", []):
        try:
            wires.append(Tripwire(**wire))
        except TypeError as error:
            problems.append(f"{path}: tripwire: {error}")
            continue
        problems += [f"{path}: unknown term {k!r}" for k in wires[-1].set if k not in TERMS]
        if wires[-1].metric not in ("cosine", "margin"):
            problems.append(f"{path}: a tripwire watches cosine or margin")
    if problems:
        raise ConfigError(*problems)
    return Guarded(**({"name": path.stem} | values | {"tripwire": wires}))


@dataclass
class Linear:
    """The small network of ``sidecars.lvm_linear``: few parameters, fitted without steps.

    ``groups`` are the edges of the groups of principal axes, the last one D. ``windows`` is the
    most that one document gives, so that long ones do not rule. ``dev_share`` of the training
    documents are held out and measured by themselves; ``seed`` draws the windows.
    """

    name: str
    kind: str = "linear"
    groups: list[int] = field(default_factory=lambda: [0, 384])
    neighbours: int = 9
    windows: int = 100
    vector_penalty: float = 1e-3
    rank_penalty: float = 1e-3
    iterations: int = 100
    dev_share: float = 0.0
    seed: int = 0


def linear(values: dict[str, Any], path: Path) -> Linear:
    """A checked recipe of kind ``linear``."""
    if problems := mistakes(Linear, values, path):
        raise ConfigError(*problems)
    edges = values.get("groups", [0, 384])
    if len(edges) < 2 or edges[0] != 0 or any(a >= b for a, b in pairwise(edges)):
        problems.append(f"{path}: groups must rise from 0")
    if problems:
        raise ConfigError(*problems)
    return Linear(**({"name": path.stem} | values))


def load(path: Path) -> Recipe | Guarded | Linear:
    """The recipe of a file, by its ``kind``."""
    values = read_toml(path)
    kinds: dict[str, Callable[[dict[str, Any], Path], Recipe | Guarded | Linear]] = {
        "two-heads": two_heads, "guarded": guarded, "linear": linear,
    }  # fmt: skip
    kind = values.get("kind", "two-heads")
    if kind not in kinds:
        raise ConfigError(f"{path}: kind must be one of {', '.join(kinds)}, not {kind!r}")
    return kinds[kind](values, path)
