"""How a command ends when it is asked to: SIGTERM and SIGHUP let the running turn finish first."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from brain.clock import Clock, SystemClock

DRAIN_S = 10.0
T = TypeVar("T")
_CLOCK = SystemClock()


class Stopped(Exception):
    """The command was asked to end before the work was done; the work was cancelled."""


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM and SIGHUP set, inside a running loop.

    A signal that the parent chose to ignore (``nohup``) stays ignored.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    heard = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    for number in heard:
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in heard:
            loop.remove_signal_handler(number)


async def drain(
    task: asyncio.Task[Any],
    stop: asyncio.Event,
    *,
    clock: Clock = _CLOCK,
    limit_s: float = DRAIN_S,
) -> None:
    """Wait until ``task`` is done; once ``stop`` is set it has ``limit_s`` more, then it is
    cancelled. Never raises what the task raises: ask the task. Cancelling this cancels the task.
    """
    stopping = asyncio.create_task(stop.wait())
    helpers: list[asyncio.Future[Any]] = [stopping]
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and limit_s > 0:
            limit = asyncio.ensure_future(clock.sleep(limit_s))
            helpers.append(limit)
            await asyncio.wait({task, limit}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for helper in helpers:
            helper.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def unless_stopped(work: Coroutine[Any, Any, T], stop: asyncio.Event) -> T:
    """The result of ``work``, which nothing is lost by leaving: input, or a wait.

    Raises:
        Stopped: ``stop`` was set first.
    """
    task = asyncio.create_task(work)
    await drain(task, stop, limit_s=0.0)
    if task.cancelled() and stop.is_set():
        raise Stopped
    return task.result()
