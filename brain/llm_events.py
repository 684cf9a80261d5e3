"""What the events of a streamed completion say: text, finish reason, model, token counts.

Reads OpenAI ``chat.completion.chunk`` objects, and whole ``chat.completion`` objects from servers
that do not stream. No I/O and no time here.
"""

from __future__ import annotations

import json

import orjson

from brain.errors import ProtocolError
from brain.remote_errors import body_error

MAX_COUNT = 2**31 - 1  # more tokens than any context holds; the database takes twice the bits


class CompletionEvents:
    """Accumulates one completion; fields are ``None`` until an event has told them.

    ``done``: ``[DONE]`` was seen. ``seen``: any event was. A surrogate pair that a server splits
    between two events is joined; half of one at the very end is dropped.
    """

    __slots__ = (
        "_half",
        "_remote",
        "cached_tokens",
        "completion_tokens",
        "done",
        "finish_reason",
        "model",
        "prompt_tokens",
        "seen",
    )

    def __init__(self, *, remote: str) -> None:
        self.finish_reason: str | None = None
        self.model: str | None = None
        self.prompt_tokens: int | None = None
        self.completion_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.done = False
        self.seen = False
        self._remote = remote
        self._half = ""

    def take(self, data: bytes) -> str:
        """Apply the data of one event; return its text, if any.

        Raises:
            RemoteError: it is not a completion, or it reports an error.
        """
        if data == b"[DONE]":
            self.done = True
            return ""
        self.seen = True
        try:
            event = _loads(data)
        except ValueError:
            raise self._bad("sent invalid JSON") from None
        if not isinstance(event, dict):
            raise self._bad("sent an event that is no JSON object")
        if event.get("error"):
            raise body_error(event["error"], remote=self._remote)
        if self.model is None and isinstance(model := event.get("model"), str):
            self.model = _whole(model[:256])
        usage = event.get("usage")
        if usage:
            self._usage(usage)
        choices = event.get("choices")
        if not choices:
            return ""
        try:
            choice = choices[0]
            delta = choice.get("delta") or choice.get("message")
            piece = delta.get("content") if delta else None
            reason = choice.get("finish_reason")
        except (TypeError, KeyError, AttributeError):
            raise self._bad("sent a malformed chunk") from None
        if reason:
            self.finish_reason = _whole(str(reason)[:64])
        if not piece:
            return ""
        if not isinstance(piece, str):
            raise self._bad("sent text that is no string")
        if self._half or not piece.isascii():
            piece, self._half = _join_halves(self._half + piece)
        return piece

    def _usage(self, usage: object) -> None:
        if not isinstance(usage, dict):
            return
        self.prompt_tokens = _count(usage.get("prompt_tokens"))
        self.completion_tokens = _count(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        if isinstance(details, dict):
            self.cached_tokens = _count(details.get("cached_tokens"))

    def _bad(self, what: str) -> ProtocolError:
        return ProtocolError(f"the {self._remote} {what}", remote=self._remote)


def is_whole(data: bytes) -> bool:
    """Whether the data of an unfinished last event is complete after all."""
    try:
        return data == b"[DONE]" or bool(_loads(data))
    except ValueError:
        return False


def _loads(data: bytes) -> object:
    """Decode one event; ``ValueError`` when it is not JSON."""
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        # orjson refuses half a surrogate pair, which servers that count in UTF-16 may send.
        if b"\\ud" not in data.lower():
            raise
    try:
        return json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _join_halves(text: str) -> tuple[str, str]:
    """``text`` with surrogate pairs joined, and a high surrogate at its end held back.

    A surrogate that has no partner becomes U+FFFD.
    """
    half = text[-1] if "\ud800" <= text[-1] <= "\udbff" else ""
    whole = text[:-1] if half else text
    return _whole(whole), half


def _whole(text: str) -> str:
    """``text`` as UTF-8 can hold it, and so a log and a database: see ``_join_halves``."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _count(value: object) -> int | None:
    """A count of tokens; one that no reply can have says as little as none."""
    return value if type(value) is int and 0 <= value <= MAX_COUNT else None
