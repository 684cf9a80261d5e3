"""Answers of side models that missed their own turn: each is attributed to it once, or dropped.

The mood takes a late answer at once and blends it into the next turn, weighted by its age. What is
to be kept of it, affect with the memory it makes and the vector of the message, is written when no
turn of the session runs: only then is it certain whether the message became history.
"""

from __future__ import annotations

import asyncio
from typing import Any

from brain import memory as memories
from brain.errors import LimbicError
from brain.idle_work import IdleWork
from brain.parts import Parts
from brain.schema import Affect, Foresight
from brain.sessions import LateAnswer, Session
from brain.state import Event, affect_event, late_weight, surprise_event
from brain.turn import Turn


class LateAnswers:
    """What may still come for one turn after its window has closed."""

    def __init__(self, parts: Parts, session: Session, turn: Turn, *, sent_at: float) -> None:
        """``sent_at``: when the message was sent, on the monotonic clock, in seconds."""
        self.p, self.session, self.turn, self.sent_at = parts, session, turn, sent_at
        self._taken: set[str] = set()

    def take(self, side: str, value: Any, age_ms: float) -> None:
        """An answer after the deadline belongs to this turn; it is blended into the next one."""
        session, turn = self.session, self.turn
        if side not in ("affect", "foresight"):
            return
        if turn.status in ("cancelled", "failed"):
            return self._drop(side, turn.status)
        if turn.turn_id in session.undone:
            return self._drop(side, "undone")
        if side in self._taken:
            return self._drop(side, "duplicate")
        self._taken.add(side)
        session.late.append(
            LateAnswer(side=side, turn_id=turn.turn_id, seq=turn.seq, value=value, at=self.sent_at)
        )
        if isinstance(value, Affect):
            session.last_affect = value
            self.p.telemetry.affect(session.session_id, turn.turn_id, turn.text, value, late=True)
            session.keep(asyncio.create_task(self._keep_affect(value)))
        else:
            session.keep(asyncio.create_task(self._keep_vector(value)))

    def forget(self) -> None:
        """The turn did not become history: nothing of it may shape the next one."""
        late = self.session.late
        self.session.late = [a for a in late if a.turn_id != self.turn.turn_id]

    async def _keep_affect(self, affect: Affect) -> None:
        p, turn = self.p, self.turn
        try:
            async with p.sessions.between_turns(turn.session_id) as session:
                earlier = [e.reply for e in session.history if e.seq < turn.seq]
                memory = p.memory.to_keep(turn.text, affect, turn.foresight, earlier)
                if turn.seq in session.forgotten:
                    memory = None
                kept = turn.kept and await p.store.add_late_affect(
                    turn.session_id, turn.seq, affect, memory=memory
                )
        except LimbicError as error:
            p.emit("late_not_stored", turn_id=turn.turn_id, error=str(error))
        else:
            if not kept:
                self._drop("affect", "not in history")
        if not affect.reasoning:
            await IdleWork(p, self.session, turn.turn_id).ask_why()

    async def _keep_vector(self, seen: Foresight) -> None:
        p, turn = self.p, self.turn
        assert seen.vector is not None
        try:
            async with p.sessions.between_turns(turn.session_id) as session:
                known = session.foresight
                state = known.after(turn.seq, seen)
                kept = turn.kept and await p.store.add_late_vector(
                    turn.session_id, turn.seq, encoder=seen.encoder,
                    vector=memories.pack(seen.vector), foresight=state.to_bytes(),
                )  # fmt: skip
                if not kept:
                    return self._drop("foresight", "not in history")
                session.remember(state, turn_id=turn.turn_id, emit=p.emit)
        except LimbicError as error:
            p.emit("late_not_stored", turn_id=turn.turn_id, error=str(error))
            return
        p.telemetry.surprise(turn.turn_id, seen)
        if state is not known:
            ahead = IdleWork(p, session, turn.turn_id).look_ahead()
            session.spawn(asyncio.create_task(ahead))

    def _drop(self, side: str, reason: str) -> None:
        self.p.emit("late_dropped", side=side, turn_id=self.turn.turn_id, reason=reason)


def blended(
    answers: list[LateAnswer], *, now: float, half_life_s: float, max_age_s: float
) -> tuple[list[Event], list[dict[str, Any]]]:
    """Late answers as events of the next turn, and a record of each with its age and weight."""
    events, records = [], []
    for answer in answers:
        age_s = now - answer.at
        weight = late_weight(age_s, half_life_s=half_life_s, max_age_s=max_age_s)
        records.append(
            {"side": answer.side, "turn_id": answer.turn_id, "age_s": round(age_s, 2),
             "weight": round(weight, 4)}
        )  # fmt: skip
        if weight <= 0.0:
            continue
        if isinstance(answer.value, Affect):
            events.append(affect_event(answer.value, weight=weight))
        elif answer.value.surprise is not None:
            events.append(surprise_event(answer.value.surprise, weight=weight))
    return events, records
