"""The fold of a decision log: pure, so the same log always means the same labels.

A *slot* holds the current value of one thing: a rater's label of a row, a blind repeat of it, the
row's resolution. Every decision sets one slot to its `after`; undo and redo are decisions too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError

from trainers.affect.label.items import Item, Label, explain
from trainers.affect.label.log import Decision, LogDamaged

SlotKey = tuple[str, str, str]
_UNDOABLE = frozenset({"label", "skip", "resolve", "drop"})


def slot_key(slot: str, row: str, who: str) -> SlotKey:
    """A resolution belongs to the row, everything else to the row and the rater."""
    return (slot, row, "" if slot == "resolution" else who)


def as_label(value: Mapping[str, Any] | None) -> Label | None:
    """A slot's value as a label; None when empty, skipped or dropped."""
    if value is None or "skipped" in value or "dropped" in value:
        return None
    return Label.model_validate(value)


class LabelState:
    """Items, raters, slots and undo stacks after a prefix of a log."""

    def __init__(self, decisions: Iterable[Decision] = ()) -> None:
        """Fold `decisions`. Raises `LogDamaged` when one does not follow from those before."""
        self.items: dict[str, Item] = {}
        self.raters: dict[str, str] = {}
        self.slots: dict[SlotKey, Mapping[str, Any]] = {}
        self.guidelines: dict[SlotKey, str] = {}
        self.resolver: dict[str, str] = {}
        self.undo_stack: defaultdict[str, list[Decision]] = defaultdict(list)
        self.redo_stack: defaultdict[str, list[Decision]] = defaultdict(list)
        self._labelled: dict[str, dict[str, None]] = {}
        for decision in decisions:
            self.apply(decision)

    def apply(self, decision: Decision) -> None:
        """Take one more decision into account. Raises `LogDamaged` as folding does."""
        try:
            self._apply(decision)
        except ValidationError as error:
            raise LogDamaged(f"decision {decision.seq}: {explain(error)}") from error

    def _apply(self, decision: Decision) -> None:
        if decision.what == "add":
            self.items[decision.row] = Item.model_validate(decision.after)
            return
        if decision.what == "rater":
            self.raters[decision.who] = str((decision.after or {}).get("kind", "human"))
            return
        if decision.row not in self.items:
            raise LogDamaged(f"decision {decision.seq}: row {decision.row!r} was never added")
        key = slot_key(decision.slot, decision.row, decision.who)
        if self.slots.get(key) != decision.before:
            raise LogDamaged(f"decision {decision.seq}: 'before' is not what the log holds for it")
        label = as_label(decision.after)
        self._stack(decision)
        if decision.after is None:
            self.slots.pop(key, None)
            self.guidelines.pop(key, None)
        else:
            self.slots[key] = decision.after
            self.guidelines[key] = decision.guideline
        if decision.slot == "resolution":
            self.resolver[decision.row] = decision.who
        elif decision.slot == "label":
            rows = self._labelled.setdefault(decision.who, {})
            rows.pop(decision.row, None)
            if label is not None:
                rows[decision.row] = None

    def _stack(self, decision: Decision) -> None:
        undo, redo = self.undo_stack[decision.who], self.redo_stack[decision.who]
        if decision.what in _UNDOABLE:
            undo.append(decision)
            redo.clear()
            return
        source, target = (undo, redo) if decision.what == "undo" else (redo, undo)
        if not source or source[-1].seq != decision.of:
            raise LogDamaged(
                f"decision {decision.seq}: {decision.what} of {decision.of} is out of order"
            )
        target.append(source.pop())

    def value(self, slot: str, row: str, who: str) -> Mapping[str, Any] | None:
        """What a slot holds now."""
        return self.slots.get(slot_key(slot, row, who))

    def labels(self, row: str) -> dict[str, Label]:
        """Every rater's label of a row, by rater; skipped ones left out."""
        found = {who: as_label(self.value("label", row, who)) for who in sorted(self.raters)}
        return {who: label for who, label in found.items() if label is not None}

    def labelled_by(self, who: str) -> list[str]:
        """Rows this rater has labelled, in the order of their last decision."""
        return list(self._labelled.get(who, {}))

    def repeats(self, who: str) -> dict[str, tuple[Label, Label]]:
        """(first label, blind repeat) of each row the rater was asked again."""
        pairs = {}
        for row in self.labelled_by(who):
            first = as_label(self.value("label", row, who))
            again = as_label(self.value("repeat", row, who))
            if first is not None and again is not None:
                pairs[row] = (first, again)
        return pairs

    def resolution(self, row: str) -> tuple[bool, Label | None]:
        """(is it resolved, the label; None when the row was dropped)."""
        value = self.value("resolution", row, "")
        return (value is not None, as_label(value))
