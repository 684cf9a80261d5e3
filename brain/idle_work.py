"""What follows a turn while nobody waits: foresight, counting, trimming, recall, prefill, reasons.

The next message of the session stops ``run``; what it has done by then stays done.
"""

from __future__ import annotations

from brain import prompt
from brain.errors import LimbicError
from brain.parts import PREFILL_DEADLINE_MS, Parts
from brain.sessions import Session
from brain.turn import Turn


class IdleWork:
    """The idle work of one finished turn."""

    def __init__(self, parts: Parts, session: Session, turn: Turn) -> None:
        self.p, self.session, self.turn = parts, session, turn

    async def run(self) -> None:
        """Foresight, real token counts and trimming, recall, prefill. A step that fails, because
        its model is down, does not keep the others from their work."""
        for step in (self._foresee, self._count_and_trim, self._anticipate_recall, self._prefill):
            try:
                await step()
            except LimbicError as error:
                self.p.emit("idle_work_failed", turn_id=self.turn.turn_id, error=str(error))

    async def _foresee(self) -> None:
        """First, since the next turn needs it, however soon it comes; a few milliseconds."""
        p, session = self.p, self.session
        if p.foresight is not None and session.foresight.vectors:
            session.foresight = await p.foresight.anticipate(
                session.foresight,
                turn_id=self.turn.turn_id,
                deadline_ms=p.settings.blend.hard_deadline_ms,
            )

    async def _prefill(self) -> None:
        p, session = self.p, self.session
        await p.llm.prefill(
            prompt.head(session.persona, session.history),
            turn_id=self.turn.turn_id,
            deadline_ms=PREFILL_DEADLINE_MS,
        )

    async def _anticipate_recall(self) -> None:
        """Recall for the message that is foreseen, before its person writes it."""
        p, session = self.p, self.session
        if p.foresight is None or session.foresight.predicted is None:
            return
        session.expected = await p.memory.recall(
            session.session_id, "", before_seq=session.history_start, at=p.clock.time(),
            vector=session.foresight.predicted, encoder=p.foresight.encoder,
        )  # fmt: skip
        p.telemetry.stats.note_expected([one.seq for one in session.expected])

    async def ask_why(self) -> None:
        """Fetch why the message was scored as it was; nothing waits for it, nor does it stop when
        the next message comes."""
        p, turn = self.p, self.turn
        assert p.classifier is not None
        try:
            reasoning = await p.classifier.reasoning(
                turn_id=turn.turn_id, deadline_ms=p.settings.blend.hard_deadline_ms
            )
        except LimbicError as error:
            p.emit("reason_missing", turn_id=turn.turn_id, error=str(error))
            return
        p.telemetry.reasoning(turn.session_id, turn.turn_id, reasoning)

    async def _count_and_trim(self) -> None:
        p, session = self.p, self.session
        last = session.history[-1]
        counts = await p.llm.count_tokens([last.user, last.reply])
        tokens = sum(counts) + 2 * prompt.PER_MESSAGE_TOKENS
        if tokens != last.tokens:
            session.history[-1] = prompt.Exchange(last.seq, last.user, last.reply, tokens)
            await p.store.set_tokens(session.session_id, last.seq, tokens)
        start = prompt.window_start(
            session.history,
            session.history_start,
            budget_tokens=prompt.history_budget(p.settings),
            trim_fraction=p.settings.chat.trim_fraction,
        )
        if start != session.history_start:
            await p.store.set_history_start(session.session_id, start)
            session.history_start = start
            session.history = [e for e in session.history if e.seq >= start]
            p.emit("history_trimmed", session_id=session.session_id, start=start)
