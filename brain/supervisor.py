"""The sidecars of one brain: declared, started in order, watched, stopped in reverse.

``start`` returns at once, so that a prompt can accept input while a model loads; ``wait_ready`` and
``source`` wait. Which process dies of what, and what follows, is in ``brain.managed``; the rules of
restarting are in ``brain.restart``; how no process outlives the brain is in ``brain.processes``.
"""

from __future__ import annotations

import asyncio

import aiohttp

from brain.child import REAP_S
from brain.clock import Clock
from brain.control import ControlClient, control_session
from brain.errors import InputError, SidecarDown
from brain.events import Emit, Endpoint, EndpointSource
from brain.managed import ManagedSidecar
from brain.processes import OrphanGuard
from brain.settings import SupervisorSettings
from brain.sidecar import ChildSpec, OffSidecar, RemoteSidecar, Sidecar, SidecarStatus, State

__all__ = ["ChildSpec", "SidecarStatus", "State", "Supervisor"]


class Supervisor:
    """Owns every sidecar. Make, ``add`` each, ``start``, and always ``stop``.

    ``http`` is for control requests only; left out, they get connections of their own, so that no
    burst of chat requests can hold up a heartbeat until a healthy sidecar looks dead. Deadlines
    follow ``clock``, except those of single HTTP requests and of reaping a killed process.
    Children die with the thread that runs the event loop (``brain.spawn``).
    """

    def __init__(
        self,
        settings: SupervisorSettings,
        *,
        clock: Clock,
        emit: Emit,
        http: aiohttp.ClientSession | None = None,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._own_http = http is None
        self._http = http
        self._specs: list[ChildSpec] = []
        self._sidecars: dict[str, Sidecar] = {}
        self._begun: list[Sidecar] = []
        self._guard: OrphanGuard | None = None
        self._stop_task: asyncio.Task[None] | None = None

    def add(self, spec: ChildSpec) -> None:
        """Declare one sidecar; before ``start``. Raises ``ValueError`` for a second one of a name
        or a managed one without a command."""
        if self._guard is not None:
            raise ValueError("sidecars are declared before the supervisor starts")
        if any(spec.name == known.name for known in self._specs):
            raise ValueError(f"two sidecars are named {spec.name!r}")
        if spec.settings.mode == "managed" and not spec.argv:
            raise ValueError(f"sidecar {spec.name!r} has no command to run")
        self._specs.append(spec)

    async def start(self) -> None:
        """Begin every eager sidecar, in the order in which they were added; does not wait.

        Does nothing the second time, or after ``stop``.
        """
        if self._guard is not None or self._stop_task is not None:
            return
        self._guard = OrphanGuard(self._clock)
        if self._http is None:
            self._http = control_session()
        for spec in self._specs:
            self._sidecars[spec.name] = self._make(spec, self._http, self._guard)
        for sidecar in self._sidecars.values():
            if sidecar.settings.start == "eager" or sidecar.settings.mode != "managed":
                self._begin(sidecar)

    async def stop(self) -> None:
        """End every sidecar, last begun first, and wait until each is reaped; bounded.

        Cancelling it takes all grace away: every process is killed at once. Safe at any time, and
        more than once.
        """
        if self._stop_task is None:
            self._stop_task = asyncio.create_task(self._stop_all(), name="stop sidecars")
        try:
            await asyncio.shield(self._stop_task)
        except asyncio.CancelledError:
            for sidecar in self._sidecars.values():
                sidecar.abort()
            await asyncio.wait({self._stop_task}, timeout=REAP_S)
            raise

    async def ensure(self, name: str) -> None:
        """Begin a lazy sidecar if it has not begun; does not wait. Raises ``SidecarDown`` after
        ``stop``."""
        sidecar = self._running(name)
        if sidecar not in self._begun:
            self._begin(sidecar)

    async def restart(self, name: str) -> None:
        """Begin a new life at once, also for one that failed; does not wait.

        Raises:
            SidecarError: it is remote or off, or the supervisor is stopping.
        """
        sidecar = self._running(name)
        sidecar.restart()
        if sidecar not in self._begun:
            self._begun.append(sidecar)

    def endpoint(self, name: str) -> Endpoint:
        """Its address now. Raises ``SidecarDown`` or ``SidecarFailed``, with the reason."""
        return self._running(name).endpoint()

    async def wait_ready(self, name: str, timeout_s: float) -> Endpoint:
        """Begin it if it is lazy, wait until it is ready, and return its address.

        Raises:
            SidecarDown: not within ``timeout_s``; the message has its last progress.
            SidecarFailed: it will not come up soon by itself; raised as soon as that is known.
        """
        await self.ensure(name)
        return await self._running(name).wait_ready(timeout_s)

    def source(self, name: str, *, wait_s: float = 0.0) -> EndpointSource:
        """An ``EndpointSource`` for a client: begins a lazy sidecar, and waits up to ``wait_s`` for
        one that is starting."""

        async def resolve() -> Endpoint:
            await self.ensure(name)
            if wait_s > 0:
                return await self._running(name).wait_ready(wait_s)
            return self.endpoint(name)

        return resolve

    def status(self) -> dict[str, SidecarStatus]:
        """Each sidecar, in the order in which they were added. Cheap: asks nobody."""
        return {name: sidecar.status() for name, sidecar in self._sidecars.items()}

    def _running(self, name: str) -> Sidecar:
        if self._stop_task is not None:
            raise SidecarDown(f"{name} is stopped, with the brain", name=name)
        if self._guard is None:
            raise SidecarDown(f"{name} is not started yet", name=name)
        try:
            return self._sidecars[name]
        except KeyError:
            known = ", ".join(self._sidecars) or "none"
            raise InputError(f"no sidecar is named {name[:64]!r}; there are: {known}") from None

    def _begin(self, sidecar: Sidecar) -> None:
        if sidecar.settings.mode != "off":
            self._begun.append(sidecar)
            sidecar.begin()

    def _make(self, spec: ChildSpec, http: aiohttp.ClientSession, guard: OrphanGuard) -> Sidecar:
        control = ControlClient(http, spec.name)
        clock, emit = self._clock, self._emit
        if spec.settings.mode == "managed":
            return ManagedSidecar(
                spec, self._settings, control=control, guard=guard, clock=clock, emit=emit
            )
        kind = RemoteSidecar if spec.settings.mode == "remote" else OffSidecar
        return kind(spec, control=control, clock=clock, emit=emit)

    async def _stop_all(self) -> None:
        try:
            for sidecar in reversed(self._begun):
                await sidecar.stop()
                self._emit("sidecar_stopped", name=sidecar.name)
        finally:
            if self._guard is not None:
                await self._guard.close()
            if self._own_http and self._http is not None:
                await self._http.close()
