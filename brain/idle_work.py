"""What follows a turn while nobody waits: foresight, counting, trimming, recall, prefill, renewal
of old vectors, reasons.

The next message of the session stops ``run``; what it has done by then stays done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from brain import prompt
from brain.errors import InputError, LimbicError, ProtocolError, RemoteRejected
from brain.foresight import Encoded, ForesightClient
from brain.parts import PREFILL_DEADLINE_MS, Parts
from brain.schema import MAX_TEXT_CHARS
from brain.sessions import Session

WARM_DEADLINE_MS = 120_000  # the model may still be loading


class IdleWork:
    """The idle work of one finished turn, or of a session that was opened or edited."""

    def __init__(self, parts: Parts, session: Session, turn_id: str = "") -> None:
        self.p, self.session, self.turn_id = parts, session, turn_id
        self._went_ahead = False

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
        """First, since the next turn needs it, however soon it comes; a few milliseconds.

        The reply's vector is waited for as long as a turn waits for its side models; then the next
        message is foreseen without it, and once more when it comes after all.
        """
        if self.p.foresight is None or not self._seen_last():
            return
        hearing = asyncio.create_task(self._all(self._hear))
        self.session.spawn(hearing)
        await asyncio.wait([hearing], timeout=self.p.blend.soft_deadline_ms / 1000)
        self._went_ahead = not hearing.done()
        await self._predict(self.p.foresight)

    def _seen_last(self) -> bool:
        """Without the vector of the last message there is nothing to go on from."""
        history = self.session.history
        return bool(history) and self.session.foresight.newest == history[-1].seq

    async def _hear(self) -> None:
        """The vectors of what was answered: of the last reply, and of those before it that are
        still missing because they were interrupted, refused or of an earlier version."""
        p, session = self.p, self.session
        unheard = session.foresight.unheard
        # As they stand in the history, so a reply that broke off counts as far as it came.
        replies = {e.seq: e.reply for e in session.history if e.seq in unheard and e.reply.strip()}
        if p.foresight is None or not replies:
            return
        texts = [reply[:MAX_TEXT_CHARS] for reply in replies.values()]
        encoded = await self._encode(p.foresight, texts)
        # The last ones: where an older reply is refused, the newest is heard alone.
        heard = dict(zip([*replies][-len(encoded.vectors) :], encoded.vectors, strict=True))
        session.remember(
            session.foresight.with_replies(heard, encoded.encoder),
            turn_id=self.turn_id, emit=p.emit,
        )  # fmt: skip
        if self._went_ahead:
            await self._predict(p.foresight)
            await self._anticipate_recall()

    async def _encode(self, foresight: ForesightClient, texts: Sequence[str]) -> Encoded:
        deadline_ms = self.p.settings.blend.hard_deadline_ms
        try:
            return await foresight.encode(texts, turn_id=self.turn_id, deadline_ms=deadline_ms)
        except (InputError, ProtocolError, RemoteRejected):
            if len(texts) == 1:
                raise
        return await foresight.encode(texts[-1:], turn_id=self.turn_id, deadline_ms=deadline_ms)

    async def _predict(self, foresight: ForesightClient) -> None:
        """What is said next, from all that is known; again where a vector joins meanwhile."""
        p, session = self.p, self.session
        while self._seen_last() and not session.foresight.foreseen:
            known = session.foresight
            foreseen = await foresight.anticipate(
                known, turn_id=self.turn_id, deadline_ms=p.settings.blend.hard_deadline_ms
            )
            if session.foresight is known:
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
                session_id=self.session.session_id, turn_id=self.turn_id,
                deadline_ms=p.settings.blend.hard_deadline_ms,
            )  # fmt: skip
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
            budget_tokens=prompt.history_budget(p.settings, session.persona),
            trim_fraction=p.settings.chat.trim_fraction,
        )
        if start != session.history_start:
            await p.store.set_history_start(session.session_id, start)
            session.history_start = start
            session.history = [e for e in session.history if e.seq >= start]
            session.committed = {s: at for s, at in session.committed.items() if s >= start}
            p.emit("history_trimmed", session_id=session.session_id, start=start)
