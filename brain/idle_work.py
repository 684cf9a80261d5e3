"""What follows a turn while nobody waits: foresight, counting, trimming, recall, prefill, renewal
of old vectors, reasons.

The next message of the session stops ``run``; what it has done by then stays done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from brain import prompt
from brain.errors import LimbicError
from brain.parts import PREFILL_DEADLINE_MS, Parts
from brain.sessions import Session

WARM_DEADLINE_MS = 120_000  # the model may still be loading


class IdleWork:
    """The idle work of one finished turn, or of a session that was opened or edited."""

    def __init__(self, parts: Parts, session: Session, turn_id: str = "") -> None:
        self.p, self.session, self.turn_id = parts, session, turn_id

    async def run(self) -> None:
        """After a turn: foresight, real token counts and trimming, recall, prefill, renewal."""
        await self._all(
            self._foresee, self._count_and_trim, self._anticipate_recall, self._prefill, self._renew
        )

    async def warm(self) -> None:
        """For a history that the model server has not seen: prefill, however long it loads."""
        await self._all(self._warm_up)

    async def look_ahead(self) -> None:
        """For vectors that no turn has just brought: what they make of the next message."""
        await self._all(self._foresee, self._anticipate_recall)

    async def _all(self, *steps: Callable[[], Awaitable[None]]) -> None:
        """A step that fails, because its model is down, does not keep the others from theirs."""
        for step in steps:
            try:
                await step()
            except LimbicError as error:
                self.p.emit("idle_work_failed", turn_id=self.turn_id, error=str(error))

    async def _foresee(self) -> None:
        """First, since the next turn needs it, however soon it comes; a few milliseconds. Without
        the vector of the last message there is nothing to go on from."""
        p, session = self.p, self.session
        last = session.history[-1].seq if session.history else None
        while p.foresight is not None and last is not None:
            known = session.foresight
            if known.newest != last or known.predicted is not None:
                return
            foreseen = await p.foresight.anticipate(
                known, turn_id=self.turn_id, deadline_ms=p.settings.blend.hard_deadline_ms
            )
            if session.foresight is known:  # else a late vector joined: foresee with it
                session.remember(foreseen, turn_id=self.turn_id, emit=p.emit)
                await p.store.set_foresight(session.session_id, foreseen.to_bytes())

    async def _prefill(self) -> None:
        await self._prefill_within(PREFILL_DEADLINE_MS)

    async def _warm_up(self) -> None:
        await self._prefill_within(WARM_DEADLINE_MS)

    async def _prefill_within(self, deadline_ms: int) -> None:
        p, session = self.p, self.session
        await p.llm.prefill(
            prompt.head(session.persona, session.history),
            turn_id=self.turn_id,
            deadline_ms=deadline_ms,
        )

    async def _renew(self) -> None:
        if self.p.renewal is not None:
            await self.p.renewal.run()

    async def _anticipate_recall(self) -> None:
        """Recall for the message that is foreseen, before its person writes it; only once the
        encoder has answered since the start: a chat whose LVM is down is a chat without one."""
        p, session = self.p, self.session
        foreseen = session.foresight
        if p.foresight is None or foreseen.predicted is None:
            return
        if p.foresight.encoder != foreseen.encoder:
            return
        session.expected = await p.memory.recall(
            session.session_id, "", before_seq=session.history_start, at=p.clock.time(),
            vector=foreseen.predicted, encoder=foreseen.encoder, spoken=session.spoken,
        )  # fmt: skip
        p.telemetry.stats.note_expected([one.seq for one in session.expected])

    async def ask_why(self) -> None:
        """Fetch why the message was scored as it was; nothing waits for it, nor does it stop when
        the next message comes."""
        p = self.p
        assert p.classifier is not None
        try:
            reasoning = await p.classifier.reasoning(
                turn_id=self.turn_id, deadline_ms=p.settings.blend.hard_deadline_ms
            )
        except LimbicError as error:
            p.emit("reason_missing", turn_id=self.turn_id, error=str(error))
            return
        p.telemetry.reasoning(self.session.session_id, self.turn_id, reasoning)

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
