"""A language model without a model: one token a UTF-8 byte, replies from a script.

It checks what llama.cpp would punish: positions that do not follow the live sequence, use from two
threads, sampling without logits. Steps can be held, so that a test decides when they finish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from sidecars.token_model import ChatMessages, EngineFailure, Sampling

END = 256
PATIENCE_S = 120.0


class ScriptedModel:
    """``reply`` maps the prompt's text to the reply's bytes."""

    def __init__(
        self,
        reply: Callable[[str], bytes] = lambda _: b"hello",
        *,
        context_tokens: int = 1000,
        can_truncate: bool = True,
    ) -> None:
        self.context_tokens = context_tokens
        self.state_format = "scripted"
        self.live: list[int] = []
        self.steps: list[tuple[int, int]] = []
        self.restored = 0
        self.interruptions = 0
        self.samplings: list[Sampling] = []
        self.closed = False
        self.refuses_states = False
        self.fail_on: int | None = None
        self._reply = reply
        self._can_truncate = can_truncate
        self._thread: int | None = None
        self._changed = threading.Condition()
        self._interrupted = False
        self._held = False
        self._allowed = 0
        self.waiting = threading.Event()
        self._has_logits = False

    # -- the test's side -------------------------------------------------------------------------

    def hold(self) -> None:
        """Let no further step finish."""
        with self._changed:
            self._held, self._allowed = True, 0
            self.waiting.clear()

    def allow(self, steps: int) -> None:
        """Let this many steps finish."""
        with self._changed:
            self.waiting.clear()
            self._allowed += steps
            self._changed.notify_all()

    def release(self) -> None:
        """Let every step finish."""
        with self._changed:
            self._held = False
            self._changed.notify_all()

    def wait_for_interruption(self) -> None:
        """Return once ``interrupt`` has been called."""
        with self._changed:
            assert self._changed.wait_for(lambda: self.interruptions > 0, PATIENCE_S)

    @property
    def evaluated(self) -> int:
        """Tokens evaluated since the start."""
        return sum(count for _, count in self.steps)

    # -- TokenModel ------------------------------------------------------------------------------

    def encode_chat(self, messages: ChatMessages, *, reply: bool) -> list[int]:
        text = "".join(f"[{m['role']}]{m['content']}\n" for m in messages)
        return self.encode(text + ("[assistant]" if reply else ""))

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def piece(self, token: int) -> bytes:
        return bytes([token])

    def ends(self, token: int) -> bool:
        return token == END

    def evaluate(self, tokens: Sequence[int], position: int, *, logits: bool) -> bool:
        self._check_thread()
        assert position == len(self.live), "evaluation must follow the live sequence"
        assert len(tokens) > 0 and position + len(tokens) <= self.context_tokens
        with self._changed:
            if self._held and not self._allowed:
                self.waiting.set()
                assert self._changed.wait_for(
                    lambda: not self._held or self._allowed > 0 or self._interrupted, PATIENCE_S
                ), "a held step was never released"
            if self._interrupted:
                if not self._can_truncate:
                    self.live = []
                return False
            self._allowed = max(0, self._allowed - 1)
        if self.fail_on is not None and self.fail_on in tokens:
            self.live = []
            raise EngineFailure("the scripted model fails on this token")
        self.live += tokens
        self.steps.append((position, len(tokens)))
        self._has_logits = logits
        return True

    def length(self) -> int:
        return len(self.live)

    def truncate(self, length: int) -> bool:
        self._check_thread()
        self._has_logits = False
        if length > 0 and not self._can_truncate:
            self.live = []
            return False
        del self.live[length:]
        return True

    def snapshot_bytes(self) -> int:
        return 10 * len(self.live)

    def snapshot(self) -> bytearray:
        return bytearray(b"".join(token.to_bytes(10, "little") for token in self.live))

    def restore(self, snapshot: bytearray) -> bool:
        self._check_thread()
        if self.refuses_states:
            self.live = []
            return False
        self.live = [
            int.from_bytes(snapshot[i : i + 10], "little") for i in range(0, len(snapshot), 10)
        ]
        self.restored += 1
        return True

    def sampler(self, sampling: Sampling) -> ScriptedSampler:
        self.samplings.append(sampling)
        return ScriptedSampler(self, self._reply(bytes(self.live).decode()))

    def interrupt(self) -> None:
        with self._changed:
            self._interrupted = True
            self.interruptions += 1
            self._changed.notify_all()

    def rearm(self) -> None:
        with self._changed:
            self._interrupted = False

    def close(self) -> None:
        self.closed = True

    def _check_thread(self) -> None:
        self._thread = self._thread or threading.get_ident()
        assert self._thread == threading.get_ident(), "the model was used from two threads"


class ScriptedSampler:
    """Gives the script's bytes, then the end token."""

    def __init__(self, model: ScriptedModel, reply: bytes) -> None:
        self._model = model
        self._left = [*reply, END]

    def next(self) -> int:
        assert self._model._has_logits, "sampling needs the logits of the last token"
        return self._left.pop(0)

    def close(self) -> None:
        pass
