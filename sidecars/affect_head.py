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
ONE_WORD = "one word: there is nothing to leave out"
# Confidence of what the head was not made for: text it read only in part, or cannot read.
CUT_CONFIDENCE = 0.5
FOREIGN_CONFIDENCE = 0.3
# What tells English from other text in Latin letters, set on chat and on the affect set: see
# docs/affect-head.md. Pieces are the tokenizer's, a word; common is the share of COMMON_WORDS.
MAX_LANGUAGE_WORDS = 48
MOST_COMMON = 0.2
LONG_ENOUGH, LONG_PIECES, SHORT_PIECES = 6, 1.35, 2.0
COMMON_WORDS = frozenset(
    re.findall(
        r"\w+",
        """i you he she it we they me him her us them my your his its our their this that these
        those the a an and or but if so because as of at by for with about to from in on up out
        off over not no yes do does did done have has had am is are was were be been being can
        could will would should may might must what when where why how who which there here just
        like get got go going know think want love hate good bad really very too then now ok okay
        hi hey hello thanks please im dont cant thats haha lol yeah wow oh hmm""",
    )
)
_WORD = re.compile(r"\S+")
_LATIN = re.compile(r"[A-Za-z]")
_LETTERS = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)*")


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
        name = manifest.get("name", "the model")
        if manifest.get("kind") != KIND:
            raise ConfigError(
                f"{name}: not an affect head (kind {manifest.get('kind')!r}, wanted {KIND!r})"
            )
        if missing := sorted({"axes", "spread", "tags"} - set(model.outputs)):
            raise ConfigError(f"{name}: the model lacks the outputs {', '.join(missing)}")
        self._model = model
        try:
            self.name = f"{manifest['name']}-{manifest['version']}"
            self._limit = int(manifest["max_tokens"])
            self._tags = tuple(str(tag) for tag in manifest["tags"])
            self._thresholds = np.asarray(manifest["tag_thresholds"], np.float32)
            self._a, self._b = (float(manifest["confidence"][key]) for key in ("a", "b"))
        except KeyError as error:
            raise ConfigError(f"{name}: its manifest lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{name}: its manifest is malformed ({error})") from error
        if self._thresholds.shape != (len(self._tags),):
            raise ConfigError(f"{name}: its manifest needs one threshold for each tag")
        if not (np.isfinite(self._thresholds).all() and math.isfinite(self._a + self._b)):
            raise ConfigError(
                f"{name}: its manifest has a threshold or confidence that is no number"
            )

    @classmethod
    def load(cls, folder: str | Path, *, threads: int = 1) -> AffectHead:
        """Verify and load a folder.

        Raises:
            ConfigError: missing, altered or foreign (exit code 78).
        """
        head = cls(TextModel.load(folder, threads=threads))
        head.warm()
        return head

    def warm(self) -> None:
        """Run once: the first inference plans its memory, and shows what the model really gives.

        Raises:
            ConfigError: its outputs have other shapes than the manifest says.
        """
        try:
            out = self._run([Message("warm start", ("before",))])
        except ArithmeticError as error:
            raise ConfigError(f"{self.name}: {error}") from error
        found = (out["axes"].shape, out["spread"].shape, out["tags"].shape)
        wanted = ((1, len(AXES)), (1,), (1, len(self._tags)))
        if found != wanted:
            raise ConfigError(f"{self.name}: outputs of shapes {found}, the manifest says {wanted}")

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
        if not all(np.isfinite(out[name]).all() for name in ("axes", "spread", "tags")):
            raise ArithmeticError("the affect head gave a value that is not finite")
        return out

    def _scores(self, message: Message, out: dict[str, Any], i: int) -> Scores:
        axes = np.clip(out["axes"][i], -1.0, 1.0)  # rounding of int8 can pass tanh's bound
        spread = max(0.0, float(out["spread"][i]))
        confidence = _sigmoid(self._a - self._b * spread)
        if len(message.text) > self._limit and (
            self._model.count_tokens(message.text) >= self._limit
        ):
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
        """Whether the text looks like the English that the head was made for.

        Script first; then, from three words up, how finely the tokenizer has to cut the words and
        how few of them are among the commonest: other languages and typed noise differ in both.
        """
        letters = sum(char.isalpha() for char in text)
        if not letters or len(_LATIN.findall(text)) < 0.5 * letters:
            return False
        words = _LETTERS.findall(text.lower())[:MAX_LANGUAGE_WORDS]
        if len(words) < 3:
            return True
        common = sum(word.split("'")[0] in COMMON_WORDS for word in words) / len(words)
        if common > MOST_COMMON:
            return True
        pieces = (self._model.count_tokens(" ".join(words)) - 2) / len(words)
        if len(words) < LONG_ENOUGH:
            return common > 0 or pieces < SHORT_PIECES
        return pieces < LONG_PIECES


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))
