"""The composition root: the only module that knows every other one.

``Limbic`` is the API that programs embed, and that the terminal and the web server use::

    async with Limbic.open("config/limbic.toml") as limbic:
        async for token in limbic.session("alice").say("I had a rough day"):
            print(token, end="")
"""

from __future__ import annotations

import asyncio
import functools
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, get_args
from uuid import uuid4

from brain.affect_classifier import AffectClassifier
from brain.blend import Blend
from brain.breaker import CircuitBreaker
from brain.chat import Chat
from brain.clock import Clock, SystemClock
from brain.errors import ConfigError, LimbicError, SidecarDown
from brain.events import Endpoint, EndpointSource
from brain.foresight import ForesightClient
from brain.llm import LLMClient
from brain.memory import Memory
from brain.parts import Parts
from brain.persona import Persona, list_personas, load_persona
from brain.processes import module_argv, module_path
from brain.remote import open_http
from brain.renewal import Renewal
from brain.schema import check_id
from brain.sessions import Session, Sessions
from brain.settings import Settings, SidecarSettings, SideName, load_settings
from brain.state import HormoneState
from brain.store import Store
from brain.supervisor import ChildSpec, Supervisor
from brain.telemetry import Telemetry
from brain.turn import Turn

LLM_READY_WAIT_S = 120.0


class SessionHandle:
    """One conversation of an open ``Limbic``."""

    def __init__(self, limbic: Limbic, session_id: str) -> None:
        self._limbic = limbic
        self.session_id = check_id(session_id, what="a session id")

    def say(self, text: str, *, turn_id: str | None = None) -> Turn:
        """A turn to iterate for tokens, or to await. ``turn_id`` makes repeating it harmless."""
        turn_id = check_id(turn_id, what="a turn id") if turn_id else uuid4().hex
        return Turn(self.session_id, turn_id, text, self._limbic.chat.run)

    async def open(self) -> Session:
        """The live session: persona, engine, history."""
        return await self._limbic.parts.sessions.get(self.session_id)

    async def state(self) -> HormoneState:
        """Hormone levels now."""
        return (await self.open()).engine.peek()

    async def undo(self) -> str | None:
        """Take the last turn back; returns the user's words of it, or ``None``."""
        return await self._limbic.parts.sessions.undo(self.session_id)

    async def set_persona(self, name: str) -> Persona:
        """Change who the agent is in this session."""
        return await self._limbic.parts.sessions.set_persona(self.session_id, name)

    async def memories(self, limit: int = 20) -> list[tuple[int, float, str]]:
        """(turn, weight, text) of the strongest memories."""
        return await self._limbic.parts.memory.listing(self.session_id, limit)

    async def forget(self, seq: int) -> bool:
        """Remove the memory of one turn."""
        session = await self.open()
        # A turn that is still to come may have its memory.
        made = seq <= max((e.seq for e in session.history), default=session.history_start - 1)
        known = seq in session.forgotten
        if made:  # before the delete: an answer that comes late meanwhile must not bring it back
            session.forgotten.add(seq)
        try:
            found = await self._limbic.parts.memory.forget(self.session_id, seq)
        except LimbicError:
            if not known:
                session.forgotten.discard(seq)
            raise
        session.expected = [one for one in session.expected if one.seq != seq]
        return found


