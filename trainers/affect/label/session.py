"""One rater at work. The terminal and the browser page both drive this and nothing else.

Every method that changes something returns after the decision is on disk. A session holds no state
that the log does not: start it again and it goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainers.affect.label.items import MAX_NOTE_CHARS, Item, Label
from trainers.affect.label.log import Decision, DecisionLog, Draft, LabelError, Slot, What
from trainers.affect.label.queue import (
    DEFAULT_REPEAT_SHARE,
    Entry,
    Plan,
    ranked,
    repeat_row,
)
from trainers.affect.label.scorer import ModelScore
from trainers.affect.label.state import LabelState, as_label


class Conflict(LabelError):
    """The caller answers a question that is no longer the current one."""


@dataclass(frozen=True, slots=True)
class Task:
    """What is asked now.

    `at` is the length of the log when it was asked: an answer must quote it. `label` is filled only
    after an undo or redo, `others` only when resolving. A blind repeat looks like any other row.
    """

    row: str
    slot: Slot
    text: str
    context: tuple[str, ...]
    at: int
    label: Label | None = None
    others: Mapping[str, Label] | None = None


class LabelSession:
    """A rater, a log open for writing, and the queue between them."""

    def __init__(
        self,
        log: DecisionLog,
        rater: str,
        *,
        guideline: str,
        plan: Plan | None = None,
        scores: Mapping[str, ModelScore] | None = None,
        repeat_share: float = DEFAULT_REPEAT_SHARE,
    ) -> None:
        """Raises `LabelError` when the rater is known as a machine, or the log holds no rows."""
        self._log = log
        self.state = LabelState(log.decisions)
        self.rater = rater
        self.plan = plan = plan or Plan()
        self.guideline = guideline
        self._share = repeat_share if plan.mode != "resolve" else 0.0
        if not self.state.items:
            raise LabelError(f"{log.path}: no rows to label; pass some with --rows FILE")
        known = self.state.raters.get(rater)
        if known not in (None, "human"):
            raise LabelError(f"rater {rater!r} is an imported {known} rater; choose another name")
        if known is None:
            self._append(Draft(rater, "rater", "", "rater", None, {"kind": "human"}, guideline))
        self._queue: list[Entry] = ranked(self.state, rater, scores or {}, plan)
        self._next = 0
        self._focus: Task | None = None

    # ------------------------------------------------------------------ asking

    def current(self) -> Task | None:
        """The row to answer now; None when the queue is empty."""
        if self._focus is None:
            self._focus = self._choose()
        return self._focus

    def _choose(self) -> Task | None:
        if row := repeat_row(self.state, self.rater, self._share, self.plan.seed):
            return self._task(row, "repeat")
        slot: Slot = "resolution" if self.plan.mode == "resolve" else "label"
        while self._next < len(self._queue):
            row = self._queue[self._next].row
            if self.state.value(slot, row, self.rater) is None:
                return self._task(row, slot)
            self._next += 1
        return None

    def _task(self, row: str, slot: Slot, label: Label | None = None) -> Task:
        item: Item = self.state.items[row]
        others = self.state.labels(row) if slot == "resolution" else None
        return Task(row, slot, item.text, item.context, len(self._log.decisions), label, others)

    def progress(self) -> dict[str, Any]:
        """Rows this rater has labelled, rows left in the queue, what undo and redo would do."""
        slot: Slot = "resolution" if self.plan.mode == "resolve" else "label"
        left = sum(
            self.state.value(slot, entry.row, self.rater) is None
            for entry in self._queue[self._next :]
        )
        return {
            "rater": self.rater,
            "mode": self.plan.mode,
            "done": len(self.state.labelled_by(self.rater)),
            "left": left,
            "can_undo": bool(self.state.undo_stack[self.rater]),
            "can_redo": bool(self.state.redo_stack[self.rater]),
            "guideline": self.guideline,
        }

    # ------------------------------------------------------------------ answering

    def save(self, label: Label, *, at: int | None = None) -> None:
        """Label the current row. Raises `Conflict` when `at` is not the current task's."""
        task = self._checked(at)
        what: What = "resolve" if task.slot == "resolution" else "label"
        self._decide(task, what, label.record())

    def skip(self, note: str = "", *, at: int | None = None) -> None:
        """Leave the current row out; it does not come back to this rater."""
        task = self._checked(at)
        if task.slot == "resolution":
            raise LabelError("a disputed row is resolved or dropped, not skipped")
        self._decide(task, "skip", self._with_note({"skipped": True}, note))

    def drop(self, note: str = "", *, at: int | None = None) -> None:
        """Take a disputed row out of the set."""
        task = self._checked(at)
        if task.slot != "resolution":
            raise LabelError("only a disputed row can be dropped; skip this one")
        self._decide(task, "drop", self._with_note({"dropped": True}, note))

    def undo(self) -> None:
        """Take back this rater's last decision and ask about its row again."""
        self._travel("undo", self.state.undo_stack[self.rater])

    def redo(self) -> None:
        """Make again what undo took back, and go on behind it."""
        self._travel("redo", self.state.redo_stack[self.rater])

    @staticmethod
    def _with_note(value: dict[str, Any], note: str) -> dict[str, Any]:
        if len(note) > MAX_NOTE_CHARS:
            raise LabelError(f"the note has {len(note)} characters, at most {MAX_NOTE_CHARS}")
        return {**value, "note": note} if note else value

    def _checked(self, at: int | None) -> Task:
        task = self.current()
        if task is None:
            raise Conflict("the queue is empty; there is nothing to answer")
        if at is not None and at != task.at:
            raise Conflict("this row has been answered already; here is the current one")
        return task

    def _decide(self, task: Task, what: What, after: dict[str, Any]) -> None:
        before = self.state.value(task.slot, task.row, self.rater)
        self._append(Draft(self.rater, what, task.row, task.slot, before, after, self.guideline))
        self._focus = None

    def _travel(self, what: What, stack: Sequence[Decision]) -> None:
        if not stack:
            raise LabelError(f"nothing to {what}")
        target = stack[-1]
        now = self.state.value(target.slot, target.row, self.rater)
        after = target.before if what == "undo" else target.after
        expected = target.after if what == "undo" else target.before
        if now != expected:
            raise LabelError(f"row {target.row}: someone has decided it since, cannot {what} here")
        self._append(
            Draft(self.rater, what, target.row, target.slot, now, after, self.guideline, target.seq)
        )
        if what == "undo":
            self._focus = self._task(target.row, target.slot, as_label(target.after))
            self._next = 0
        else:
            self._focus = None

    def _append(self, draft: Draft) -> None:
        for decision in self._log.append(draft):
            self.state.apply(decision)


def import_drafts(
    state: LabelState,
    rater: str,
    kind: str,
    labels: Mapping[str, Label | None],
    guideline: str,
    slot: Slot = "label",
) -> list[Draft]:
    """The decisions that bring a rater's file into a log; what is there already is left out."""
    drafts = []
    known = state.raters.get(rater)
    if known not in (None, kind):
        raise LabelError(f"rater {rater!r} is in the log as {known!r}, not {kind!r}; rename one")
    if known is None:
        drafts.append(Draft(rater, "rater", "", "rater", None, {"kind": kind}, guideline))
    for row, label in labels.items():
        before = state.value(slot, row, rater)
        if label is None:
            after: dict[str, Any] = {"dropped": True} if slot == "resolution" else {"skipped": True}
            what: What = "drop" if slot == "resolution" else "skip"
        else:
            after, what = label.record(), "resolve" if slot == "resolution" else "label"
        if before != after:
            drafts.append(Draft(rater, what, row, slot, before, after, guideline))
    return drafts
