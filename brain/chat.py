"""One turn, top to bottom.

claim the session → make the user's words durable → open the window: affect, foresight, recall and
the LLM's prefill start together → at the soft deadline take what is there → state → behaviour →
prompt → stream → commit reply, affect and state in one transaction → prefill in idle time.

A turn that fails or is cancelled leaves no trace in the state. A reply that breaks off is kept as
far as it came, marked partial, and its error is raised after it is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import Any, Literal

from brain import memory as memories
from brain import prompt
from brain.behaviour import behave
from brain.blend import SideResult, Window
from brain.clock import Clock
from brain.errors import LimbicError, ProtocolError
from brain.idle_work import IdleWork
from brain.late import LateAnswers, blended
from brain.llm import LLMStream
from brain.memory import Recalled
from brain.parts import PREFILL_DEADLINE_MS, Parts
from brain.schema import Message, check_text
from brain.sessions import LateAnswer, Session
from brain.state import Event, HormoneState, affect_event, message_event, surprise_event
from brain.store_sql import NewMemory, StoredTurn, TurnCommit
from brain.turn import Turn

CONTEXT_TURNS = 2
SIDE_MARGIN_MS = 25
# Share of the window that recall waits for the message's vector before it goes without.
RECALL_PATIENCE = 0.8


class Chat:
    """Runs turns. One for a brain; holds no state of its own."""

    def __init__(self, parts: Parts) -> None:
        self._p = parts

    def warm(self, session: Session) -> None:
        """Prefill a session's history in idle time, and foresee, while its person still types.

        For histories that the model server has not seen: after a restart, an edit, a change of
        persona. A turn that comes meanwhile stops it; what is evaluated by then stays cached.
        """
        if session.history:
            work = IdleWork(self._p, session)
            session.spawn(asyncio.create_task(work.warm()))
            session.spawn(asyncio.create_task(work.look_ahead()))

    async def run(self, turn: Turn) -> AsyncGenerator[str, None]:
        """Yield the reply's tokens as they come; see the module docstring for the order."""
        p = self._p
        started = p.clock.monotonic()
        turn.text = check_text(turn.text, max_chars=p.settings.chat.max_text_chars)
        async with p.sessions.claim(turn.session_id) as session:
            _stamp(turn, "claim_ms", started, p.clock)
            sent_at = p.clock.time()
            begun = await p.store.begin_turn(turn.session_id, turn.turn_id, turn.text, at=sent_at)
            turn.seq = begun.seq
            _stamp(turn, "begin_ms", started, p.clock)
            if begun.status != "begun":
                _repeat(turn, begun)
                yield turn.reply
                return
            live = _LiveTurn(p, session, turn, started=started, sent_at=sent_at)
            try:
                async with aclosing(live.tokens()) as tokens:
                    async for token in tokens:
                        yield token
            except (asyncio.CancelledError, GeneratorExit):
                if turn.status == "running":
                    await live.abandon("cancelled", None)
                raise
            except LimbicError as error:
                turn.error = error
                if turn.status == "running":
                    await live.abandon("failed", error)
                raise
            except Exception as error:
                if turn.status == "running":
                    await live.abandon("failed", LimbicError(f"internal error: {error!r:.200}"))
                raise


