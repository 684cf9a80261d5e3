"""OpenAI's chat completion protocol: request bodies → checked values, engine events → answers."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any, Literal

import orjson
from pydantic import AliasChoices, Field, StringConstraints, field_validator, model_validator

from brain.schema import MAX_TEXT_CHARS, WireFrame
from sidecars.chat_engine import FinishReason
from sidecars.guard import Problem, Timed
from sidecars.token_model import Sampling

MAX_MESSAGES = 4096
MAX_STOPS = 16
DONE = b"data: [DONE]\n\n"

_UNSUPPORTED = ("tools", "functions", "logprobs", "logit_bias", "audio", "prediction")
Penalty = Annotated[float, Field(ge=-2, le=2, allow_inf_nan=False)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Content = Annotated[str, StringConstraints(max_length=32 * MAX_TEXT_CHARS)]


class TextPart(WireFrame):
    """One part of a message's content; only text is understood."""

    type: Literal["text"]
    text: Content


class ChatMessage(WireFrame):
    """One message. ``developer`` is OpenAI's newer name of ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content | tuple[TextPart, ...]

    def plain(self) -> dict[str, str]:
        """``role`` and ``content`` as chat templates want them."""
        content = self.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class PrefillRequest(Timed):
    """``POST /v1/prefill``."""

    messages: Annotated[tuple[ChatMessage, ...], Field(min_length=1, max_length=MAX_MESSAGES)]

    def plain_messages(self) -> list[dict[str, str]]:
        """The messages as chat templates want them."""
        return [message.plain() for message in self.messages]


class StreamOptions(WireFrame):
    """``include_usage`` asks for a last chunk that counts tokens."""

    include_usage: bool = False


class ChatRequest(PrefillRequest):
    """``POST /v1/chat/completions``. Unknown fields are ignored; unsupported ones are refused."""

    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: Annotated[
        int | None,
        Field(
            ge=1,
            le=1_000_000,
            validation_alias=AliasChoices("max_completion_tokens", "max_tokens"),
        ),
    ] = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 40
    min_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repeat_penalty: Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = 1.0
    dry_multiplier: Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)] = 0.8
    dry_base: Annotated[float, Field(ge=1, le=4, allow_inf_nan=False)] = 1.75
    dry_allowed_length: Annotated[int, Field(ge=1, le=1_000)] = 2
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: Annotated[tuple[Stop, ...], Field(max_length=MAX_STOPS)] = ()
    n: Literal[1] = 1
    response_format: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_what_is_supported(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        for name in _UNSUPPORTED:
            if body.get(name):
                raise ValueError(f"{name} is not supported by this server")
        # A JSON null means: the default.
        return {key: value for key, value in body.items() if value is not None}

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("response_format")
    @classmethod
    def _text_only(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None and value.get("type") != "text":
            raise ValueError("only the type text is supported by this server")
        return value

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repeat_penalty=self.repeat_penalty,
            dry_multiplier=self.dry_multiplier,
            dry_base=self.dry_base,
            dry_allowed_length=self.dry_allowed_length,
            seed=self.seed,
        )

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk that counts tokens."""
        return self.stream_options is not None and self.stream_options.include_usage


class TokenizeRequest(WireFrame):
    """``POST /v1/tokenize``."""

    texts: Annotated[tuple[Content, ...], Field(max_length=MAX_MESSAGES)]


def too_long(tokens: int, context: int) -> Problem:
    """The refusal of a prompt that leaves no room for a reply, in OpenAI's words for its code."""
    message = f"the messages have {tokens} tokens; the context holds {context} with the reply"
    return Problem(400, "context_length_exceeded", message)


def usage(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """The ``usage`` object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


class ReplyWriter:
    """Writes one reply, whole or as server-sent events; fields that repeat are encoded once."""

    def __init__(self, model: str) -> None:
        self._id = f"chatcmpl-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._model = model
        head = orjson.dumps(self._frame("chat.completion.chunk"))[:-1]
        self._before = b"data: " + head + b',"choices":[{"index":0,"delta":{'
        self._after = b'},"logprobs":null,"finish_reason":null}]}\n\n'

    def opening(self) -> bytes:
        """The first event: whose words follow."""
        return self._before + b'"role":"assistant","content":""' + self._after

    def text(self, text: str) -> bytes:
        """An event with more of the reply."""
        return self._before + b'"content":' + orjson.dumps(text) + self._after

    def closing(self, reason: FinishReason, counts: dict[str, Any] | None) -> bytes:
        """The last events: why the reply ended, token counts if wanted, the end mark."""
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": reason}
        frames = [{"choices": [choice]}]
        if counts is not None:
            frames.append({"choices": [], "usage": counts})  # type: ignore[dict-item]
        head = self._frame("chat.completion.chunk")
        return b"".join(_event({**head, **frame}) for frame in frames) + DONE

    def failure(self, problem: Problem) -> bytes:
        """An error after the reply began; the stream ends without the end mark."""
        error = {"message": problem.message, "type": "server_error", "code": problem.code}
        return _event({"error": error})

    def whole(self, text: str, reason: FinishReason, counts: dict[str, Any]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text},
            "logprobs": None,
            "finish_reason": reason,
        }
        return {**self._frame("chat.completion"), "choices": [choice], "usage": counts}

    def _frame(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}


def _event(body: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"
