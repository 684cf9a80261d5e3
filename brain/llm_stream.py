"""One streamed reply, as its consumer sees it."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from brain.clock import Clock
from brain.errors import LimbicError
from brain.llm_body import CompletionBody
from brain.schema import Message


class ReplySource(Protocol):
    """What opens replies and is told how they ended: ``brain.llm.LLMClient``."""

    async def open(self, reply: LLMStream) -> tuple[CompletionBody, str]:
        """An open answer and its first text."""
        ...

    def ended(self, reply: LLMStream, error: LimbicError | None) -> None:
        """A reply that had begun is complete, or failed with ``error``."""
        ...


class LLMStream:
    """One reply: an async iterator of text, in the pieces in which it arrives.

    Leaving the ``async with`` block early, ``aclose()`` or a cancelled task close the connection at
    once, which stops generation at the server. For one task only. A failure after the first text
    raises ``StreamBroken`` or ``RemoteTimeout``, and ``text`` keeps what had arrived.

    ``ttft_ms`` counts from the first iteration, retries included; ``retries`` counts waits between
    tries. Both, like ``finish_reason``, ``model`` and the token counts, are ``None`` (``retries``:
    0) until known.
    """

    __slots__ = (
        "_body",
        "_clock",
        "_over",
        "_parts",
        "_source",
        "messages",
        "payload",
        "retries",
        "ttft_ms",
        "turn_id",
    )

    def __init__(
        self,
        source: ReplySource,
        messages: Sequence[Message],
        payload: bytes,
        *,
        turn_id: str,
        clock: Clock,
    ) -> None:
        self.messages = messages
        self.payload = payload
        self.turn_id = turn_id
        self.retries = 0
        self.ttft_ms: float | None = None
        self._source = source
        self._clock = clock
        self._body: CompletionBody | None = None
        self._parts: list[str] = []
        self._over = False

    @property
    def text(self) -> str:
        """All text that arrived so far."""
        return "".join(self._parts)

    @property
    def finish_reason(self) -> str | None:
        """``stop``, ``length`` or what else the server calls it."""
        return self._body.events.finish_reason if self._body else None

    @property
    def model(self) -> str | None:
        """The model's name as the server gives it."""
        return self._body.events.model if self._body else None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the prompt."""
        return self._body.events.prompt_tokens if self._body else None

    @property
    def completion_tokens(self) -> int | None:
        """Tokens of the reply."""
        return self._body.events.completion_tokens if self._body else None

    @property
    def cached_tokens(self) -> int | None:
        """Tokens of the prompt that the server did not have to process again."""
        return self._body.events.cached_tokens if self._body else None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        if self._over:
            raise StopAsyncIteration
        body = self._body
        try:
            if body is None:
                text = await self._start()
            else:
                text = await body.read()
                if not text:
                    await body.settle()
        except LimbicError as error:
            self._over = True
            if body is not None:  # failures to begin are counted try by try
                self._source.ended(self, error)
            raise
        if not text:
            self._over = True
            self._source.ended(self, None)
            raise StopAsyncIteration
        self._parts.append(text)
        return text

    async def _start(self) -> str:
        started = self._clock.monotonic()
        self._body, text = await self._source.open(self)
        self.ttft_ms = (self._clock.monotonic() - started) * 1000
        return text

    async def aclose(self) -> None:
        """Stop the reply; nothing to do once it is complete."""
        self._over = True
        if self._body is not None:
            self._body.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()
