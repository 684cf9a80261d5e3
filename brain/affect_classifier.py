"""Client of the affect head (CAHM): what one message feels like.

Contract: ``POST /v1/affect {text, context?[≤2], turn_id, deadline_ms}`` → ``brain.schema.Affect``;
``POST /v1/affect/reasoning {turn_id, deadline_ms}`` → ``{reasoning}``, once it is worked out.
Values outside it are refused, never clamped.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence

import aiohttp

from brain.breaker import CircuitBreaker
from brain.clock import Clock
from brain.events import Emit, EndpointSource
from brain.remote import post_json
from brain.schema import Affect, Reasoning, parse_wire

REMOTE = "cahm"
MAX_CONTEXT = 2
MAX_CONTEXT_CHARS = 2_000  # the head reads far less, and the end of what was said
MAX_ANSWER_BYTES = 64 * 1024


class AffectClassifier:
    """Scores messages; stateless, safe for many concurrent turns."""

    def __init__(
        self,
        *,
        endpoint: EndpointSource,
        http: aiohttp.ClientSession,
        breaker: CircuitBreaker,
        clock: Clock,
        emit: Emit,
    ) -> None:
        self._endpoint = endpoint
        self._http = http
        self._breaker = breaker
        self._clock = clock
        self._emit = emit

    async def score(
        self,
        text: str,
        context: Sequence[str] = (),
        *,
        session_id: str,
        turn_id: str,
        deadline_ms: int,
    ) -> Affect:
        """The affect of ``text``, which follows ``context`` (oldest first; the last two count).

        ``deadline_ms`` bounds the whole call. Its outcome is emitted as ``affect_call``.

        Raises:
            RemoteError: with ``BreakerOpen`` when the classifier failed repeatedly and is not
                asked. SidecarError: it is not running. InputError: text that JSON cannot carry.
        """
        started = self._clock.monotonic()
        outcome = "cancelled"
        try:
            with self._breaker.guard():
                body = await post_json(
                    self._http,
                    self._endpoint,
                    "/v1/affect",
                    {"text": text, "context": [_plain(said) for said in context[-MAX_CONTEXT:]]},
                    remote=REMOTE,
                    clock=self._clock,
                    turn_id=asked_as(session_id, turn_id),
                    deadline_ms=deadline_ms,
                    max_bytes=MAX_ANSWER_BYTES,
                )
                affect = parse_wire(Affect, body, remote=REMOTE)
            outcome = "ok"
            return affect
        except Exception as error:
            outcome = type(error).__name__
            raise
        finally:
            elapsed_ms = (self._clock.monotonic() - started) * 1000
            self._emit("affect_call", turn_id=turn_id, outcome=outcome, elapsed_ms=elapsed_ms)

    async def reasoning(self, *, session_id: str, turn_id: str, deadline_ms: int) -> str:
        """Why the message of ``turn_id`` was scored as it was, in a sentence.

        Not behind the breaker: a head that gives no reasons still gives scores.

        Raises:
            RemoteError: as ``score``; ``RemoteRejected`` where the head does not know the turn.
            SidecarError: it is not running.
        """
        body = await post_json(
            self._http,
            self._endpoint,
            "/v1/affect/reasoning",
            {},
            remote=REMOTE,
            clock=self._clock,
            turn_id=asked_as(session_id, turn_id),
            deadline_ms=deadline_ms,
            max_bytes=MAX_ANSWER_BYTES,
        )
        return parse_wire(Reasoning, body, remote=REMOTE).reasoning


def asked_as(session_id: str, turn_id: str) -> str:
    """The id under which a turn's reason is fetched. A turn id is the client's, and unique within
    its session alone; a reason quotes the message, which no other session may see."""
    whole = hashlib.blake2s(f"{session_id}\0{turn_id}".encode("utf-8", "replace")).hexdigest()
    return f"{turn_id[:64]}-{whole[:24]}"


def _plain(said: str) -> str:
    """The end of a text without what the head refuses: a reply may hold any character, and must
    not cost the next message its scores."""
    end = said[-MAX_CONTEXT_CHARS:]
    return "".join(
        " " if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in end
    )
