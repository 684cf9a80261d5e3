"""What the chat engine needs of a language model; llama.cpp is one, tests script another.

A model holds one *live sequence*: the tokens whose keys and values are in its cache. Everything
that touches it (``evaluate``, ``truncate``, ``snapshot``, ``restore``, a ``Sampler``) belongs to
one thread. ``encode*``, ``piece`` and ``ends`` may be called from any thread meanwhile, and
``interrupt`` exists to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from brain.errors import InputError, LimbicError

ChatMessages = Sequence[Mapping[str, str]]


class EngineFailure(LimbicError):
    """The model library failed on a valid request; the live sequence is gone."""

    retryable = True
    http_status = 503


class TemplateRefused(InputError):
    """The model's own chat template does not accept these messages."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, with OpenAI's meanings. ``temperature`` 0 is greedy.

    ``top_k`` 0 keeps all; ``seed`` ``None`` is a random one. The ``dry`` ones are llama.cpp's: a
    token that would make the last words repeat longer than ``dry_allowed_length`` tokens of what
    was said loses ``dry_multiplier`` times ``dry_base`` to the power of the length beyond it.
    ``spoken`` are the tokens that count as said besides this reply's.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 40
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    dry_multiplier: float = 0.8
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    spoken: tuple[int, ...] = ()
    seed: int | None = None


class Sampler(Protocol):
    """Chooses tokens from the live sequence's last logits; remembers what it chose."""

    def next(self) -> int:
        """The next token."""
        ...

    def close(self) -> None:
        """Free it."""
        ...


class TokenModel(Protocol):
    """One loaded model with one live sequence of at most ``context_tokens``."""

    context_tokens: int
    state_format: str  # states may be exchanged between processes in which this is the same

    def encode_chat(self, messages: ChatMessages, *, reply: bool) -> list[int]:
        """Tokens of a conversation in the model's own chat template.

        ``reply`` opens the assistant's turn at the end. Message texts never become control tokens.

        Raises:
            TemplateRefused: the template does not accept such messages.
        """
        ...

    def encode(self, text: str) -> list[int]:
        """Tokens of plain text."""
        ...

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; not always whole UTF-8; empty for control tokens."""
        ...

    def ends(self, token: int) -> bool:
        """Whether the token ends the reply."""
        ...

    def evaluate(self, tokens: Sequence[int], position: int, *, logits: bool) -> bool:
        """Append tokens to the live sequence, which has ``position`` tokens now.

        Returns false when interrupted; the sequence is then as before, or empty if this kind of
        model cannot undo. ``logits`` asks for those of the last token, which sampling needs.

        Raises:
            EngineFailure: the library failed.
        """
        ...

    def length(self) -> int:
        """Tokens in the live sequence."""
        ...

    def truncate(self, length: int) -> bool:
        """Keep the first ``length`` tokens. False: this kind of model cannot, all are gone."""
        ...

    def snapshot_bytes(self) -> int:
        """Size of a snapshot of the live sequence now."""
        ...

    def snapshot(self) -> bytearray:
        """A copy of the live sequence's cache."""
        ...

    def restore(self, snapshot: bytearray) -> bool:
        """Replace the live sequence. False: it failed, the sequence is empty."""
        ...

    def sampler(self, sampling: Sampling) -> Sampler:
        """A new sampler."""
        ...

    def interrupt(self) -> None:
        """Make a running ``evaluate`` return soon, and later ones at once, until ``rearm``."""
        ...

    def rearm(self) -> None:
        """Undo ``interrupt``."""
        ...

    def close(self) -> None:
        """Free everything."""
        ...
