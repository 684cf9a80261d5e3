"""Sessions: one conversation each, one turn at a time, no turn twice.

``Sessions.claim`` is the door to a turn: it opens the session if needed, waits until no other turn
of that session runs, and frees it whatever happens. Idle sessions are closed, least recently used
first, when too many are open; everything they hold is in the store.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from brain.clock import Clock
from brain.errors import ConfigError
from brain.events import Emit
from brain.foresight_state import ForesightState, restored, rewound
from brain.memory import Recalled
from brain.persona import Persona
from brain.prompt import Exchange
from brain.schema import Affect, Foresight, check_id
from brain.state import HormoneState
from brain.state_engine import StateEngine
from brain.store import Store


@dataclass(frozen=True, slots=True)
class LateAnswer:
    """A side model's answer that missed its own turn; ``at`` is when its message was sent."""

    side: str
    turn_id: str
    seq: int
    value: Affect | Foresight
    at: float


MAX_KEPT = 16  # a side model that hangs must not gather tasks
T = TypeVar("T")


@dataclass(slots=True)
class Session:
    """An open session. ``history`` begins at ``history_start``; all of it is in the prompt."""

    session_id: str
    persona: Persona
    engine: StateEngine
    history: list[Exchange]
    history_start: int
    foresight: ForesightState
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    late: list[LateAnswer] = field(default_factory=list)
    last_affect: Affect | None = None
    #: Memories near the message that is foreseen next, looked up before it comes.
    expected: list[Recalled] = field(default_factory=list)
    #: Turns that were taken back; what is still to come of them is not wanted.
    undone: set[str] = field(default_factory=set)
    #: Turns (``seq``) whose memory the person had removed: it does not come back.
    forgotten: set[int] = field(default_factory=set)
    #: When turns (``seq``) of this process were committed, by ``Clock.uptime``.
    committed: dict[int, float] = field(default_factory=dict)
    background: set[asyncio.Task[None]] = field(default_factory=set)
    kept: set[asyncio.Task[None]] = field(default_factory=set)
    waiting: int = 0

    @property
    def busy(self) -> bool:
        """Whether a turn runs or waits in this session."""
        return self.lock.locked() or self.waiting > 0

    @property
    def spoken(self) -> list[str]:
        """Every text of the history in the prompt, both speakers'."""
        return [text for exchange in self.history for text in (exchange.user, exchange.reply)]

    def remember(self, foresight: ForesightState, *, turn_id: str, emit: Emit) -> None:
        """Take over what foresight remembers now; say where it had to begin anew."""
        known, self.foresight = self.foresight, foresight
        if known.encoder not in ("", foresight.encoder):
            emit("foresight_reset", turn_id=turn_id, before=known.encoder, now=foresight.encoder)
        elif known.distances and known.predictor != foresight.predictor:
            emit("surprise_reset", turn_id=turn_id, before=known.predictor, now=foresight.predictor)

    def spawn(self, task: asyncio.Task[None]) -> None:
        """Keep idle work (prefill, counting) until it ends or the next turn stops it."""
        self.background.add(task)
        task.add_done_callback(self.background.discard)

    def keep(self, task: asyncio.Task[None]) -> None:
        """Keep small work that the next turn need not stop (a late answer, a reason); bounded."""
        if len(self.kept) >= MAX_KEPT:
            task.cancel()
            return
        self.kept.add(task)
        task.add_done_callback(self.kept.discard)

    def stop_background(self) -> None:
        """Cancel idle work: the user comes first."""
        for task in self.background:
            task.cancel()


