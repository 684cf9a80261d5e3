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
from sidecars.onnx_text import TextModel

AXES = ("valence", "intimacy", "tension")
KIND = "affect-encoder"
MAX_REASON_WORDS = 24
SMALLEST_SHIFT = 0.05
# Confidence of what the head was not made for: text it read only in part, or cannot read.
CUT_CONFIDENCE = 0.5
FOREIGN_CONFIDENCE = 0.3
_WORD = re.compile(r"\S+")
_LATIN = re.compile(r"[A-Za-z]")


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

    def __init__(self, model: TextModel) -> None:
        manifest = model.manifest
        missing = {"axes", "spread", "tags"} - set(model.outputs)
        if manifest.get("kind") != KIND or missing:
            raise ConfigError(
                f"{manifest.get('name', 'the model')}: not an affect head "
                f"(kind {manifest.get('kind')!r}, wanted {KIND!r})"
            )
        self._model = model
        try:
            self._tags = tuple(str(tag) for tag in manifest["tags"])
            self._thresholds = np.asarray(manifest["tag_thresholds"], np.float32)
            self._a, self._b = (float(manifest["confidence"][key]) for key in ("a", "b"))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{manifest.get('name')}: its manifest lacks {error}") from error
        if self._thresholds.shape != (len(self._tags),):
            raise ConfigError(f"{manifest.get('name')}: a threshold for each tag is needed")

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1) -> AffectHead:
        """Verify and load a folder.

        Raises:
            ConfigError: missing, altered or foreign (exit code 78).
        """
        return cls(TextModel.load(folder, threads=threads))

    @property
    def name(self) -> str:
        """Name and version of the model."""
        return f"{self._model.manifest['name']}-{self._model.manifest['version']}"

    @property
    def sha256(self) -> str:
        """Hash of the model file."""
        return self._model.sha256

    def score(self, messages: Sequence[Message]) -> list[Scores]:
        """Scores of each message, in order.

        Raises:
            ArithmeticError: the model gave a value that is not finite; nothing of it leaves.
        """
        out = self._run(messages)
        return [self._scores(message, out, i) for i, message in enumerate(messages)]

    def reason(self, message: Message) -> str:
        """Which words moved which axis, in one sentence; leave-one-out."""
        words = list(_WORD.finditer(message.text))[:MAX_REASON_WORDS]
        if len(words) < 2:
            return "one word: there is nothing to leave out"
        shorter = [
            Message((message.text[: w.start()] + message.text[w.end() :]).strip(), message.context)
            for w in words
        ]
        axes = self._run([message, *shorter])["axes"]
        shift = axes[0][None, :] - axes[1:]  # what the word adds to each axis
        parts = []
        for i, axis in enumerate(AXES):
            strongest = np.argsort(-np.abs(shift[:, i]))[:2]
            named = [
                f"“{words[k].group()}” {shift[k, i]:+.2f}"
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
        if not all(np.isfinite(out[name]).all() for name in ("axes", "spread", "tags")):
            raise ArithmeticError("the affect head gave a value that is not finite")
        return out

    def _scores(self, message: Message, out: dict[str, Any], i: int) -> Scores:
        axes = np.clip(out["axes"][i], -1.0, 1.0)  # rounding of int8 can pass tanh's bound
        spread = max(0.0, float(out["spread"][i]))
        confidence = 1 / (1 + math.exp(-(self._a - self._b * spread)))
        limit = int(self._model.manifest["max_tokens"])
        if len(message.text) > limit and self._model.count_tokens(message.text) >= limit:
            confidence *= CUT_CONFIDENCE
        letters = sum(char.isalpha() for char in message.text)
        if not letters or len(_LATIN.findall(message.text)) < 0.5 * letters:
            confidence *= FOREIGN_CONFIDENCE
        tags = tuple(
            tag
            for tag, seen in zip(self._tags, out["tags"][i] >= self._thresholds, strict=True)
            if seen
        )
        valence, intimacy, tension = (float(x) for x in axes)
        return Scores(valence, intimacy, tension, confidence=float(confidence), tags=tags)
