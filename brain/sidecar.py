"""What every sidecar is to the rest of the brain: a state, an address, a way to wait for it.

Here are the base class and the two kinds without a process of ours: ``RemoteSidecar`` (somebody
else's server, only watched) and ``OffSidecar``. ``brain.managed`` has the one with a process.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from brain.clock import Clock
from brain.control import ControlClient
from brain.errors import RemoteError, RemoteRejected, SidecarDown, SidecarError, SidecarFailed
from brain.events import Emit, Endpoint
from brain.processes import settle
from brain.settings import SidecarSettings

State = Literal[
    "off",
    "starting",
    "ready",
    "restarting",
    "degraded",
    "failed",
    "stopping",
    "stopped",
    "remote",
]

REMOTE_WITHOUT_READY_S = 30.0
REMOTE_STOP_S = 5.0


@dataclass(frozen=True)
class ChildSpec:
    """One declared sidecar. ``argv`` and ``env`` are for managed ones."""

    name: str
    argv: tuple[str, ...]
    settings: SidecarSettings
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SidecarStatus:
    """A sidecar at one moment. ``reason`` is one line, empty when there is nothing to say;
    while it starts, it is the last progress that the child reported. ``rss_mb`` in MiB."""

    state: State
    required: bool = False
    pid: int | None = None
    restarts: int = 0
    model: str = ""
    sha256: str = ""
    rss_mb: float | None = None
    queue: int | None = None
    reason: str = ""


class Sidecar(ABC):
    """State machine shell: transitions are events, and wake whoever waits for one."""

    def __init__(
        self,
        spec: ChildSpec,
        *,
        control: ControlClient,
        clock: Clock,
        emit: Emit,
        state: State = "off",
        reason: str = "",
    ) -> None:
        self.name = spec.name
        self.settings = spec.settings
        self.state: State = state
        self.reason = reason
        self._control = control
        self._clock = clock
        self._emit = emit
        self._changed: asyncio.Future[None] | None = None

    @abstractmethod
    def begin(self) -> None:
        """Start it if it is not started; returns at once. Needs a running loop."""

    @abstractmethod
    async def stop(self) -> None:
        """End it for good; bounded."""

    @abstractmethod
    def abort(self) -> None:
        """End it for good without grace and without waiting."""

    @abstractmethod
    def endpoint(self) -> Endpoint:
        """Its address now. Raises ``SidecarDown`` or ``SidecarFailed``."""

    def restart(self) -> None:
        """Begin a new life at once. Raises ``SidecarError`` if there is no process of ours."""
        raise SidecarError(f"{self.name} is not started here: nothing to restart", name=self.name)

    def status(self) -> SidecarStatus:
        """What is known without asking anybody."""
        return SidecarStatus(self.state, required=self.settings.required, reason=self.reason)

    async def wait_ready(self, timeout_s: float) -> Endpoint:
        """Wait until it can be used.

        Raises:
            SidecarDown: not within ``timeout_s``, or it is off or stopped.
            SidecarFailed: it will not come up by itself soon.
        """
        deadline = self._clock.monotonic() + timeout_s
        while True:
            changed = self._next_change()
            try:
                return self._confirmed_endpoint()
            except SidecarDown as down:
                remaining = deadline - self._clock.monotonic()
                if self.state in ("off", "stopping", "stopped"):
                    raise
                if remaining <= 0 or not await settle(self._clock, changed, remaining):
                    raise SidecarDown(
                        f"{self.name} was not ready within {timeout_s:g} s"
                        + (f": {self.reason}" if self.reason else ""),
                        name=self.name,
                    ) from down

    def _confirmed_endpoint(self) -> Endpoint:
        return self.endpoint()

    def _enter(self, state: State, reason: str = "") -> None:
        self.state, self.reason = state, reason
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)
        self._changed = None

    def _next_change(self) -> asyncio.Future[None]:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed


class OffSidecar(Sidecar):
    """Switched off in the settings."""

    def begin(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    def abort(self) -> None:
        """Nothing to stop."""

    def endpoint(self) -> Endpoint:
        raise SidecarDown(
            f"{self.name} is switched off (sidecars.{self.name}.mode)", name=self.name
        )


class RemoteSidecar(Sidecar):
    """Somebody else's server: never started or stopped, only asked ``/ready`` now and then.

    Its address is always given, because the caller's own breaker is quicker than a heartbeat; the
    heartbeat is for the status. A server without ``/ready`` (404) counts as reachable and is asked
    rarely.
    """

    def __init__(
        self, spec: ChildSpec, *, control: ControlClient, clock: Clock, emit: Emit
    ) -> None:
        super().__init__(spec, control=control, clock=clock, emit=emit, state="remote")
        self._answered = False
        self._model = ""
        self._sha256 = ""
        self._watcher: asyncio.Task[None] | None = None
        token_env = spec.settings.token_env
        self._token = os.environ.get(token_env) if token_env else None
        self._misconfigured = token_env is not None and not self._token
        if self._misconfigured:
            self._enter("failed", f"environment variable {token_env} holds no token; set it")

    def begin(self) -> None:
        if self._watcher is None and not self._misconfigured:
            self._watcher = asyncio.create_task(self._watch(), name=f"remote {self.name}")

    async def stop(self) -> None:
        self.abort()
        if self._watcher is not None:
            await settle(self._clock, self._watcher, REMOTE_STOP_S)

    def abort(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        self._enter("stopped")

    def endpoint(self) -> Endpoint:
        if self._misconfigured:
            raise SidecarFailed(f"{self.name}: {self.reason}", name=self.name)
        if self.state == "stopped":
            raise SidecarDown(f"{self.name} is stopped", name=self.name)
        return Endpoint((self.settings.url or "").rstrip("/"), self._token)

    def status(self) -> SidecarStatus:
        return SidecarStatus(
            self.state,
            required=self.settings.required,
            model=self._model,
            sha256=self._sha256,
            reason=self.reason,
        )

    def _confirmed_endpoint(self) -> Endpoint:
        endpoint = self.endpoint()
        if not self._answered:
            raise SidecarDown(self.reason or f"{self.name} has not answered yet", name=self.name)
        return endpoint

    async def _watch(self) -> None:
        interval = self.settings.heartbeat_interval_s
        while True:
            pause = interval
            problem = ""
            try:
                ready = await self._control.ready(
                    self.endpoint(), timeout_s=self.settings.heartbeat_timeout_s
                )
                self._model, self._sha256 = ready.model, ready.sha256
                if not ready.ready:
                    problem = f"{self.name} says that it is not ready"
            except RemoteRejected as error:
                if error.status in (404, 405):
                    pause = max(interval, REMOTE_WITHOUT_READY_S)
                elif error.status in (401, 403):
                    problem = f"{self.name} refused the token (status {error.status})"
                else:
                    problem = str(error)
            except RemoteError as error:
                problem = str(error)
            self._record(problem)
            await self._clock.sleep(pause)

    def _record(self, problem: str) -> None:
        before = self.state, self._answered
        self._answered = not problem
        after: State = "degraded" if problem else "remote"
        if before != (after, self._answered):
            self._emit("sidecar_remote", name=self.name, state=after, reason=problem)
        self._enter(after, problem)
