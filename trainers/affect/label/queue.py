"""Which row comes next: expected value with quotas per cell, and blind repeats.

The value of asking about a row is how far model and label are apart, divided by how sure the label
is. A row with no label yet counts the model's own spread over its confidence instead. Cells keep
the set balanced: the least filled cell goes first, and rows past a cell's quota come last.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from trainers.affect.label.items import Item
from trainers.affect.label.resolve import DEFAULT_POLICY, gaps, mean_label
from trainers.affect.label.scorer import ModelScore
from trainers.affect.label.state import LabelState
from trainers.affect.rows import AXES, Axis

Mode = Literal["label", "second", "resolve"]
CellKind = Literal["bands", "tag"]

DEFAULT_QUOTA = 100
DEFAULT_REPEAT_SHARE = 0.05
_CONFIDENCE_FLOOR = 0.1
_BAND = 0.25
#: A blind repeat is never one of the rater's last few rows: those are remembered, not re-read.
_REPEAT_DISTANCE = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """A place in the queue: the row, what asking is worth, its cell, and why, for people."""

    row: str
    value: float
    cell: str
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How to order: what kind of cell, how many rows each should get, and the seed of all ties."""

    mode: Mode = "label"
    cells: CellKind = "bands"
    quota: int = DEFAULT_QUOTA
    quotas: Mapping[str, int] | None = None
    seed: int = 0

    def quota_of(self, cell: str) -> int:
        return (self.quotas or {}).get(cell, self.quota)


def stable_fraction(*parts: object) -> float:
    """A number in [0, 1) that depends on `parts` only: chance that a rerun repeats."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def band_cell(scores: Mapping[Axis, float]) -> str:
    """Low, middle or high on each axis, such as ``V- I+ T0``; ``?`` where nobody measured."""

    def band(axis: Axis) -> str:
        if axis not in scores:
            return "?"
        return "-" if scores[axis] < -_BAND else "+" if scores[axis] > _BAND else "0"

    return " ".join(f"{axis[0].upper()}{band(axis)}" for axis in AXES)


def _cell(item: Item, tags: Iterable[str], scores: Mapping[Axis, float], kind: CellKind) -> str:
    if kind == "tag":
        return next(iter(tags), None) or item.intended or next(iter(item.tags), "none")
    return band_cell(scores)


def _reference(
    state: LabelState, item: Item
) -> tuple[Mapping[Axis, float], float | None, tuple[str, ...]]:
    """The label there is to check: the raters' mean, or the scores the row came with."""
    labels = state.labels(item.id)
    if labels:
        mean = mean_label(labels)
        return dict(zip(AXES, mean.scores, strict=True)), mean.confidence, mean.tags
    return item.prior, item.confidence, item.tags


def value_of(
    reference: Mapping[Axis, float], confidence: float | None, model: ModelScore | None
) -> tuple[float, str]:
    """(expected value, reason). Disagreement is the mean absolute difference over shared axes."""
    shared = [
        axis for axis in AXES if model is not None and axis in model.scores and axis in reference
    ]
    if model is None:
        return 0.0, "no model score"
    if not shared:
        value = model.spread / max(model.confidence, _CONFIDENCE_FLOOR)
        return value, f"unlabelled, model spread {model.spread:.2f}"
    differences = {axis: abs(model.scores[axis] - reference[axis]) for axis in shared}
    disagreement = sum(differences.values()) / len(shared)
    sure = max(0.5 if confidence is None else confidence, _CONFIDENCE_FLOOR)
    worst = max(differences, key=lambda axis: differences[axis])
    reason = f"{worst} differs by {differences[worst]:.2f} from the model, confidence {sure:.2f}"
    return disagreement / sure, reason


def _waiting(state: LabelState, rater: str, mode: Mode) -> list[Item]:
    """Items that this rater may still be asked about in this mode."""
    if mode == "resolve":
        return [
            item
            for row, item in state.items.items()
            if not state.resolution(row)[0]
            and len(labels := state.labels(row)) >= 2
            and max(gaps(labels).values()) > DEFAULT_POLICY.max_gap
        ]
    fresh = [item for row, item in state.items.items() if state.value("label", row, rater) is None]
    if mode == "second":
        return [item for item in fresh if state.labels(item.id)]
    return fresh


def ranked(
    state: LabelState, rater: str, scores: Mapping[str, ModelScore], plan: Plan
) -> list[Entry]:
    """All rows that wait for `rater`, best first. Depends on its arguments only."""
    filled: dict[str, int] = {}
    for row, item in state.items.items():
        done = state.value("label", row, rater) is not None
        if done and plan.mode != "resolve":
            reference, _, tags = _reference(state, item)
            cell = _cell(item, tags, reference, plan.cells)
            filled[cell] = filled.get(cell, 0) + 1
    by_cell: dict[str, list[tuple[float, float, Entry]]] = {}
    for item in _waiting(state, rater, plan.mode):
        reference, confidence, tags = _reference(state, item)
        model = scores.get(item.id)
        value, reason = value_of(reference, confidence, model)
        if plan.mode == "resolve":
            gap = gaps(state.labels(item.id))
            axis = max(gap, key=lambda name: gap[name])
            reason = f"raters differ by {gap[axis]:.2f} on {axis}"
        where = reference or (model.scores if model else {})
        entry = Entry(item.id, round(value, 6), _cell(item, tags, where, plan.cells), reason)
        tie = stable_fraction(plan.seed, item.id)
        by_cell.setdefault(entry.cell, []).append((-entry.value, tie, entry))
    return interleave(by_cell, filled, plan)


def interleave(
    by_cell: dict[str, list[tuple[float, float, Entry]]], filled: dict[str, int], plan: Plan
) -> list[Entry]:
    """Take from the least filled cell each time; equal cells by value, then by chance."""
    for waiting in by_cell.values():
        waiting.sort(key=lambda entry: entry[:2], reverse=True)  # best last, so that pop takes it

    def place(cell: str) -> tuple[bool, float, float, float, str]:
        taken, quota = filled.get(cell, 0), plan.quota_of(cell)
        value, tie, _ = by_cell[cell][-1]
        full = taken >= quota
        return (full, 0.0 if full else taken / quota, value, tie, cell)

    heap = [place(cell) for cell in by_cell]
    heapq.heapify(heap)
    order = []
    while heap:
        cell = heapq.heappop(heap)[-1]
        order.append(by_cell[cell].pop()[-1])
        filled[cell] = filled.get(cell, 0) + 1
        if by_cell[cell]:
            heapq.heappush(heap, place(cell))
    return order


def repeats_due(labelled: int, share: float, rater: str, seed: int) -> int:
    """How many blind repeats a rater with `labelled` rows should have had.

    One in each block of ``1/share`` rows, at a place in the block that cannot be foreseen.
    """
    if share <= 0:
        return 0
    block = max(1, round(1 / share))
    whole, rest = divmod(labelled, block)
    return whole + (rest > int(stable_fraction("repeat", seed, rater, whole) * block))


def repeat_row(state: LabelState, rater: str, share: float, seed: int) -> str | None:
    """The row to ask again now, or None. It is never a recent one and never asked a third time."""
    labelled = state.labelled_by(rater)
    asked = [row for row in state.items if state.value("repeat", row, rater) is not None]
    if len(asked) >= repeats_due(len(labelled), share, rater, seed):
        return None
    done = set(asked)
    old = [row for row in labelled[:-_REPEAT_DISTANCE] if row not in done]
    return min(old, key=lambda row: stable_fraction("pick", seed, rater, row), default=None)
