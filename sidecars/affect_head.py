"""The affect head without PyTorch: messages → checked scores, and why.

Reasons are leave-one-out: each word is left out once, and what moves an axis most is named. They
cost one more batch through the model, so they are computed after the scores are out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brain.errors import ConfigError
from sidecars.affect_manifest import AXES, AffectManifest
from sidecars.english import looks_english
from sidecars.onnx_text import MANIFEST_FILE, TextModel, first_line

OUTPUTS = frozenset({"axes", "spread", "tags"})
ROUNDING = 1e-3  # by which int8 arithmetic may pass the bounds of tanh
MAX_REASON_WORDS = 24
SMALLEST_SHIFT = 0.05
ONE_WORD = "one word: there is nothing to leave out"
# Confidence of what the head was not made for: text it read only in part, or cannot read.
CUT_CONFIDENCE = 0.5
FOREIGN_CONFIDENCE = 0.3
_WORD = re.compile(r"\S+")


@dataclass(frozen=True, slots=True)
class Message:
    """One text, with what came before it (oldest first, at most two)."""

    text: str
    context: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scores:
    """Axes in [-1, 1], ``confidence`` in [0, 1]."""

    valence: float
    intimacy: float
    tension: float
    confidence: float
    tags: tuple[str, ...]


class AffectHead:
    """A loaded head; ``score`` and ``reason`` are safe from one thread at a time."""

    def __init__(self, model: TextModel, *, where: str = MANIFEST_FILE) -> None:
        manifest = AffectManifest.check(model.manifest, where=where)
        if missing := sorted(OUTPUTS - set(model.outputs)):
            raise ConfigError(f"{where}: the model lacks the outputs {', '.join(missing)}")
        self._model = model
        self.name = f"{manifest.name}-{manifest.version}"
        self._limit = manifest.max_tokens
        self._tags = tuple(manifest.tags)
        self._thresholds = np.asarray(manifest.tag_thresholds, np.float32)
        self._a, self._b = manifest.confidence.a, manifest.confidence.b

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1, products: str = "int8") -> AffectHead:
        """Verify and load a folder; ``products`` as ``TextModel.load`` takes them.

        Raises:
            ConfigError: missing, altered or foreign (exit code 78).
        """
        model = TextModel.load(folder, threads=threads, products=products)
        head = cls(model, where=str(Path(folder) / MANIFEST_FILE))
        head.warm()
        return head

    def warm(self) -> None:
        """Run once, on a short message and on one of full length: the first inference plans its
        memory, and shows what the model really takes and gives.

        Raises:
            ConfigError: it does not run, or its outputs are not what the manifest says.
        """
        messages = [Message("warm start", ("before",)), Message("word " * self._limit)]
        try:
            out = self._run(messages)
            found = tuple(out[name].shape for name in ("axes", "spread", "tags"))
        except Exception as error:  # the runtime raises types of its own
            raise ConfigError(f"{self.name}: cannot be run ({first_line(error)})") from error
        n = len(messages)
        wanted = ((n, len(AXES)), (n,), (n, len(self._tags)))
        if found != wanted:
            raise ConfigError(f"{self.name}: outputs of shapes {found}, the manifest says {wanted}")

    @property
    def sha256(self) -> str:
        """Hash of the model file."""
        return self._model.sha256

    @property
    def products(self) -> str:
        """What the encoder multiplies in: ``int8`` or ``float32``."""
        return self._model.products

    def score(self, messages: Sequence[Message]) -> list[Scores]:
        """Scores of each message, in order.

        Raises:
            ArithmeticError: the model gave a value that is not finite or out of its range;
                nothing of it leaves.
        """
        out = self._run(messages)
        return [self._scores(message, out, i) for i, message in enumerate(messages)]

    def leave_one_out(self, message: Message) -> tuple[list[str], list[Message]]:
        """Words, and the message whole followed by the message without each of them."""
        found = list(_WORD.finditer(message.text))[:MAX_REASON_WORDS]
        shorter = [
            Message((message.text[: w.start()] + message.text[w.end() :]).strip(), message.context)
            for w in found
        ]
        return [w.group() for w in found], [message, *shorter]

    def axes(self, messages: Sequence[Message]) -> NDArray[np.float32]:
        """The three axes of each message, ``[N, 3]``."""
        return self._run(messages)["axes"]

    def tell(self, words: Sequence[str], axes: NDArray[np.float32]) -> str:
        """Which words moved which axis, from the axes ``[1 + words, 3]`` of ``leave_one_out``."""
        shift = axes[0][None, :] - axes[1:]  # what the word adds to each axis
        parts = []
        for i, axis in enumerate(AXES):
            strongest = np.argsort(-np.abs(shift[:, i]))[:2]
            named = [
                f"“{words[k]}” {shift[k, i]:+.2f}"
                for k in strongest
                if abs(shift[k, i]) >= SMALLEST_SHIFT
            ]
            if named:
                parts.append(f"{axis}: {', '.join(named)}")
        return "; ".join(parts) or "no single word moves any axis"

    def _run(self, messages: Sequence[Message]) -> dict[str, NDArray[np.float32]]:
        out = self._model.run(
            [m.text for m in messages], ["\n".join(m.context) or None for m in messages]
        )
        if not all(np.isfinite(out[name]).all() for name in OUTPUTS):
            raise ArithmeticError("the affect head gave a value that is not finite")
        if np.abs(out["axes"]).max(initial=0.0) > 1.0 + ROUNDING:
            raise ArithmeticError("the affect head gave an axis outside [-1, 1]")
        return out

    def _scores(self, message: Message, out: dict[str, Any], i: int) -> Scores:
        axes = np.clip(out["axes"][i], -1.0, 1.0)  # ROUNDING
        spread = max(0.0, float(out["spread"][i]))
        confidence = _sigmoid(self._a - self._b * spread)
        if self._model.is_cut(message.text):
            confidence *= CUT_CONFIDENCE
        if not self._readable(message.text):
            confidence *= FOREIGN_CONFIDENCE
        tags = tuple(
            tag
            for tag, seen in zip(self._tags, out["tags"][i] >= self._thresholds, strict=True)
            if seen
        )
        valence, intimacy, tension = (float(x) for x in axes)
        return Scores(valence, intimacy, tension, confidence=float(confidence), tags=tags)

    def _readable(self, text: str) -> bool:
        """Whether the text looks like the English that the head was made for."""
        return looks_english(text, lambda words: self._model.count_tokens(words) - 2)


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))
