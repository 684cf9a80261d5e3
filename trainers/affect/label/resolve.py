"""Several raters' labels to one row, and a log to the labelled set.

Scores within `max_gap` on every axis are averaged. A larger gap puts the row in the dispute queue
until somebody resolves or drops it; nothing disputed is ever in the set. The result depends on the
log and the policy only, so writing it again gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from trainers.affect.label.items import Item, Label
from trainers.affect.label.state import LabelState, slot_key
from trainers.affect.rows import ARCHETYPES, AXES, FLAGS, AffectRow

DEFAULT_LICENCE = "Apache-2.0"
#: Added when any rater gives them: a missed one costs more than a spare one.
_UNION_TAGS = frozenset({"safety_edge", *FLAGS})


@dataclass(frozen=True, slots=True)
class Policy:
    """`max_gap` on any axis, inclusive; `min_raters` labels before a row counts."""

    max_gap: float = 0.5
    min_raters: int = 2


DEFAULT_POLICY = Policy()


@dataclass(slots=True)
class Outcome:
    """Every row of a log, by what has become of it."""

    rows: list[AffectRow] = field(default_factory=list)
    disputed: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    pending: list[str] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        return {
            "resolved": len(self.rows),
            "disputed": len(self.disputed),
            "dropped": len(self.dropped),
            "pending": len(self.pending),
        }


def gaps(labels: Mapping[str, Label]) -> dict[str, float]:
    """The largest difference between any two raters, per axis."""
    found: dict[str, float] = {}
    for axis in AXES:
        scores = [getattr(label, axis) for label in labels.values()]
        found[axis] = round(max(scores) - min(scores), 4)
    return found


def merged_tags(labels: Mapping[str, Label]) -> tuple[str, ...]:
    """Archetypes most raters give, or else the surest rater's; `safety_edge` and flags: any's."""
    votes = list(labels.values())
    kept = {tag for tag in _UNION_TAGS if any(tag in vote.tags for vote in votes)}
    plain = [tag for tag in ARCHETYPES if tag not in _UNION_TAGS]
    majority = {tag for tag in plain if 2 * sum(tag in vote.tags for vote in votes) > len(votes)}
    if not majority:
        surest = max(sorted(labels), key=lambda who: labels[who].confidence)
        majority = set(plain).intersection(labels[surest].tags)
    return tuple(tag for tag in (*ARCHETYPES, *FLAGS) if tag in kept | majority)


def mean_label(labels: Mapping[str, Label]) -> Label:
    """The average of the raters, tags by `merged_tags`."""
    count = len(labels)
    mean = {
        axis: round(sum(getattr(label, axis) for label in labels.values()) / count, 4)
        for axis in (*AXES, "confidence")
    }
    return Label(**mean, tags=merged_tags(labels))


def _row(item: Item, label: Label, source: str, guideline: str) -> AffectRow:
    return AffectRow(
        id=item.id,
        text=item.text,
        context=item.context,
        valence=label.valence,
        intimacy=label.intimacy,
        tension=label.tension,
        confidence=label.confidence,
        tags=label.tags,
        quality=item.quality if item.quality in ("gold", "exemplar") else "clean",
        source=source,
        licence=item.licence or DEFAULT_LICENCE,
        origin=item.origin or item.source,
        origin_split=item.origin_split,
        guideline=guideline,
        frame=item.frame,
        session_id=item.session_id,
        thread=item.thread,
        pair=item.pair,
        pair_axis=item.pair_axis,
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def resolve(state: LabelState, policy: Policy = DEFAULT_POLICY) -> Outcome:
    """Decide every row of a log. Rows come out in the order of their ids."""
    outcome = Outcome()
    for row in sorted(state.items):
        item = state.items[row]
        resolved, final = state.resolution(row)
        if resolved:
            if final is None:
                outcome.dropped.append(row)
                continue
            who = state.resolver[row]
            version = state.guidelines[slot_key("resolution", row, who)]
            source = "llm_label" if state.raters.get(who) == "llm" else "human"
            outcome.rows.append(_row(item, final, source, version))
            continue
        labels = state.labels(row)
        if len(labels) < policy.min_raters:
            outcome.pending.append(row)
        elif max(gaps(labels).values()) > policy.max_gap:
            outcome.disputed.append(row)
        else:
            # One machine's score among people's makes the row a machine label: never overclaim.
            source = "llm_label" if "llm" in {state.raters[who] for who in labels} else "human"
            versions = {state.guidelines[slot_key("label", row, who)] for who in labels}
            outcome.rows.append(_row(item, mean_label(labels), source, max(versions, key=_version)))
    return outcome


def dispute_records(state: LabelState, rows: list[str]) -> Iterator[dict[str, Any]]:
    """What the dispute queue shows of each row: the text, every label, the gap per axis."""
    for row in rows:
        item, labels = state.items[row], state.labels(row)
        yield {
            "id": row,
            "text": item.text,
            "context": list(item.context),
            "gap": gaps(labels),
            "labels": {who: label.record() for who, label in labels.items()},
        }
