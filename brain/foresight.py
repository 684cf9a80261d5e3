"""Client of the LVM: how far a message was from what the conversation led one to expect.

Per session there is one small immutable ``ForesightState``. ``observe`` embeds a new message and
measures it against the vector predicted for it; ``anticipate`` predicts the next one from the last
five of messages and replies: both speakers in order, as the model was trained. Neither changes the
state it is given: the caller commits the new one with the turn, so a turn that fails leaves no
trace.

Contract: ``POST /encode {texts}`` → ``{embeddings, shape, encoder, encoder_name}``; ``POST /infer
{context_vectors}`` of shape [5][D] → ``{predicted_vector, model}`` of shape [D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from brain.breaker import CircuitBreaker
from brain.clock import Clock
from brain.errors import ProtocolError
from brain.events import EndpointSource
from brain.foresight_state import ForesightState, singles, usable
from brain.remote import post_json
from brain.schema import (
    CONTEXT_VECTORS,
    Embeddings,
    Foresight,
    Prediction,
    Vector,
    parse_wire,
)

REMOTE = "lvm"


@dataclass(frozen=True, slots=True)
class Encoded:
    """``vectors`` [N, D] of N texts, and the identity of the encoder that made them."""

    encoder: str
    vectors: tuple[Vector, ...]


class ForesightClient:
    """Embeds, compares and predicts; safe for many concurrent turns."""

    def __init__(
        self,
        *,
        endpoint: EndpointSource,
        http: aiohttp.ClientSession,
        breaker: CircuitBreaker,
        clock: Clock,
    ) -> None:
        self._endpoint = endpoint
        self._http = http
        self._breaker = breaker
        self._clock = clock
        self._shown: tuple[tuple[str, str], int] | None = None
        #: Identity of what made the last vectors; empty until this process has had some.
        self.encoder = ""

    async def observe(
        self, state: ForesightState, text: str, *, turn_id: str, deadline_ms: int
    ) -> Foresight:
        """What a message is and how surprising; ``state.after`` adds it to what is remembered.

        Nothing is measured against what another encoder expected.

        Raises:
            RemoteError: any of its subclasses; ``ProtocolError`` for a wrong dimension.
            SidecarError: the LVM is not running. InputError: text that JSON cannot carry.
        """
        started = self._clock.monotonic()
        encoded = await self.encode([text], turn_id=turn_id, deadline_ms=deadline_ms)
        vector = encoded.vectors[0]
        distance, surprise = state.measure(vector, encoded.encoder)
        return Foresight(
            surprise=surprise,
            distance=distance,
            vector=vector,
            encoder=encoded.encoder,
            latency_ms=(self._clock.monotonic() - started) * 1000,
        )

    async def encode(self, texts: Sequence[str], *, turn_id: str, deadline_ms: int) -> Encoded:
        """Vectors of some texts, in their order, none of them zero.

        Raises:
            RemoteError, SidecarError, InputError: as ``observe``.
        """
        with self._breaker.guard():
            body = await self._post("/encode", {"texts": list(texts)}, turn_id, deadline_ms)
            answer = parse_wire(Embeddings, body, remote=REMOTE)
            self._check_shape(answer, len(texts))
            vectors = tuple(singles(row) for row in answer.embeddings)
            if not all(map(usable, vectors)):
                raise ProtocolError("the lvm answered a vector of length zero", remote=REMOTE)
        self.encoder = answer.identity
        return Encoded(self.encoder, vectors)

    async def anticipate(
        self, state: ForesightState, *, turn_id: str, deadline_ms: int
    ) -> ForesightState:
        """The state with the vector predicted for the next message; unchanged while empty.

        With fewer than five messages and replies the oldest is repeated in front.

        Raises:
            RemoteError, SidecarError: as ``observe``.
        """
        said = state.context
        if not said:
            return state
        padding = (said[0],) * (CONTEXT_VECTORS - len(said))
        context = {"context_vectors": [*padding, *said]}
        with self._breaker.guard():
            body = await self._post("/infer", context, turn_id, deadline_ms)
            answer = parse_wire(Prediction, body, remote=REMOTE)
            predicted = singles(answer.predicted_vector)
            if len(predicted) != state.dim:
                raise ProtocolError(
                    f"the lvm predicted {len(predicted)} dimensions where {state.dim} were sent",
                    remote=REMOTE,
                )
            if not usable(predicted):
                raise ProtocolError("the lvm predicted a vector of length zero", remote=REMOTE)
        return state.expecting(predicted, answer.model)

    async def _post(
        self, path: str, body: Mapping[str, object], turn_id: str, deadline_ms: int
    ) -> bytes:
        return await post_json(
            self._http,
            self._endpoint,
            path,
            body,
            remote=REMOTE,
            clock=self._clock,
            turn_id=turn_id,
            deadline_ms=deadline_ms,
        )

    def _check_shape(self, answer: Embeddings, texts: int) -> None:
        """One vector for each text, of the dimension that this encoder has shown before."""
        wanted = (texts, answer.dim)
        dims = {len(row) for row in answer.embeddings}
        if answer.shape != wanted or len(answer.embeddings) != texts or len(dims) != 1:
            raise ProtocolError(
                f"the lvm answered shape {list(answer.shape)} for {texts} text"
                f"{'s' if texts != 1 else ''}",
                remote=REMOTE,
            )
        named = (answer.encoder_name, answer.encoder)
        before, self._shown = self._shown, (named, answer.dim)
        if before is not None and before[0] == named and before[1] != answer.dim:
            # Refused once; a second answer of this dimension means that the encoder was changed.
            raise ProtocolError(
                f"the lvm answered {answer.dim} dimensions where it had {before[1]} before",
                remote=REMOTE,
            )
