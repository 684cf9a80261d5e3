"""A sidecar whose process is ours: one task walks it through its lives.

A life: spawn → handshake → ``/ready`` → heartbeats, until something ends it (``_End``): the process
exits, a deadline passes, it hangs, it outgrows its memory, a person asks. Whatever the cause, the
state changes first, so that nobody is sent to a dying process; then the process group is ended and
reaped; then ``RestartPolicy`` says when the next life begins. Exit code 78 and a wrong handshake
are permanent.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Coroutine
from dataclasses import dataclass

from brain.child import REAP_S, ChildProcess
from brain.clock import Clock
from brain.control import ControlClient
from brain.errors import EXIT_CONFIG, SidecarDown, SidecarFailed
from brain.events import Emit, Endpoint
from brain.processes import OrphanGuard, child_env, settle
from brain.restart import RestartPolicy
from brain.schema import Hello
from brain.settings import SupervisorSettings
from brain.sidecar import ChildSpec, Sidecar, SidecarStatus, State
from brain.startup import StartFailed, Startup
from brain.vitals import MIB, Vitals

TOKEN_VARIABLE = "LIMBIC_SIDECAR_TOKEN"
HUNG_GRACE_S = 1.0
STOP_SLACK_S = 2.0
PROGRESS_EVENT_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class _End:
    """Why a life ended. ``hung``: ask for a stack dump, and do not be patient."""

    reason: str
    permanent: bool = False
    hung: bool = False


class ManagedSidecar(Sidecar):
    """Starts, watches, restarts and stops one child process."""

    def __init__(
        self,
        spec: ChildSpec,
        settings: SupervisorSettings,
        *,
        control: ControlClient,
        guard: OrphanGuard,
        clock: Clock,
        emit: Emit,
    ) -> None:
        lazy = spec.settings.start == "lazy"
        reason = "starts when it is first needed" if lazy else ""
        super().__init__(spec, control=control, clock=clock, emit=emit, reason=reason)
        self._spec = spec
        self._grace_s = settings.stop_grace_s
        self._policy = RestartPolicy(settings, clock.rng)
        self._guard = guard
        self._actor: asyncio.Task[None] | None = None
        self._child: ChildProcess | None = None
        self._nudge = asyncio.Event()
        self._stopping = False
        self._restart_wanted = False
        self._restarts = 0
        self._endpoint: Endpoint | None = None
        self._hello: Hello | None = None
        self._ready_since: float | None = None
        self._progress_at: float | None = None
        self._vitals: Vitals | None = None

    # -- what others call

    def begin(self) -> None:
        if self._actor is None and not self._stopping:
            self._enter("starting")
            self._actor = asyncio.create_task(self._run(), name=f"sidecar {self.name}")

    def restart(self) -> None:
        if self._stopping:
            raise SidecarDown(f"{self.name} is stopping", name=self.name)
        self._policy.reset()
        if self._actor is not None and not self._actor.done():
            self._restart_wanted = True
            self._leave("restarting", "restart was asked for")
            self._nudge.set()
            return
        self._restarts += self._actor is not None
        self._actor = None
        self.begin()

    async def stop(self) -> None:
        self._stopping = True
        actor = self._actor
        if actor is not None and not actor.done():
            self._leave("stopping")
            self._nudge.set()
            if not await settle(self._clock, actor, self._grace_s + REAP_S + STOP_SLACK_S):
                self.abort()
                actor.cancel()
                await settle(self._clock, actor, STOP_SLACK_S)
        self._leave("stopped")

    def abort(self) -> None:
        self._stopping = True
        self._grace_s = 0.0
        self._nudge.set()
        if self._child is not None:
            self._child.kill_group()

    def endpoint(self) -> Endpoint:
        if self.state == "ready" and self._endpoint is not None:
            return self._endpoint
        text = f"{self.name} is {self.state}" + (f": {self.reason}" if self.reason else "")
        if self.state in ("failed", "degraded"):
            raise SidecarFailed(text, name=self.name)
        raise SidecarDown(text, name=self.name)

    def status(self) -> SidecarStatus:
        hello, vitals = self._hello, self._vitals
        return SidecarStatus(
            self.state,
            required=self.settings.required,
            pid=self._child.pid if self._child is not None else None,
            restarts=self._restarts,
            model=hello.model if hello is not None else "",
            sha256=hello.sha256 if hello is not None else "",
            rss_mb=round(vitals.rss / MIB, 1) if vitals is not None and vitals.rss else None,
            queue=vitals.queue if vitals is not None else None,
            reason=self.reason,
        )

    # -- its lives

    async def _run(self) -> None:
        try:
            await self._lives()
        except Exception as error:
            # A bug here must not look like a sidecar that is merely starting.
            self._emit("sidecar_supervision_error", name=self.name, error=repr(error))
            self._leave("failed", f"its supervision broke: {error!r}")

    async def _lives(self) -> None:
        while not self._stopping:
            self._nudge.clear()
            self._restart_wanted = False
            end = await self._live()
            if self._stopping:
                return
            if not self._restart_wanted:
                if end.permanent:
                    self._emit("sidecar_failed", name=self.name, reason=end.reason)
                    self._leave("failed", end.reason)
                    return
                await self._pause(end)
            self._restarts += 1

    async def _pause(self, end: _End) -> None:
        """Wait until the next life may begin, or until somebody nudges."""
        now = self._clock.monotonic()
        ready_s = None if self._ready_since is None else now - self._ready_since
        restart = self._policy.ended(now, ready_s)
        state: State = "degraded" if restart.degraded else "restarting"
        reason = end.reason
        if restart.degraded:
            reason += f"; it ended too often and is now tried every {restart.delay_s:g} s"
        self._emit(f"sidecar_{state}", name=self.name, reason=reason, delay_s=restart.delay_s)
        self._leave(state, reason)
        if restart.delay_s > 0:
            await self._first(self._asked(), self._after(restart.delay_s, end))

    async def _live(self) -> _End:
        """One life, from spawn to reaped."""
        self._ready_since = self._vitals = None
        if self.state != "degraded":  # a slow retry stays degraded until it is ready
            self._enter("starting", self.reason if self._restarts else "")
        token = secrets.token_urlsafe(32)
        startup = Startup(
            self.name, self.settings, clock=self._clock, on_progress=self._note_progress
        )
        env = {**self._spec.env, TOKEN_VARIABLE: token, **self._guard.environment}
        try:
            child = await ChildProcess.spawn(
                self.name,
                self._spec.argv,
                child_env(os.environ, env),
                clock=self._clock,
                emit=self._emit,
                on_line=startup.line,
            )
        except OSError as error:
            return _End(f"cannot be started: {error.strerror or error}")
        self._child = child
        self._emit("sidecar_started", name=self.name, pid=child.pid)
        try:
            end = await self._until_end(child, startup, token)
            self._announce_end(child, end)
            grace = min(HUNG_GRACE_S, self._grace_s) if end.hung else self._grace_s
            await child.terminate(grace_s=grace, dump=end.hung)
        finally:  # cancelled: no grace; otherwise it is reaped already and this does nothing
            await child.terminate(grace_s=None)
            self._child = self._vitals = None
        return end

    async def _until_end(self, child: ChildProcess, startup: Startup, token: str) -> _End:
        vitals = self._vitals = Vitals(
            self.name, self.settings, control=self._control, clock=self._clock, emit=self._emit
        )
        end = await self._first(
            self._asked(),
            self._memory(child, vitals),
            self._serve(child, startup, vitals, token),
            _exit(child),
        )
        if child.exited.done() and not self._nudge.is_set():
            await child.drained()
            return _End(child.describe_exit(), permanent=child.exited.result() == EXIT_CONFIG)
        return end

    async def _serve(
        self, child: ChildProcess, startup: Startup, vitals: Vitals, token: str
    ) -> _End:
        """From handshake to the missed heartbeats that end it."""
        await self._start_guard()
        try:
            hello = await startup.handshake(child)
            endpoint = Endpoint(f"http://127.0.0.1:{hello.port}", token)
            ready = await startup.until_ready(self._control, endpoint)
        except StartFailed as failed:
            return _End(failed.reason, permanent=failed.permanent, hung=failed.stuck)
        self._hello = hello.model_copy(
            update={"model": ready.model or hello.model, "sha256": ready.sha256 or hello.sha256}
        )
        self._endpoint = endpoint
        self._ready_since = self._clock.monotonic()
        self._enter("ready")
        self._emit(
            "sidecar_ready",
            name=self.name,
            pid=child.pid,
            port=hello.port,
            model=self._hello.model,
            sha256=self._hello.sha256,
            start_ms=round(startup.deadline.elapsed_s * 1000, 1),
        )
        await vitals.sample(child.pid)
        return _End(await vitals.until_silent(endpoint), hung=True)

    async def _start_guard(self) -> None:
        """See that grandchildren cannot outlive us. After the spawn, so that the child loads
        meanwhile."""
        try:
            await self._guard.ensure()
        except OSError as error:
            self._emit("orphan_guard_failed", name=self.name, error=str(error))

    async def _memory(self, child: ChildProcess, vitals: Vitals) -> _End:
        return _End(await vitals.until_too_big(child.pid))

    async def _asked(self) -> _End:
        await self._nudge.wait()
        return _End("stop was asked for" if self._stopping else "restart was asked for")

    async def _after(self, seconds: float, end: _End) -> _End:
        await self._clock.sleep(seconds)
        return end

    # -- small things

    def _announce_end(self, child: ChildProcess, end: _End) -> None:
        """Before the killing, which takes time: from here on nobody is sent to this child."""
        if not self._nudge.is_set():
            degraded: State = "degraded" if self.state == "degraded" else "restarting"
            self._leave("failed" if end.permanent else degraded, end.reason)
        self._emit("sidecar_ended", name=self.name, pid=child.pid, reason=end.reason)

    def _leave(self, state: State, reason: str = "") -> None:
        """Enter a state in which there is nobody to talk to."""
        self._endpoint = None
        self._enter(state, reason)

    def _note_progress(self, detail: str) -> None:
        if self.state == "starting":
            self._enter("starting", detail)
        now = self._clock.monotonic()
        if self._progress_at is None or now - self._progress_at >= PROGRESS_EVENT_INTERVAL_S:
            self._progress_at = now
            self._emit("sidecar_progress", name=self.name, detail=detail)

    @staticmethod
    async def _first(*coroutines: Coroutine[None, None, _End]) -> _End:
        """Run all, return the result of the earliest listed that is done, cancel the others."""
        tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return next(task for task in tasks if task.done()).result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _exit(child: ChildProcess) -> _End:
    await asyncio.wait({child.exited})
    return _End("exited")