class Limbic:
    """A running agent: store, telemetry, side models and sessions. Use as an async context."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock: Clock = clock or SystemClock()
        self.parts: Parts
        self.chat: Chat
        self.supervisor: Supervisor
        self.telemetry: Telemetry
        self._llm_breaker: CircuitBreaker
        self._ticker: asyncio.Task[None] | None = None
        self._closers: list[Callable[[], Awaitable[Any]]] = []

    @classmethod
    def open(
        cls, config: str | Path | Settings | None = None, *, clock: Clock | None = None
    ) -> Limbic:
        """Settings from a file, from an object, or the embedded defaults.

        Raises:
            ConfigError: every mistake in the settings, before anything starts.
        """
        settings = config if isinstance(config, Settings) else load_settings(config)
        return cls(settings, clock=clock)

    async def __aenter__(self) -> Limbic:
        if self._closers:
            raise LimbicError("this Limbic is open already; use it, or close it first")
        try:
            await self._start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def session(self, session_id: str = "default") -> SessionHandle:
        """A conversation by name; created when it has its first turn."""
        return SessionHandle(self, session_id)

    def personas(self) -> list[str]:
        """Names that ``set_persona`` accepts."""
        return list_personas(self.settings)

    async def snapshot(self) -> dict[str, Any]:
        """The telemetry snapshot (``GET /telemetry/snapshot``)."""
        sessions = self.parts.sessions.open_sessions()
        last = sessions[-1] if sessions else None
        return self.telemetry.snapshot(
            sidecars=self.supervisor.status(),
            hormones=last.engine.peek().levels if last else {},
            breaker=self._llm_breaker.state,
        )

    async def wait_ready(self, timeout_s: float = LLM_READY_WAIT_S) -> None:
        """Wait until the chat model can be asked; at once when it is somebody else's server.

        Raises:
            SidecarDown: not ready within ``timeout_s`` seconds. SidecarFailed: it never will be.
        """
        if self.settings.sidecar("llm").mode == "managed":
            await self.supervisor.ensure("llm")
            await self.supervisor.wait_ready("llm", timeout_s)

    async def close(self) -> None:
        """Stop everything, in reverse order of starting. Idempotent.

        What a closer raises, a cancellation included, is raised once the others are closed as well.
        """
        problems: list[BaseException] = []
        while self._closers:
            closer = self._closers.pop()
            try:
                await closer()
            except BaseException as error:
                problems.append(error)
        for problem in problems:
            if not isinstance(problem, Exception):  # it was asked to end: no failure of closing
                raise problem
        if problems:
            raise LimbicError(f"while closing: {problems[0]!r}") from problems[0]

    async def _start(self) -> None:
        s = self.settings
        load_persona(s.chat.persona, s)  # a wrong persona is a configuration error: say so now
        self.telemetry = Telemetry(s.telemetry, s.logs_dir, clock=self.clock)
        emit = self.telemetry.emit
        # First of all: where another brain has the directory, the logs are that one's too.
        store = await Store.open(s.data_dir, emit=emit)
        self._closers.append(store.close)
        await self.telemetry.start()
        self._closers.insert(0, self.telemetry.close)
        http = open_http()
        self._closers.append(http.close)
        self.supervisor = Supervisor(s.supervisor, clock=self.clock, emit=emit)
        self._closers.append(self.supervisor.stop)
        for name in self._watched():
            self.supervisor.add(self._spec(name, s.sidecar(name)))
        await self.supervisor.start()
        blend = Blend(
            s.blend, clock=self.clock, emit=emit, on_settled=self.telemetry.stats.note_side
        )
        self._closers.append(blend.close)
        sessions = Sessions(
            store,
            # Read once, like all settings: a session opened in a turn must not wait for TOML.
            persona_named=functools.cache(lambda name: load_persona(name, s)),
            default_persona=s.chat.persona,
            clock=self.clock,
            max_open=s.web.max_sessions,
            on_uncached=lambda session: self.chat.warm(session),
            on_claim=self._interrupt_renewal,
        )
        self._closers.append(sessions.close)
        self._llm_breaker = self._breaker("llm")
        self.parts = Parts(
            settings=s, clock=self.clock, emit=emit, telemetry=self.telemetry, store=store,
            sessions=sessions, memory=Memory(s.memory, store), blend=blend,
            llm=LLMClient(
                s.llm, endpoint=self._endpoint("llm"), http=http, breaker=self._llm_breaker,
                clock=self.clock, emit=emit,
            ),
        )  # fmt: skip
        if s.sidecar("cahm").mode != "off":
            self.parts.classifier = AffectClassifier(
                endpoint=self._endpoint("cahm"), http=http, breaker=self._breaker("cahm"),
                clock=self.clock, emit=emit,
            )  # fmt: skip
        if s.sidecar("lvm").mode != "off":
            self.parts.foresight = ForesightClient(
                endpoint=self._endpoint("lvm"), http=http, breaker=self._breaker("lvm"),
                clock=self.clock,
            )  # fmt: skip
            self.parts.renewal = Renewal(
                store, self.parts.foresight, emit=emit, talking=sessions.talking
            )
        self.chat = Chat(self.parts)
        self._ticker = asyncio.create_task(self._tick(sessions))
        self._closers.append(self._stop_ticking)

    def _interrupt_renewal(self) -> None:
        if self.parts.renewal is not None:
            self.parts.renewal.interrupt()

    async def _tick(self, sessions: Sessions) -> None:
        while True:
            await self.clock.sleep(self.settings.state.tick_s)
            await sessions.tick()

    async def _stop_ticking(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.wait([self._ticker])

    def _breaker(self, name: SideName) -> CircuitBreaker:
        return CircuitBreaker(
            self.settings.breaker, remote=name, clock=self.clock, emit=self.telemetry.emit
        )

    def _watched(self) -> list[SideName]:
        """What is started here, and side models elsewhere. A chat model elsewhere is known by its
        breaker: it may be anybody's server, which knows no ``/ready``."""
        names: tuple[SideName, ...] = get_args(SideName)
        modes = {name: self.settings.sidecar(name).mode for name in names}
        return [n for n in names if modes[n] == "managed" or (modes[n] == "remote" and n != "llm")]

    def _endpoint(self, name: SideName) -> EndpointSource:
        """Where a side model listens. The chat model is waited for; the others are asked as is."""
        side = self.settings.sidecar(name)
        if side.mode == "remote":
            assert side.url is not None
            token_env = self.settings.llm.api_key_env if name == "llm" else side.token_env
            fixed = Endpoint(side.url.rstrip("/"), _secret(token_env))

            async def remote() -> Endpoint:
                return fixed

            return remote

        async def managed() -> Endpoint:
            await self.supervisor.ensure(name)
            if name == "llm":
                return await self.supervisor.wait_ready(name, LLM_READY_WAIT_S)
            return self.supervisor.endpoint(name)

        async def off() -> Endpoint:
            raise SidecarDown(f"{name} is switched off", name=name)

        return managed if side.mode == "managed" else off

    def _spec(self, name: SideName, side: SidecarSettings) -> ChildSpec:
        argv = side.command or module_argv(f"sidecars.{name}")
        env: dict[str, str] = {}
        if side.command is None:
            env = module_path(os.environ)
            if side.model:
                argv += ("--model", side.model)
            if name == "llm":
                llm = self.settings.llm
                argv += ("--context-tokens", str(llm.context_tokens))
                if llm.states_mb:
                    folder = self.settings.data_dir / "llm-states"
                    argv += ("--states", str(folder), "--states-mb", str(llm.states_mb))
        return ChildSpec(name=name, argv=(*argv, *side.args), settings=side, env=env)


def _secret(env_name: str | None) -> str | None:
    if env_name is None:
        return None
    value = os.environ.get(env_name)
    if not value:
        raise ConfigError(f"environment variable {env_name} is not set; it holds a server's key")
    return value