class Sessions:
    """All open sessions of one brain."""

    def __init__(
        self,
        store: Store,
        *,
        persona_named: Callable[[str], Persona],
        default_persona: str,
        clock: Clock,
        max_open: int,
        on_uncached: Callable[[Session], None] = lambda session: None,
        on_claim: Callable[[], None] = lambda: None,
    ) -> None:
        """``on_uncached`` is called when a session's history is new to the model server, or was
        changed otherwise than by a turn: opened, taken back, another persona. ``on_claim`` is
        called when somebody talks, in whichever session."""
        self._store = store
        self._persona_named = persona_named
        self._default_persona = default_persona
        self._clock = clock
        self._max_open = max_open
        self._on_uncached = on_uncached
        self._on_claim = on_claim
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._opening: dict[str, asyncio.Lock] = {}

    def __len__(self) -> int:
        return len(self._open)

    def open_sessions(self) -> list[Session]:
        """All open sessions, least recently used first."""
        return list(self._open.values())

    def talking(self) -> bool:
        """Whether a turn runs or waits in any session."""
        return any(session.busy for session in self._open.values())

    async def get(self, session_id: str) -> Session:
        """The session, opened from the store when it is not in memory.

        Raises:
            InputError: the id is not allowed. ConfigError: its persona is gone or broken.
        """
        found = self._open.get(session_id)
        if found is not None:
            self._open.move_to_end(session_id)
            return found
        check_id(session_id, what="a session id")
        lock = self._opening.setdefault(session_id, asyncio.Lock())
        try:
            async with lock:
                if session_id not in self._open:
                    fresh = await self._load(session_id)
                    if self._open.setdefault(session_id, fresh) is fresh:
                        self._on_uncached(fresh)
        finally:
            self._opening.pop(session_id, None)
        self._evict(keep=session_id)
        return self._open[session_id]

    @asynccontextmanager
    async def claim(self, session_id: str) -> AsyncIterator[Session]:
        """The session, for one turn alone; turns of one session run one after another."""
        async with self.between_turns(session_id) as session:
            self._on_claim()
            session.stop_background()
            yield session

    @asynccontextmanager
    async def between_turns(self, session_id: str) -> AsyncIterator[Session]:
        """The session while no turn runs in it, for small work that leaves idle work alone."""
        session = await self.get(session_id)
        session.waiting += 1
        try:
            await session.lock.acquire()
        finally:
            session.waiting -= 1
        try:
            yield session
        finally:
            session.lock.release()

    async def undo(self, session_id: str) -> str | None:
        """Take the last turn back: history, state and memory. Returns the user's words of it.

        A cancellation that comes meanwhile comes after: what the store has is what is talked on.
        """
        async with self.claim(session_id) as session:
            return await _shielded(self._take_back(session))

    async def _take_back(self, session: Session) -> str | None:
        undone = await self._store.undo(session.session_id, rewound=rewound)
        if undone is None:
            return None
        fresh = await self._load(session.session_id, session.committed)
        session.history, session.history_start = fresh.history, fresh.history_start
        session.foresight, session.engine = fresh.foresight, fresh.engine
        session.last_affect, session.expected = fresh.last_affect, []
        session.undone.add(undone.turn_id)
        session.late = [late for late in session.late if late.turn_id != undone.turn_id]
        self._on_uncached(session)
        return undone.user_text

    async def set_persona(self, session_id: str, name: str) -> Persona:
        """Change who the agent is; levels are kept and relax to the new baselines.

        Raises:
            InputError: the session id is not allowed. ConfigError: no such persona.
        """
        persona = self._persona_named(name)
        check_id(session_id, what="a session id")
        if session_id not in self._open:
            # Before it is opened: the one that it has may be gone, and would keep it shut.
            await self._store.set_persona(session_id, name)
        async with self.claim(session_id) as session:
            if session.persona == persona:
                return persona  # nothing changes, and what was evaluated still holds
            await _shielded(self._change_persona(session, name, persona))
        return persona

    async def _change_persona(self, session: Session, name: str, persona: Persona) -> None:
        await self._store.set_persona(session.session_id, name)
        session.persona = persona
        session.engine = session.engine.under(persona.hormones)
        self._on_uncached(session)

    async def tick(self) -> None:
        """Let time pass in every open session."""
        for session in self.open_sessions():
            await session.engine.tick()

    async def close(self) -> None:
        """Stop idle work everywhere."""
        tasks: list[asyncio.Task[None]] = []
        for session in self._open.values():
            tasks += [*session.background, *session.kept]
            session.stop_background()
            for task in session.kept:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _load(self, session_id: str, committed: Mapping[int, float] | None = None) -> Session:
        record = await self._store.load_session(
            session_id, persona=self._default_persona, at=self._clock.time()
        )
        try:
            persona = self._persona_named(record.persona)
        except ConfigError as error:
            raise ConfigError(
                f"session {session_id}: its persona {record.persona!r:.80} cannot be used "
                f"({error.problems[0]}); --persona NAME opens the session with another"
            ) from error
        state: HormoneState | None = record.state
        turns = [
            Exchange(seq=t.seq, user=t.user_text, reply=t.reply, tokens=t.tokens)
            for t in record.turns
        ]
        # The clock may have been set since: within this process its uptime knows better.
        since = committed.get(turns[-1].seq) if turns and committed else None
        passed_s = None if since is None else self._clock.uptime() - since
        return Session(
            session_id=session_id,
            persona=persona,
            engine=StateEngine(
                persona.hormones, clock=self._clock, restored=state, passed_s=passed_s
            ),
            history=turns,
            history_start=record.history_start,
            foresight=restored(record.foresight),
            last_affect=record.turns[-1].affect if record.turns else None,
        )

    def _evict(self, *, keep: str) -> None:
        surplus = len(self._open) - self._max_open
        for name in list(self._open):
            if surplus <= 0:
                return
            session = self._open[name]
            if name != keep and not session.busy:
                session.stop_background()
                del self._open[name]
                surplus -= 1


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    """The result of work that must not stop halfway; a cancellation is raised when it is done."""
    task = asyncio.create_task(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # of the two, the cancellation is told
        raise
