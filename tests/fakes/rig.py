"""Builds the clients under test around a fake server, and records what they emit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import pytest
from blockbuster import blockbuster_ctx

from brain.breaker import CircuitBreaker
from brain.clock import Clock
from brain.events import Endpoint
from brain.llm import LLMClient
from brain.remote import open_http
from brain.schema import Behaviour, Message
from brain.settings import BreakerSettings, LlmSettings
from tests.fakes.clock import ManualClock

BEHAVIOUR = Behaviour(directive="calm", temperature=0.7, top_p=0.9, max_tokens=64)
MESSAGES = (Message(role="system", content="Be kind."), Message(role="user", content="Hello?"))


@pytest.fixture(autouse=True)
def loop_never_blocks() -> Iterator[None]:
    """A blocking call in the event loop fails the test; import this name to use it."""
    with blockbuster_ctx():
        yield


@dataclass
class Emitted:
    """An ``Emit`` that keeps everything."""

    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))

    def named(self, name: str) -> list[dict[str, Any]]:
        """The fields of every event of that name."""
        return [fields for event, fields in self.events if event == name]


@dataclass
class Source:
    """An endpoint source; ``error`` is raised instead while it is set."""

    url: str
    token: str | None = None
    error: Exception | None = None
    asked: int = 0

    async def __call__(self) -> Endpoint:
        self.asked += 1
        if self.error is not None:
            raise self.error
        return Endpoint(self.url, self.token)


@dataclass
class Rig:
    """One LLM client and everything around it."""

    client: LLMClient
    source: Source
    breaker: CircuitBreaker
    clock: Clock
    emitted: Emitted
    http: aiohttp.ClientSession


@asynccontextmanager
async def llm_rig(
    url: str,
    *,
    clock: Clock | None = None,
    token: str | None = None,
    failures: int = 100,
    base_url: str | None = "http://configured/v1",
    **limits: Any,
) -> AsyncIterator[Rig]:
    """A client of the server at ``url``; ``limits`` are fields of ``LlmSettings``."""
    clock = clock or ManualClock(jump=True)
    emitted = Emitted()
    breaker = CircuitBreaker(
        BreakerSettings(failures=failures), remote="llm", clock=clock, emit=emitted
    )
    source = Source(url, token)
    async with open_http() as http:
        client = LLMClient(
            LlmSettings(base_url=base_url, **limits),
            endpoint=source,
            http=http,
            breaker=breaker,
            clock=clock,
            emit=emitted,
        )
        yield Rig(client, source, breaker, clock, emitted, http)


async def collect(rig: Rig, *, turn_id: str = "t1") -> Any:
    """Run one turn to its end; the finished stream."""
    async with rig.client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id=turn_id) as reply:
        async for _ in reply:
            pass
    return reply