class _LiveTurn:
    """The state of one running turn, between a durable message and a committed reply."""

    def __init__(
        self, parts: Parts, session: Session, turn: Turn, *, started: float, sent_at: float
    ) -> None:
        self.p, self.session, self.turn = parts, session, turn
        self.started, self.sent_at = started, sent_at
        self.before = session.engine.peek()
        self.late = LateAnswers(parts, session, turn, sent_at=started)
        self.applied: list[LateAnswer] = []
        self.stream: LLMStream | None = None
        self.window = Window(results={}, open_ms=0.0)
        self.recalled_by = ""
        self.foreseen = False

    async def tokens(self) -> AsyncGenerator[str, None]:
        p, turn, session = self.p, self.turn, self.session
        fitting = prompt.fitting(session.history, turn.text, p.settings, session.persona)
        head = prompt.head(session.persona, fitting)
        window = self.window = await self._open_window(head)
        _stamp(turn, "window_ms", self.started, p.clock)
        events = self._take(window)
        turn.state = session.engine.peek(events)
        turn.behaviour = behave(
            session.persona,
            turn.state,
            turn.affect,
            max_reply_tokens=p.settings.chat.max_reply_tokens,
        )
        messages = prompt.build(
            head, turn.text, turn.behaviour, recalled=turn.recalled,
            tail_role=p.settings.llm.tail_role,
        )  # fmt: skip
        _stamp(turn, "prompt_ms", self.started, p.clock)
        try:
            async with p.llm.stream(
                messages, behaviour=turn.behaviour, turn_id=turn.turn_id
            ) as stream:
                self.stream = stream
                async for token in stream:
                    if not turn.reply:
                        _stamp(turn, "first_token_ms", self.started, p.clock)
                    turn.reply += token
                    yield token
        except LimbicError as error:
            if not turn.reply.strip():
                raise
            await self._commit(events, error)
            raise
        if not turn.reply.strip():
            raise ProtocolError("the model answered with nothing; ask again", remote="llm")
        await self._commit(events, None)

    async def _open_window(self, head: list[Message]) -> Window:
        """Start the side models, recall and prefill together; return when the window closes."""
        p, turn, session = self.p, self.turn, self.session
        sides: dict[str, Awaitable[Any]] = {}
        # A little before the window's own limit, so that the breaker learns of a hung side model.
        deadline_ms = max(10, p.settings.blend.hard_deadline_ms - SIDE_MARGIN_MS)
        if p.classifier is not None:
            context = [text for e in session.history[-1:] for text in (e.user, e.reply)]
            sides["affect"] = p.classifier.score(
                turn.text, context[-CONTEXT_TURNS:], session_id=turn.session_id,
                turn_id=turn.turn_id, deadline_ms=deadline_ms,
            )  # fmt: skip
        if p.foresight is not None:
            # A task, since recall looks for the same vector.
            sides["foresight"] = asyncio.ensure_future(
                p.foresight.observe(
                    session.foresight, turn.text, turn_id=turn.turn_id, deadline_ms=deadline_ms
                )
            )
        if p.settings.memory.enabled and session.history_start > 1:
            sides["recall"] = self._recall(sides.get("foresight"))
        if not sides:
            return Window(results={}, open_ms=0.0)
        prefill = asyncio.create_task(
            p.llm.prefill(
                prompt.with_user(head, turn.text),
                turn_id=turn.turn_id,
                deadline_ms=PREFILL_DEADLINE_MS,
            )
        )
        try:
            return await p.blend.open(sides, turn_id=turn.turn_id, on_late=self.late.take)
        finally:
            # What is evaluated stays cached at the server; the reply must not wait behind the rest.
            prefill.cancel()

    async def _recall(self, observing: Awaitable[Any] | None) -> list[Recalled]:
        """Memories for this message: by its vector; where that does not come in time, those looked
        up for the message that was foreseen; by its words where there are none."""
        p, turn, session = self.p, self.turn, self.session
        vector, encoder = None, ""
        if isinstance(observing, asyncio.Future):
            patience_s = RECALL_PATIENCE * p.blend.soft_deadline_ms / 1000
            await asyncio.wait([observing], timeout=patience_s)
            if observing.done() and not observing.cancelled() and observing.exception() is None:
                vector, encoder = observing.result().vector, observing.result().encoder
            elif session.expected:
                ahead = [one for one in session.expected if not memories.says(turn.text, one.text)]
                self.recalled_by = "anticipation" if ahead else ""
                return ahead
        return await p.memory.recall(
            turn.session_id, turn.text, before_seq=session.history_start, at=self.sent_at,
            vector=vector, encoder=encoder, spoken=[turn.text, *session.spoken],
        )  # fmt: skip

    def _take(self, window: Window) -> list[Event]:
        """Results in time become this turn's; answers that came late to earlier turns join once."""
        p, turn, session = self.p, self.turn, self.session
        turn.affect = window.value("affect")
        turn.foresight = window.value("foresight")
        recalled = window.value("recall")
        turn.recalled = tuple(one.text for one in recalled or ())
        if recalled:
            self.recalled_by = self.recalled_by or recalled[0].by
            ahead = {one.seq for one in session.expected}
            self.foreseen = any(one.seq in ahead for one in recalled)
        if turn.affect is not None:
            p.telemetry.affect(session.session_id, turn.turn_id, turn.text, turn.affect, late=False)
        events = [message_event(), *self._late_events()]
        if turn.affect is not None:
            events.append(affect_event(turn.affect))
        if turn.foresight is not None and turn.foresight.surprise is not None:
            events.append(surprise_event(turn.foresight.surprise))
        return events

    def _late_events(self) -> list[Event]:
        blend = self.p.settings.blend
        self.applied = list(self.session.late)
        events, self.turn.late_applied = blended(
            self.applied, now=self.p.clock.monotonic(),
            half_life_s=blend.late_half_life_s, max_age_s=blend.late_max_age_s,
        )  # fmt: skip
        return events

    async def _commit(self, events: list[Event], error: LimbicError | None) -> None:
        """Write everything in one transaction; a cancellation that comes meanwhile comes after."""
        work = asyncio.create_task(self._write(events, error))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            if not work.cancelled() and work.exception() is not None:
                self.p.emit("commit_failed", turn_id=self.turn.turn_id, error=str(work.exception()))
            raise

    async def _write(self, events: list[Event], error: LimbicError | None) -> None:
        p, turn, session = self.p, self.turn, self.session
        status: Literal["done", "partial"] = "done" if error is None else "partial"
        tokens = prompt.estimate_tokens(turn.text) + (
            self.stream.completion_tokens if self.stream and self.stream.completion_tokens
            else prompt.estimate_tokens(turn.reply)
        )  # fmt: skip

        record: dict[str, Any] = {}
        known = session.foresight
        foresight = known.after(turn.seq, turn.foresight) if turn.foresight else known.passed()

        async def persist(state: HormoneState) -> None:
            turn.state = state
            _stamp(turn, "commit_ms", self.started, p.clock)
            nonlocal record
            record = self._record(status, error)
            await p.store.finish_turn(
                TurnCommit(
                    session_id=session.session_id, seq=turn.seq, status=status, reply=turn.reply,
                    affect=turn.affect, state=state, record=record, tokens=tokens,
                    at=p.clock.time(), error=str(error) if error else None,
                    foresight=None if foresight is known else foresight.to_bytes(),
                    memory=self._memory(),
                )
            )  # fmt: skip

        turn.state = await session.engine.register_event(*events, commit=persist)
        session.committed[turn.seq] = p.clock.uptime()
        turn.status = status
        turn.error = error
        session.history.append(
            prompt.Exchange(seq=turn.seq, user=turn.text, reply=turn.reply, tokens=tokens)
        )
        session.last_affect = turn.affect or session.last_affect
        session.late = [answer for answer in session.late if answer not in self.applied]
        session.expected = []  # they were for this message
        p.telemetry.stats.note_expected([])
        session.remember(foresight, turn_id=turn.turn_id, emit=p.emit)
        _stamp(turn, "total_ms", self.started, p.clock)
        record["timings"]["total_ms"] = round(turn.timings["total_ms"], 2)
        p.telemetry.turn(record, turn)
        idle = IdleWork(p, session, turn.turn_id)
        session.spawn(asyncio.create_task(idle.run()))
        if p.classifier is not None and turn.affect is not None and not turn.affect.reasoning:
            session.keep(asyncio.create_task(idle.ask_why()))

    def _memory(self) -> NewMemory | None:
        turn, replies = self.turn, [exchange.reply for exchange in self.session.history]
        return self.p.memory.to_keep(turn.text, turn.affect, turn.foresight, replies)

    async def abandon(
        self, status: Literal["cancelled", "failed"], error: LimbicError | None
    ) -> None:
        """Record a turn that did not commit. Never raises: the caller has an error of its own."""
        p, turn = self.p, self.turn
        turn.status = status
        turn.state = None
        self.late.forget()
        _stamp(turn, "total_ms", self.started, p.clock)
        try:
            record = self._record(status, error)
            p.telemetry.turn(record, turn)
            await asyncio.shield(
                p.store.abandon_turn(
                    turn.session_id, turn.seq, status=status, reply=turn.reply, record=record,
                    error=str(error) if error else None, at=p.clock.time(),
                )
            )  # fmt: skip
        except (Exception, asyncio.CancelledError) as problem:
            p.emit("abandon_not_stored", turn_id=turn.turn_id, error=repr(problem))

    def _record(self, status: str, error: LimbicError | None) -> dict[str, Any]:
        """The canonical line of a turn: every phase, what was late, tokens, levels, error."""
        turn, stream, known = self.turn, self.stream, self.session.foresight
        turn.sides = {name: _side(result) for name, result in self.window.results.items()}
        return {
            "session_id": turn.session_id,
            "turn_id": turn.turn_id,
            "seq": turn.seq,
            "status": status,
            "persona": self.session.persona.name,
            "timings": {name: round(value, 2) for name, value in turn.timings.items()},
            "sides": turn.sides,
            "late_applied": turn.late_applied,
            "affect": turn.affect.model_dump(exclude={"reasoning"}) if turn.affect else None,
            "surprise": turn.foresight.surprise if turn.foresight else None,
            "heard": known.heard if known.predicted else None,
            "behaviour": turn.behaviour.model_dump() if turn.behaviour else None,
            "recalled": bool(turn.recalled),
            "recalled_by": self.recalled_by or None,
            "anticipated": len(self.session.expected),
            "foreseen": self.foreseen,
            "llm": None if stream is None else {
                "model": stream.model, "ttft_ms": stream.ttft_ms, "retries": stream.retries,
                "prompt_tokens": stream.prompt_tokens, "cached_tokens": stream.cached_tokens,
                "completion_tokens": stream.completion_tokens, "finish": stream.finish_reason,
            },
            "hormones_before": _rounded(self.before),
            "hormones_after": _rounded(turn.state) if turn.state else None,
            "error": {"code": error.code, "message": str(error)} if error else None,
        }  # fmt: skip


def _stamp(turn: Turn, name: str, started: float, clock: Clock) -> None:
    turn.timings[name] = (clock.monotonic() - started) * 1000


def _side(result: SideResult) -> dict[str, Any]:
    side = {"outcome": result.outcome, "ms": round(result.latency_ms, 1)}
    return {**side, "reason": result.reason} if result.reason else side


def _rounded(state: HormoneState) -> dict[str, float]:
    return {name: round(x, 4) for name, x in state.levels.items()}


def _repeat(turn: Turn, stored: StoredTurn) -> None:
    """Fill a turn from the store: the same id asks for the same answer, not for another turn."""
    turn.reply, turn.affect, turn.state = stored.reply, stored.affect, stored.state
    turn.status = "repeated"
    if stored.record:
        turn.timings = dict(stored.record.get("timings", {}))
        turn.sides = dict(stored.record.get("sides", {}))
