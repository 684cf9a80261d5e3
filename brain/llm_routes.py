"""Where the chat model's server is, and the two routes that only some servers have.

``POST /v1/prefill`` and ``POST /v1/tokenize`` are this project's additions to the OpenAI protocol.
That a server lacks one is remembered until the address changes; everything works without them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import aiohttp
from pydantic import Field
from yarl import URL

from brain.clock import Clock
from brain.errors import LimbicError, ProtocolError, RemoteRejected
from brain.events import Emit, Endpoint, EndpointSource
from brain.remote import check_headers, post_json
from brain.remote_errors import translate
from brain.schema import Message, WireFrame, parse_wire
from brain.token_count import TokenCache, TokenEstimate

REMOTE = "llm"
COUNT_DEADLINE_MS = 2_000
# The server has no such route: not there, not for this method, not built.
_NO_ROUTE = frozenset({404, 405, 501})
_VERSIONED = re.compile(r"/v\d+[a-z0-9]*$")

_Count = Annotated[int, Field(ge=0, le=100_000_000, strict=True)]


class Prefill(WireFrame):
    """What ``POST /v1/prefill`` did: ``tokens`` in the prompt, ``cached`` of them already there."""

    tokens: _Count
    cached: _Count


class _Counts(WireFrame):
    counts: tuple[_Count, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """One server: its endpoint, the completions URL, and the headers of every request to it."""

    endpoint: Endpoint
    completions: URL
    headers: dict[str, str]


class LLMRoutes:
    """Resolves the server and speaks its optional routes."""

    def __init__(
        self, *, endpoint: EndpointSource, http: aiohttp.ClientSession, clock: Clock, emit: Emit
    ) -> None:
        self._endpoint = endpoint
        self._http = http
        self._clock = clock
        self._emit = emit
        self._target: Target | None = None
        self._missing: set[str] = set()
        self._cache = TokenCache()
        self._estimate = TokenEstimate()

    async def resolve(self) -> Target:
        """Where the server is now; what was learned of an earlier one is forgotten.

        Raises:
            SidecarError: from the endpoint source. RemoteRejected: the address is no URL.
        """
        endpoint = await self._endpoint()
        target = self._target
        if target is not None and target.endpoint == endpoint:
            return target
        check_headers(endpoint, remote=REMOTE)
        try:
            url = URL(route_url(endpoint.url, "/chat/completions"))
        except ValueError as error:
            raise RemoteRejected(
                "the address of the llm cannot be used; correct llm.base_url", remote=REMOTE
            ) from error
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        target = Target(endpoint, url, headers | endpoint.headers)
        self._target = target
        self._missing.clear()
        self._cache = TokenCache()
        self._estimate = TokenEstimate()
        return target

    async def prefill(
        self, messages: Sequence[Message], *, turn_id: str, deadline_ms: float, remember: bool
    ) -> Prefill | None:
        """``None`` when the server has no such route.

        Raises:
            LimbicError: anything that ``post_json`` raises; ``ProtocolError`` for a bad answer.
        """
        body = await self._ask(
            "/prefill",
            {"messages": plain(messages)},
            turn_id=turn_id,
            deadline_ms=deadline_ms,
            remember=remember,
        )
        return None if body is None else parse_wire(Prefill, body, remote=REMOTE)

    async def count_tokens(self, texts: Sequence[str], *, ask: bool) -> list[int]:
        """Exact counts, cached; estimates where the server gives none or must not be asked."""
        cached = {text: self._cache.get(text) for text in texts}
        unknown = [text for text, count in cached.items() if count is None]
        if unknown:
            exact = await self._tokenize(unknown) if ask else None
            cached.update(zip(unknown, exact or map(self._estimate.count, unknown), strict=True))
        return [cached[text] or 0 for text in texts]

    def observe(self, messages: Sequence[Message], prompt_tokens: int) -> None:
        """The server reported the size of a prompt; better estimates where it cannot tokenise."""
        if "/tokenize" in self._missing:
            self._estimate.observe([message.content for message in messages], prompt_tokens)

    async def _tokenize(self, texts: list[str]) -> tuple[int, ...] | None:
        try:
            body = await self._ask(
                "/tokenize",
                {"texts": texts},
                turn_id="",
                deadline_ms=COUNT_DEADLINE_MS,
                remember=True,
            )
            if body is None:
                return None
            counts = parse_wire(_Counts, body, remote=REMOTE).counts
            if len(counts) != len(texts):
                raise ProtocolError("the llm counted other texts than asked", remote=REMOTE)
        except LimbicError as error:
            self._emit("llm_tokenize_failed", error=error.code, reason=str(error))
            return None
        for text, count in zip(texts, counts, strict=True):
            self._cache.put(text, count)
        return counts

    async def _ask(
        self,
        route: str,
        body: Mapping[str, object],
        *,
        turn_id: str,
        deadline_ms: float,
        remember: bool,
    ) -> bytes | None:
        started = self._clock.monotonic()
        try:
            async with asyncio.timeout(deadline_ms / 1000):
                endpoint = (await self.resolve()).endpoint
        except TimeoutError as error:
            raise translate(error, remote=REMOTE) from error
        if remember and route in self._missing:
            return None
        try:
            return await post_json(
                self._http,
                Endpoint(route_url(endpoint.url, ""), endpoint.token),
                route,
                body,
                remote=REMOTE,
                clock=self._clock,
                turn_id=turn_id,
                deadline_ms=deadline_ms - (self._clock.monotonic() - started) * 1000,
                marks="headers",
            )
        except RemoteRejected as error:
            if not remember or error.status not in _NO_ROUTE:
                raise
            self._missing.add(route)
            self._emit("llm_route_missing", route=route)
            return None


def route_url(base: str, route: str) -> str:
    """``route`` below a base address that may or may not end in its version (``/v1``)."""
    base = base.rstrip("/")
    return base + ("" if _VERSIONED.search(base) else "/v1") + route


def plain(messages: Sequence[Message]) -> list[dict[str, str]]:
    """Messages as the JSON that servers read."""
    return [{"role": message.role, "content": message.content} for message in messages]
