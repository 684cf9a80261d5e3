"""The supervisor against real processes. Each test ends with a search for processes left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from blockbuster import blockbuster_ctx

from brain.clock import Clock, SystemClock
from brain.errors import InputError, SidecarDown, SidecarError, SidecarFailed
from brain.settings import SidecarSettings, SupervisorSettings
from brain.supervisor import ChildSpec, SidecarStatus, Supervisor
from tests.fakes.clock import ManualClock

CHILD = Path(__file__).parent / "fakes" / "child.py"
RUN_VARIABLE = "LIMBIC_TEST_RUN"
PATIENCE_S = 20.0
"""How long a test waits for something that happens within milliseconds on an idle machine."""


@pytest.fixture(autouse=True)
def blocking_the_loop_fails() -> Iterator[None]:
    with blockbuster_ctx(scanned_modules=["brain"]):
        yield


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110  (another process makes it true; there is no event)
            await asyncio.sleep(0.004)


def differs(house: House, seen: str) -> bool:
    return house.status().reason != seen


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def carriers(run: str) -> list[int]:
    """Every process that was started by this test, however it was reparented."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(RUN_VARIABLE) == run:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


class House:
    """A supervisor, the events it emitted, and shortcuts."""

    def __init__(self, clock: Clock | None = None, **settings: Any) -> None:
        self.run = uuid.uuid4().hex
        self.events: list[tuple[str, dict[str, Any]]] = []
        limits: dict[str, Any] = {"stop_grace_s": 5.0, "backoff_base_ms": 1, **settings}
        self.supervisor = Supervisor(
            SupervisorSettings(**limits), clock=clock or SystemClock(seed=1), emit=self._emit
        )

    def _emit(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def add(self, modes: str = "ok", name: str = "fake", **settings: Any) -> None:
        argv = (sys.executable, "-S", "-E", str(CHILD), f"name={name},{modes}")
        self.add_argv(argv, name, **settings)

    def add_argv(self, argv: tuple[str, ...], name: str = "fake", **settings: Any) -> None:
        values: dict[str, Any] = {"mode": "managed", **settings}
        spec = ChildSpec(name, argv, SidecarSettings(**values), {RUN_VARIABLE: self.run})
        self.supervisor.add(spec)

    async def start(self, modes: str = "ok", **settings: Any) -> None:
        self.add(modes, **settings)
        await self.supervisor.start()

    async def ready(self, name: str = "fake") -> None:
        await self.supervisor.wait_ready(name, PATIENCE_S)

    def status(self, name: str = "fake") -> SidecarStatus:
        return self.supervisor.status()[name]

    async def until_state(self, state: str, name: str = "fake") -> SidecarStatus:
        await until(lambda: self.status(name).state == state)
        return self.status(name)

    async def kill(self) -> None:
        """Stop without grace."""
        stopping = asyncio.create_task(self.supervisor.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        await asyncio.gather(stopping, return_exceptions=True)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for kind, fields in self.events if kind == event]

    async def ask(self, path: str, name: str = "fake") -> Any:
        endpoint = self.supervisor.endpoint(name)
        async with (
            aiohttp.ClientSession() as http,
            http.get(endpoint.url + path, headers=endpoint.headers) as response,
        ):
            return await response.json()


@asynccontextmanager
async def a_house(clock: Clock | None = None, **settings: Any) -> AsyncIterator[House]:
    house = House(clock, **settings)
    try:
        yield house
    finally:
        await house.supervisor.stop()
        left = [process.cmdline() for process in psutil.Process().children(recursive=True)]
        assert left == []
        assert carriers(house.run) == []


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with a_house() as made:
        yield made


# -- starting


async def test_start_returns_at_once_and_progress_can_be_watched_while_it_loads(
    house: House,
) -> None:
    await house.start("progress=2,stall")
    assert house.status().state == "starting"
    await until(lambda: house.status().reason == "loading 2")
    with pytest.raises(SidecarDown, match="fake is starting: loading 2"):
        house.supervisor.endpoint("fake")
    with pytest.raises(SidecarDown, match=r"not ready within 0.02 s: loading 2"):
        await house.supervisor.wait_ready("fake", 0.02)


async def test_a_ready_child_reports_who_it_is_its_memory_and_its_queue(house: House) -> None:
    await house.start("queue=3", heartbeat_interval_s=0.01)
    await house.ready()
    await until(lambda: house.status().queue == 3)
    status = house.status()
    assert (status.state, status.model, status.sha256) == ("ready", "fake-model", "f" * 64)
    assert status.pid == (await house.ask("/info"))["pid"]
    assert status.rss_mb is not None and 1 < status.rss_mb < 200
    assert status.restarts == 0 and status.reason == ""


async def test_ready_gates_use_until_the_child_says_so(house: House) -> None:
    await house.start("not-ready=3,ready-progress=2")
    await house.ready()
    assert house.supervisor.endpoint("fake").url.startswith("http://127.0.0.1:")


async def test_a_child_gets_a_token_and_not_our_secrets(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    await house.start()
    await house.ready()
    names = (await house.ask("/info"))["env"]
    assert "LIMBIC_SIDECAR_TOKEN" in names and "PATH" in names
    assert "SOME_API_KEY" not in names
    endpoint = house.supervisor.endpoint("fake")
    assert endpoint.token and endpoint.token not in repr(endpoint)
    async with aiohttp.ClientSession() as http, http.get(endpoint.url + "/info") as response:
        assert response.status == 401


@pytest.mark.parametrize("modes", ["garbage", "binary", "oversized", "flood"])
async def test_noise_on_the_pipes_does_not_stop_a_start(house: House, modes: str) -> None:
    await house.start(modes)
    await house.ready()
    assert len(house.named("sidecar_stderr")) < 500


async def test_progress_extends_the_deadline_up_to_the_hard_cap() -> None:
    clock = ManualClock()
    async with a_house(clock) as house:
        await house.start("endless-progress,interval=2", ready_deadline_s=30, ready_hard_cap_s=100)
        for _ in range(4):
            seen = house.status().reason
            await until(partial(differs, house, seen))
            await clock.advance(24)
        assert house.status().restarts == 0 and not house.named("sidecar_ended")
        await clock.advance(5)
        await until(lambda: bool(house.named("sidecar_ended")))
        assert "hard cap of 100 s" in house.named("sidecar_ended")[0]["reason"]


async def test_a_stalled_load_is_dumped_ended_and_tried_again() -> None:
    clock = ManualClock()
    async with a_house(clock) as house:
        await house.start("progress=1,stall", ready_deadline_s=30)
        await until(lambda: house.status().reason == "loading 1")
        await clock.advance(29)
        assert not house.named("sidecar_ended")
        await clock.advance(2)
        await until(lambda: bool(house.named("sidecar_ended")))
        assert "no progress for 30 s" in house.named("sidecar_ended")[0]["reason"]
        await until(lambda: len(house.named("sidecar_started")) == 2)
        assert any("most recent call first" in e["line"] for e in house.named("sidecar_stderr"))


async def test_a_child_that_never_says_ready_is_given_up_at_its_deadline(house: House) -> None:
    await house.start("never-ready", ready_deadline_s=0.3)
    await until(lambda: bool(house.named("sidecar_ended")))
    assert "says that it is not ready" in house.named("sidecar_ended")[0]["reason"]


async def test_a_truncated_handshake_is_noticed_when_the_pipe_closes() -> None:
    async with a_house(stop_grace_s=0.05) as house:
        await house.start("truncated", ready_deadline_s=3_600)
        await until(lambda: bool(house.named("sidecar_ended")))
        reason = house.named("sidecar_ended")[0]["reason"]
        assert "closed its standard output without a handshake (1 unusable line" in reason


@pytest.mark.parametrize(
    ("modes", "words"),
    [
        ("bad-hello", "handshake is wrong.*port"),
        ("wrong-name", "says it is 'other', not 'fake'"),
        ("wrong-pid", "must exec the sidecar"),
        ("config", r"exit code 78 \(configuration\): model file is altered: sha256 differs"),
    ],
)
async def test_what_a_restart_cannot_mend_is_permanent(
    house: House, modes: str, words: str
) -> None:
    await house.start(modes)
    with pytest.raises(SidecarFailed, match=words):
        await house.ready()
    assert house.status().state == "failed"
    assert len(house.named("sidecar_started")) == 1


async def test_a_missing_program_is_permanent_and_named(house: House) -> None:
    house.add_argv(("/no/such/program", "--flag"))
    await house.supervisor.start()
    with pytest.raises(SidecarFailed, match="cannot run /no/such/program: No such file"):
        await house.ready()


async def test_a_port_in_use_is_permanent_and_named(house: House) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        await house.start(f"port={port}")
        with pytest.raises(SidecarFailed, match=f"port {port} is in use"):
            await house.ready()


async def test_a_failed_child_starts_again_when_a_person_asks(house: House, tmp_path: Path) -> None:
    await house.start(f"config-once={tmp_path / 'tried'}")
    await house.until_state("failed")
    await house.supervisor.restart("fake")
    await house.ready()
    assert house.status().restarts == 1


# -- dying


@pytest.mark.parametrize("modes", ["ok", "grandchild"])
async def test_killing_a_child_fails_its_waiters_at_once_and_it_restarts(
    house: House, modes: str
) -> None:
    await house.start(modes)
    await house.ready()
    info = await house.ask("/info")
    waiting = asyncio.create_task(house.ask("/work"))
    await asyncio.sleep(0.02)
    os.kill(info["pid"], signal.SIGKILL)
    with pytest.raises(aiohttp.ClientError):
        await asyncio.wait_for(waiting, PATIENCE_S)
    await until(lambda: house.status().restarts == 1)
    await house.ready()
    assert house.status().pid != info["pid"]
    assert "killed by SIGKILL" in house.named("sidecar_restarting")[0]["reason"]
    assert info["grandchild"] == 0 or not alive(info["grandchild"])


async def test_nobody_is_sent_to_a_child_that_is_being_ended() -> None:
    async with a_house(stop_grace_s=3_600) as house:
        await house.start("ignore-term")
        await house.ready()
        await house.supervisor.restart("fake")
        with pytest.raises(SidecarDown, match="restarting: restart was asked for"):
            house.supervisor.endpoint("fake")
        await house.kill()


async def test_a_grandchild_that_holds_the_pipe_hides_nothing_and_dies_with_its_parent(
    house: House,
) -> None:
    await house.start("quit-with-grandchild")
    await until(lambda: bool(house.named("sidecar_ended")))
    reason = house.named("sidecar_ended")[0]["reason"]
    assert reason == "exit code 4: left a grandchild behind"
    await until(lambda: len(house.named("sidecar_started")) >= 2)


async def test_a_grandchild_in_its_own_session_cannot_delay_a_restart_and_ends_with_the_brain(
    house: House,
) -> None:
    await house.start("escaped")
    await house.ready()
    info = await house.ask("/info")
    os.kill(info["pid"], signal.SIGKILL)
    await until(lambda: house.status().restarts == 1)
    await house.ready()
    await house.supervisor.stop()
    assert not alive(info["grandchild"])


async def test_a_crash_loop_becomes_degraded_with_its_reason_and_recovers_slowly(
    tmp_path: Path,
) -> None:
    mended = tmp_path / "mended"
    clock = ManualClock()
    async with a_house(clock, backoff_base_ms=1_000) as house:
        await house.start(f"crash-until={mended}")
        while house.status().state != "degraded":
            if house.status().state == "restarting":
                await clock.advance(1)
            await asyncio.sleep(0.004)
        assert len(house.named("sidecar_started")) == 6
        words = r"exit code 3: scripted crash; it ended too often and is now tried every 60 s"
        with pytest.raises(SidecarFailed, match=words):
            house.supervisor.endpoint("fake")
        with pytest.raises(SidecarFailed, match=words):
            await house.ready()
        await clock.advance(59)
        assert len(house.named("sidecar_started")) == 6
        mended.touch()
        await clock.advance(2)
        await until(lambda: len(house.named("sidecar_started")) == 7)
        while house.status().state != "ready":
            assert house.status().state == "degraded"
            await clock.advance(0.02)
            await asyncio.sleep(0.004)


async def test_a_child_that_dies_as_soon_as_it_is_ready_is_a_crash_loop_too(house: House) -> None:
    await house.start("unready-after-start")
    status = await house.until_state("degraded")
    assert "exit code 5" in status.reason
    assert len(house.named("sidecar_started")) == 6


async def test_a_crash_by_signal_is_named(house: House) -> None:
    await house.start("crash-signal")
    await until(lambda: bool(house.named("sidecar_ended")))
    assert house.named("sidecar_ended")[0]["reason"] == "killed by SIGSEGV"


async def test_a_leaking_child_is_ended_at_its_limit_by_name(house: House) -> None:
    await house.start(memory_limit_mb=60, heartbeat_interval_s=0.02)
    await house.ready()
    with suppress(aiohttp.ClientError):  # it may be ended before it can answer
        await house.ask("/leak?100")
    await until(lambda: bool(house.named("sidecar_ended")))
    reason = house.named("sidecar_ended")[0]["reason"]
    assert "over its limit of 60 MB (sidecars.fake.memory_limit_mb)" in reason
    await until(lambda: house.status().restarts == 1)
    await house.ready()


# -- hanging

QUICK: dict[str, Any] = {"heartbeat_interval_s": 0.02, "heartbeat_timeout_s": 0.2}


async def test_a_stopped_child_misses_its_heartbeats_and_is_killed_and_restarted() -> None:
    async with a_house(stop_grace_s=0.05) as house:
        await house.start(**QUICK)
        await house.ready()
        pid = house.status().pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: house.status().restarts == 1)
        await house.ready()
        assert not alive(pid)
        assert "hung: no heartbeat" in house.named("sidecar_ended")[0]["reason"]


@pytest.mark.parametrize("modes", ["deaf", "drip", "sick"])
async def test_a_hung_child_is_asked_for_its_stack_before_it_is_ended(
    house: House, modes: str
) -> None:
    await house.start(modes, **QUICK)
    await house.ready()
    await until(lambda: bool(house.named("sidecar_stack_dump")))
    assert house.named("sidecar_stack_dump")[0]["lines"] > 3
    assert any("in serve" in event["line"] for event in house.named("sidecar_stderr"))
    await until(lambda: len(house.named("sidecar_started")) == 2)


async def test_a_busy_child_is_not_a_dead_one(house: House) -> None:
    await house.start(heartbeat_interval_s=0.005, heartbeat_timeout_s=0.4)
    await house.ready()
    work = asyncio.create_task(house.ask("/work"))
    before = (await house.ask("/info"))["healths"]
    async with asyncio.timeout(PATIENCE_S):
        while (await house.ask("/info"))["healths"] < before + 80:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert house.status().restarts == 0 and not work.done()
    await house.ask("/finish")
    await work


async def test_one_missed_heartbeat_after_a_long_silence_of_our_own_kills_nobody() -> None:
    clock = ManualClock()
    async with a_house(clock) as house:
        await house.start("sick=1")
        while house.status().state != "ready":
            await clock.advance(0.02)
            await asyncio.sleep(0.004)
        while not house.named("sidecar_heartbeat_missed"):
            await clock.advance(1_000)  # as if this process had been stopped for a while
            await asyncio.sleep(0.004)
        while (await house.ask("/info"))["healths"] < 3:
            await clock.advance(2)
            await asyncio.sleep(0.004)
        assert house.status().state == "ready" and house.status().restarts == 0


# -- stopping


async def test_children_stop_in_reverse_order_each_reaped_before_the_next(house: House) -> None:
    for name in ("one", "two", "three"):
        house.add(name=name)
    await house.supervisor.start()
    for name in ("one", "two", "three"):
        await house.ready(name)
    assert [e["name"] for e in house.named("sidecar_started")] == ["one", "two", "three"]
    await house.supervisor.stop()
    order = [(e, f["name"]) for e, f in house.events if e in ("sidecar_ended", "sidecar_stopped")]
    assert order == [
        (event, name)
        for name in ("three", "two", "one")
        for event in ("sidecar_ended", "sidecar_stopped")
    ]
    assert {status.state for status in house.supervisor.status().values()} == {"stopped"}


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    async with a_house(stop_grace_s=0.05) as house:
        await house.start("ignore-term,grandchild")
        await house.ready()
        info = await house.ask("/info")
        await house.supervisor.stop()
        assert not alive(info["pid"]) and not alive(info["grandchild"])


async def test_a_cancelled_stop_still_kills_every_child() -> None:
    async with a_house(stop_grace_s=3_600) as house:
        for name in ("one", "two"):
            house.add("ignore-term,grandchild", name=name)
        await house.supervisor.start()
        for name in ("one", "two"):
            await house.ready(name)
        pids = [house.status(name).pid for name in ("one", "two")]
        stopping = asyncio.create_task(house.supervisor.stop())
        await until(lambda: house.status("two").state == "stopping")
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert not any(alive(pid) for pid in pids if pid)
        assert len(house.named("sidecar_started")) == 2


async def test_cancelling_everything_leaves_no_process() -> None:
    house = House(stop_grace_s=3_600)
    await house.start("ignore-term")
    await house.ready()
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert carriers(house.run) == []
    await house.supervisor.stop()


@pytest.mark.parametrize("modes", ["ok", "stall", "exit=3", "config", "not-ready=3"])
@pytest.mark.parametrize("moment_ms", [0, 1, 10, 40])
async def test_stopping_at_any_moment_of_a_start_leaves_nothing(
    house: House, modes: str, moment_ms: int
) -> None:
    await house.start(modes)
    await asyncio.sleep(moment_ms / 1000)
    await house.supervisor.stop()
    assert house.status().state == "stopped"
    assert carriers(house.run) == []


async def test_stopping_during_backoff_ends_it() -> None:
    async with a_house(backoff_base_ms=3_600_000, backoff_max_ms=3_600_000) as house:
        await house.start("exit=3")
        await until(lambda: len(house.named("sidecar_restarting")) == 2)
        await house.supervisor.stop()
        assert len(house.named("sidecar_started")) == 2


async def test_stopping_during_a_restart_leaves_nothing(house: House) -> None:
    await house.start()
    await house.ready()
    await house.supervisor.restart("fake")
    await house.supervisor.stop()
    assert house.status().state == "stopped"


async def test_a_restart_during_backoff_begins_at_once(tmp_path: Path) -> None:
    mended = tmp_path / "mended"
    async with a_house(backoff_base_ms=3_600_000, backoff_max_ms=3_600_000) as house:
        await house.start(f"crash-until={mended}")
        await until(lambda: len(house.named("sidecar_restarting")) == 2)
        mended.touch()
        await house.supervisor.restart("fake")
        await house.ready()
        assert house.status().restarts == 2


async def test_stop_may_be_called_twice_at_once_and_before_start() -> None:
    async with a_house() as house:
        await house.start()
        await asyncio.gather(house.supervisor.stop(), house.supervisor.stop())
        with pytest.raises(SidecarDown, match="stopped"):
            await house.supervisor.ensure("fake")
        await house.supervisor.start()
        assert house.status().state == "stopped"
    never = House()
    never.add()
    await never.supervisor.stop()
    assert carriers(never.run) == []


# -- a dead brain

BRAIN = """
import asyncio, sys
from brain.clock import SystemClock
from brain.events import discard
from brain.settings import SidecarSettings, SupervisorSettings
from brain.supervisor import ChildSpec, Supervisor

async def main(child, run):
    supervisor = Supervisor(SupervisorSettings(), clock=SystemClock(), emit=discard)
    for name, mode in (("a", "ok"), ("b", "grandchild"), ("c", "escaped,ignore-term")):
        argv = (sys.executable, "-S", "-E", child, f"name={name},{mode}")
        env = {"LIMBIC_TEST_RUN": run}
        supervisor.add(ChildSpec(name, argv, SidecarSettings(mode="managed"), env))
    await supervisor.start()
    for name in "abc":
        await supervisor.wait_ready(name, 30)
    print("up", flush=True)
    await asyncio.sleep(3600)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG and /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
async def test_no_process_outlives_a_killed_brain(number: signal.Signals) -> None:
    run = uuid.uuid4().hex
    before = set(psutil.pids())
    brain = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BRAIN, str(CHILD), run),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert brain.stdout is not None
    assert await asyncio.wait_for(brain.stdout.readline(), PATIENCE_S) == b"up\n"
    assert len(carriers(run)) == 5
    guards = [child.pid for child in psutil.Process(brain.pid).children()]
    brain.send_signal(number)
    await brain.wait()
    await until(lambda: carriers(run) == [])
    await until(lambda: not any(alive(pid) for pid in guards))
    assert brain.pid not in before


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
async def test_a_launcher_whose_parent_is_gone_starts_nothing(tmp_path: Path) -> None:
    spawn = Path(__file__).parent.parent / "brain" / "spawn.py"
    launcher = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(spawn), "1", "/bin/touch", str(tmp_path / "ran")
    )
    assert await asyncio.wait_for(launcher.wait(), PATIENCE_S) == 1
    assert not (tmp_path / "ran").exists()


# -- declarations


async def test_a_lazy_child_starts_on_first_use(house: House) -> None:
    await house.start(start="lazy")
    assert house.status().state == "off"
    with pytest.raises(SidecarDown, match="off: starts when it is first needed"):
        house.supervisor.endpoint("fake")
    assert carriers(house.run) == []
    endpoint = await house.supervisor.source("fake", wait_s=PATIENCE_S)()
    assert endpoint == house.supervisor.endpoint("fake")
    await house.supervisor.ensure("fake")
    assert len(house.named("sidecar_started")) == 1


async def test_off_unknown_and_not_yet_started_sidecars_are_told_apart(house: House) -> None:
    house.add(mode="off")
    with pytest.raises(SidecarDown, match="not started yet"):
        house.supervisor.endpoint("fake")
    await house.supervisor.start()
    with pytest.raises(SidecarDown, match=r"switched off \(sidecars.fake.mode\)"):
        await house.ready()
    with pytest.raises(InputError, match="no sidecar is named 'cahm'; there are: fake"):
        house.supervisor.endpoint("cahm")
    with pytest.raises(SidecarError, match="not started here"):
        await house.supervisor.restart("fake")


def test_declarations_are_checked() -> None:
    house = House()
    house.add()
    with pytest.raises(ValueError, match="two sidecars are named 'fake'"):
        house.add()
    with pytest.raises(ValueError, match="no command"):
        house.add_argv((), name="empty")


# -- remote ones


@asynccontextmanager
async def a_server(ready: Callable[[], web.Response]) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        return ready()

    app = web.Application()
    app.router.add_get("/ready", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


READY = {"ready": True, "model": "big", "sha256": "a", "version": "1"}


async def test_a_remote_sidecar_is_only_watched_and_its_state_follows_it(house: House) -> None:
    answer: dict[str, Any] = {"status": 503}

    def ready() -> web.Response:
        return web.json_response(READY if answer["status"] == 200 else {}, **answer)

    async with a_server(ready) as url:
        house.add_argv((), mode="remote", url=url + "/v1", heartbeat_interval_s=0.01)
        await house.supervisor.start()
        assert (
            await house.until_state("degraded")
        ).reason == "fake answered /ready with status 503"
        assert house.supervisor.endpoint("fake").url == url + "/v1"
        answer["status"] = 200
        await house.ready()
        assert (house.status().state, house.status().model) == ("remote", "big")
        answer["status"] = 401
        assert "refused the token (status 401)" in (await house.until_state("degraded")).reason
        with pytest.raises(SidecarError, match="not started here"):
            await house.supervisor.restart("fake")


async def test_a_remote_server_without_a_ready_route_counts_as_there(house: House) -> None:
    async with a_server(lambda: web.Response(status=404)) as url:
        house.add_argv((), mode="remote", url=url, heartbeat_interval_s=0.01)
        await house.supervisor.start()
        await house.ready()
        assert house.status().state == "remote"


async def test_an_unreachable_remote_is_degraded_and_says_where(house: House) -> None:
    house.add_argv((), mode="remote", url="http://127.0.0.1:1", heartbeat_interval_s=0.01)
    await house.supervisor.start()
    assert (
        "cannot be reached at http://127.0.0.1:1/ready"
        in (await house.until_state("degraded")).reason
    )
    with pytest.raises(SidecarDown, match="cannot be reached"):
        await house.supervisor.wait_ready("fake", 0.05)


async def test_a_remote_token_comes_from_its_variable_or_its_absence_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values: dict[str, Any] = {"mode": "remote", "url": "http://127.0.0.1:1", "token_env": "T_T"}
    async with a_house() as house:
        house.add_argv((), **values)
        await house.supervisor.start()
        with pytest.raises(SidecarFailed, match="variable T_T holds no token"):
            house.supervisor.endpoint("fake")
    monkeypatch.setenv("T_T", "abc")
    async with a_house() as house:
        house.add_argv((), **values)
        await house.supervisor.start()
        assert house.supervisor.endpoint("fake").headers == {"Authorization": "Bearer abc"}
