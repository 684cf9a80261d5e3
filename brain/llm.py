"""Streaming client for any server that speaks the OpenAI chat-completions protocol.

    async with client.stream(messages, behaviour=behaviour, turn_id=turn_id) as reply:
        async for text in reply:
            ...

Four limits: connect, first token (each try), idle between tokens, total (all tries together).
Errors marked retryable are tried again, with exponential backoff and full jitter, until the first
token and never after it: a second answer is never spliced onto a broken one. ``tenacity`` is
entered only once a first try has failed, since an undisturbed request has no need of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import aiohttp
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from brain.breaker import CircuitBreaker
from brain.clock import Clock
from brain.errors import LimbicError, ProtocolError, RateLimited, RemoteUnavailable
from brain.events import Emit, EndpointSource
from brain.llm_body import CompletionBody, StreamLimits
from brain.llm_routes import REMOTE, LLMRoutes, Prefill, plain
from brain.llm_stream import LLMStream
from brain.remote import MAX_ERROR_BODY_BYTES, encode_body, mark_headers, read_bounded
from brain.remote_errors import FOREIGN, Phase, dropped, status_error, translate
from brain.schema import Behaviour, Message
from brain.settings import LlmSettings

__all__ = ["LLMClient", "LLMStream", "Prefill"]


class LLMClient:
    """One chat model. Safe for many concurrent turns; holds no state of any of them."""

    def __init__(
        self,
        settings: LlmSettings,
        *,
        endpoint: EndpointSource,
        http: aiohttp.ClientSession,
        breaker: CircuitBreaker,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._settings = settings
        self._http = http
        self._breaker = breaker
        self._clock = clock
        self._emit = emit
        self._routes = LLMRoutes(endpoint=endpoint, http=http, clock=clock, emit=emit)
        # A managed server has one model, whatever file it came from.
        self._model = "default" if settings.base_url is None else settings.model
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=settings.connect_timeout_ms / 1000
        )

    def stream(
        self, messages: Sequence[Message], *, behaviour: Behaviour, turn_id: str
    ) -> LLMStream:
        """A reply to ``messages``; the request is sent when it is first iterated.

        Raises:
            InputError: text that JSON cannot carry (a lone surrogate).
        """
        body = {
            "model": self._model,
            "messages": plain(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": behaviour.temperature,
            "top_p": behaviour.top_p,
            "max_tokens": behaviour.max_tokens,
            "frequency_penalty": self._settings.frequency_penalty,
        }
        return LLMStream(self, messages, encode_body(body), turn_id=turn_id, clock=self._clock)

    async def prefill(
        self, messages: Sequence[Message], *, turn_id: str, deadline_ms: int
    ) -> Prefill | None:
        """Have the server process ``messages`` ahead of the request that will begin with them.

        ``None`` when it cannot (remembered, with ``prefill = "auto"``) or did not: an optimisation
        never fails a turn, so failures are emitted and not raised.
        """
        if self._settings.prefill == "off" or self._breaker.state != "closed":
            return None
        try:
            return await self._routes.prefill(
                messages,
                turn_id=turn_id,
                deadline_ms=deadline_ms,
                remember=self._settings.prefill == "auto",
            )
        except LimbicError as error:
            self._emit("llm_prefill_failed", turn_id=turn_id, error=error.code, reason=str(error))
            return None

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text: the model's own counts, or safe estimates where it gives none."""
        return await self._routes.count_tokens(texts, ask=self._breaker.state == "closed")

    async def open(self, reply: LLMStream) -> tuple[CompletionBody, str]:
        """For ``LLMStream``: an open answer and its first text, after as many tries as allowed.

        Raises:
            LimbicError: the last try's error.
        """
        total_s = self._settings.total_timeout_ms / 1000
        ends_at = self._clock.monotonic() + total_s
        try:
            return await self._try(reply, total_s)
        except LimbicError as error:
            if not error.retryable:
                raise
            failed: list[LimbicError] = [error]

        async def again() -> tuple[CompletionBody, str]:
            if failed:  # the try above is the first that tenacity sees
                raise failed.pop()
            return await self._try(reply, ends_at - self._clock.monotonic())

        def stop(state: RetryCallState) -> bool:
            return (
                state.attempt_number >= self._settings.max_attempts
                or self._clock.monotonic() + state.upcoming_sleep >= ends_at
                or self._breaker.state == "open"
            )

        def announce(state: RetryCallState) -> None:
            reply.retries += 1
            error = _failure(state)
            self._emit(
                "llm_retry",
                turn_id=reply.turn_id,
                attempt=state.attempt_number,
                wait_ms=round(state.upcoming_sleep * 1000),
                error=getattr(error, "code", ""),
                reason=str(error),
            )

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            retry=retry_if_exception(lambda e: isinstance(e, LimbicError) and e.retryable),
            wait=self._backoff_s,
            stop=stop,
            before_sleep=announce,
            reraise=True,
        )
        return await retrying(again)

    def _backoff_s(self, state: RetryCallState) -> float:
        """Exponential backoff with full jitter; never sooner than the server asked for."""
        settings = self._settings
        ceiling_ms = min(
            settings.backoff_max_ms, settings.backoff_base_ms * 2 ** (state.attempt_number - 1)
        )
        wait_s = self._clock.rng.uniform(0, ceiling_ms / 1000)
        error = _failure(state)
        if isinstance(error, RateLimited) and error.retry_after_s is not None:
            wait_s += error.retry_after_s
        return wait_s

    async def _try(self, reply: LLMStream, left_s: float) -> tuple[CompletionBody, str]:
        """One try, and its verdict for the breaker when it fails.

        Raises:
            LimbicError: any remote or sidecar error; nothing is left open.
        """
        self._breaker.check()
        try:
            try:
                found = await self._exchange(reply, left_s)
            except RemoteUnavailable as error:
                if reply.retries or not dropped(error):
                    raise
                # A pooled connection that the server closed between turns is not a failure. Only
                # once a turn: a server that drops every request is one that fails.
                self._emit("llm_reconnect", turn_id=reply.turn_id)
                found = await self._exchange(reply, left_s)
        except (Exception, asyncio.CancelledError) as error:
            self._breaker.record(error)
            raise
        if self._breaker.state != "closed":
            self._breaker.success()  # a probe that speaks has proved enough: let the others in
        return found

    async def _exchange(self, reply: LLMStream, left_s: float) -> tuple[CompletionBody, str]:
        loop = asyncio.get_running_loop()
        started = loop.time()
        first_s = self._settings.first_token_timeout_ms / 1000
        phase: Phase = "first_token" if first_s <= left_s else "total"
        url = ""
        try:
            async with asyncio.timeout(min(first_s, left_s)):
                target = await self._routes.resolve()
                url = target.endpoint.url
                marks = mark_headers(reply.turn_id, max(1, round(left_s * 1000)))
                if self._http.closed:
                    raise RemoteUnavailable("the llm is not asked: shutting down", remote=REMOTE)
                response = await self._http.post(
                    target.completions,
                    data=reply.payload,
                    headers=target.headers | marks,
                    allow_redirects=False,
                    timeout=self._timeout,
                )
                if response.status != 200:
                    raise await self._refusal(response, url)
        except FOREIGN as error:
            raise translate(error, remote=REMOTE, url=url, phase=phase) from error
        spent_s = loop.time() - started
        limits = StreamLimits(
            first_token_s=first_s - spent_s,
            idle_s=self._settings.idle_timeout_ms / 1000,
            total_s=left_s - spent_s,
        )
        body = CompletionBody(response, limits=limits, remote=REMOTE)
        text = await body.read()
        if not text:
            raise ProtocolError(
                "the llm ended its answer without a word "
                f"(finish reason: {body.events.finish_reason}); say it in another way",
                remote=REMOTE,
            )
        return body, text

    async def _refusal(self, response: aiohttp.ClientResponse, url: str) -> LimbicError:
        async with response:
            said = await read_bounded(response, max_bytes=MAX_ERROR_BODY_BYTES, remote=REMOTE)
        return status_error(
            response.status, response.headers, said, remote=REMOTE, url=url, now=self._clock.time()
        )

    def ended(self, reply: LLMStream, error: LimbicError | None) -> None:
        """For ``LLMStream``: a reply that had begun is over; count it and learn from it."""
        self._breaker.record(error)
        if error is None and reply.prompt_tokens is not None:
            self._routes.observe(reply.messages, reply.prompt_tokens)


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
