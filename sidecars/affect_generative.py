"""The generative affect head: a small chat model that writes scores, tags and why, as JSON.

Every token is checked by the answer's grammar. A score is the mean of what the model would write:
the probabilities of all 21 numbers from -1.0 to 1.0 are read in one step, and the mean, rounded, is
what the next fields see written before them (reading a language model's score as an expectation:
Liu et al. 2023, G-Eval). The reasoning is written after the scores are out, by the same model, to
the end of the same JSON object.

Confidence is what the probabilities say of themselves: the share within ``CLOSE`` of the mean, over
the axes, put through a curve that was fitted on held-out rows and stands in the file. A file
without a curve is never trusted above ``UNFITTED_CONFIDENCE``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from brain.errors import ConfigError
from brain.schema import MAX_TAGS, Tag, describe
from sidecars import affect_prompt as prompt
from sidecars.affect_head import CUT_CONFIDENCE, FOREIGN_CONFIDENCE, Message, Scores
from sidecars.affect_manifest import AXES, Word
from sidecars.artifacts import resolve
from sidecars.english import COMMON_WORDS, looks_english
from sidecars.formats import Format
from sidecars.grammar_model import Grammar, GrammarModel, Logits
from sidecars.service import Progress
from sidecars.token_model import EngineFailure

CONTEXT_TOKENS = 768
MAX_PROMPT_TOKENS = 512
MAX_TAG_TOKENS = 40
#: An answer within this of the mean counts as sure; the encoder head's confidence means the same.
CLOSE = 0.25
UNFITTED_CONFIDENCE = 0.3
KEPT_ANSWERS = 256
TOKENS_A_STEP = 8


class Named(BaseModel):
    """Names in a manifest that stand in every answer: the brain refuses an answer with others."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    name: Word
    version: Word
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a model file says of itself under ``affect_prompt.MANIFEST_KEY``."""

    name: str
    tags: tuple[str, ...]
    curve: tuple[float, float] | None

    @classmethod
    def parse(cls, text: str, file: str) -> Manifest:
        """Raises ConfigError when the file is not this head's."""
        try:
            body = orjson.loads(text) if text else {}
            if not isinstance(body, dict) or body.get("kind") != prompt.KIND:
                raise ConfigError(
                    f"{file}: not an affect head; give a folder with an encoder head, or a GGUF "
                    "file that limbic export affect-generative wrote"
                )
            if body["prompt"] != prompt.PROMPT_VERSION:
                raise ConfigError(
                    f"{file}: was taught prompt {body['prompt']}, this version of limbic asks "
                    f"prompt {prompt.PROMPT_VERSION}; train and export it again"
                )
            fitted = body["confidence"]
            curve = None if fitted is None else (float(fitted["a"]), float(fitted["b"]))
            if not body["tags"] or (curve is not None and not math.isfinite(sum(curve))):
                raise ValueError("no tags, or a confidence that is no number")
            named = Named.model_validate(body)
            return cls(f"{named.name}-{named.version}", tuple(named.tags), curve)
        except ValidationError as error:
            said = describe(error)
            raise ConfigError(
                f"{file}: its manifest is malformed ({said}); export it again"
            ) from error
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{file}: its manifest is malformed ({error})") from error


@dataclass(slots=True)
class Answer:
    """The tokens of an answer so far, and the scores that are in it.

    ``axes`` [3] are the means, ``masses`` [3] the probability within ``CLOSE`` of each.
    """

    asked: list[int]
    tokens: list[int]
    axes: NDArray[np.float64]
    masses: NDArray[np.float64]
    tags: tuple[str, ...]


class GenerativeHead:
    """A loaded head; ``score`` and a ``Telling`` are for one thread at a time."""

    def __init__(self, model: GrammarModel, manifest: Manifest, sha256: str) -> None:
        self._model = model
        self._manifest = manifest
        self.name, self.sha256 = manifest.name, sha256
        self._grammar: Grammar = model.grammar(prompt.grammar(manifest.tags))
        self._openings = [model.encode(text) for text in prompt.OPENINGS]
        self._numbers = _Numbers(model)
        self._kept: OrderedDict[Message, Answer] = OrderedDict()
        self._live: list[int] = []

    @classmethod
    def load(
        cls,
        reference: str | Path,
        *,
        threads: int = 1,
        adapter: str | Path | None = None,
        progress: Progress = lambda _: None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> GenerativeHead:
        """Verify and load a GGUF file, and score once, so that the first message does not wait.

        Args:
            adapter: an adapter file; ``reference`` is then the chat model it was trained on.

        Raises:
            ConfigError: missing, altered, damaged or foreign (exit code 78).
            LoadCancelled: ``stopping()`` turned true.
        """
        formats: tuple[Format, ...] = ("gguf",)
        base = resolve(str(reference), formats=formats, progress=progress)
        own = base if adapter is None else resolve(str(adapter), formats=formats, progress=progress)
        model = GrammarModel(
            base, context_tokens=CONTEXT_TOKENS, threads=threads, progress=progress,
            stopping=stopping, adapter=None if adapter is None else own,
        )  # fmt: skip
        try:
            manifest = Manifest.parse(model.metadata(prompt.MANIFEST_KEY), str(own.path))
            head = cls(model, manifest, own.sha256)
            head.score([Message("warm start", ("before",))])
        except (ArithmeticError, EngineFailure) as error:
            model.close()
            raise ConfigError(f"{own.path}: {error}") from error
        except ConfigError:
            model.close()
            raise
        return head

    def close(self) -> None:
        """Free the model."""
        self._grammar.close()
        self._model.close()

    def score(self, messages: Sequence[Message]) -> list[Scores]:
        """Scores of each message, in order.

        Raises:
            ArithmeticError: the model gave a value that is not finite. EngineFailure: it failed.
        """
        return [self._scores(message, self.answer(message)) for message in messages]

    def telling(self, message: Message) -> Telling:
        """The reasoning of a message, to be written step by step."""
        return Telling(self, message)

    def write(self, message: Message) -> str:
        """The whole answer, a JSON object."""
        telling = self.telling(message)
        while not telling.step():
            pass
        return telling.document

    def answer(self, message: Message) -> Answer:
        """Scores and tags, written; remembered for the reasoning that may be asked for."""
        found = self._kept.pop(message, None)
        if found is None:
            try:
                found = self._answer(message)
            except Exception:
                self._live = []
                self._model.truncate(0)
                raise
        self._kept[message] = found
        while len(self._kept) > KEPT_ANSWERS:
            self._kept.popitem(last=False)
        return found

    def _answer(self, message: Message) -> Answer:
        model, grammar = self._model, self._grammar
        asked = self._ask(message)
        grammar.reset()
        waiting = self._prefix(asked)  # not in the model yet
        written: list[int] = []
        axes, masses = np.zeros(len(AXES)), np.zeros(len(AXES))
        for i, opening in enumerate(self._openings):
            waiting, written = [*waiting, *opening], [*written, *opening]
            chances = self._numbers.chances(model.fork(waiting, self._numbers.branches))
            axes[i] = chances @ prompt.GRID
            near = np.abs(np.asarray(prompt.GRID) - axes[i]) <= CLOSE
            masses[i] = chances[near].sum()
            waiting = model.encode(prompt.number(axes[i]))
            written += waiting
        opening = model.encode(prompt.TAGS_OPENING)
        written += opening
        for token in written:
            grammar.accept(token)
        model.append([*waiting, *opening])
        first = len(written)
        text = b""
        while prompt.TAGS_CLOSING.encode() not in text:
            if len(written) - first >= MAX_TAG_TOKENS:
                raise EngineFailure("the tags of the answer never end")
            token = grammar.choose(model.logits())
            text += model.piece(token)
            written.append(token)
            model.append([token])
        self._live = [*asked, *written]
        tags = orjson.loads(b"[" + text.partition(b"]")[0] + b"]")
        return Answer(asked, written, axes, masses, tuple(dict.fromkeys(tags)))

    def _ask(self, message: Message) -> list[int]:
        """Tokens of the question; text that is many tokens a character is cut further."""
        text, context = message.text, message.context
        while True:
            asked = self._model.encode_chat(prompt.messages(text, context), reply=True)
            if len(asked) <= MAX_PROMPT_TOKENS:
                return asked
            if context:
                context = context[1:]
            else:
                text = text[: min(len(text), prompt.MAX_MESSAGE_CHARS) // 2]

    def _prefix(self, tokens: list[int]) -> list[int]:
        """Keep what the live sequence shares with ``tokens``; returns the rest, at least one."""
        same = 0
        limit = min(len(self._live), len(tokens) - 1)
        while same < limit and self._live[same] == tokens[same]:
            same += 1
        self._live = []  # until the new one is complete
        if not self._model.truncate(same):
            same = 0
        return tokens[same:]

    def _scores(self, message: Message, answer: Answer) -> Scores:
        sure = float(answer.masses.mean())
        curve = self._manifest.curve
        if curve is None:
            confidence = min(sure, UNFITTED_CONFIDENCE)
        else:
            confidence = 0.5 * (1.0 + math.tanh(0.5 * (curve[0] + curve[1] * sure)))
        if prompt.is_cut(message.text):
            confidence *= CUT_CONFIDENCE
        if not readable(message.text):
            confidence *= FOREIGN_CONFIDENCE
        valence, intimacy, tension = (min(1.0, max(-1.0, float(x))) for x in answer.axes)
        if not math.isfinite(valence + intimacy + tension + confidence):
            raise ArithmeticError("the affect head gave a value that is not finite")
        return Scores(valence, intimacy, tension, min(1.0, max(0.0, confidence)), answer.tags)


class Telling:
    """One reasoning in the making; between steps the model may serve other messages."""

    def __init__(self, head: GenerativeHead, message: Message) -> None:
        self._head, self._message = head, message
        self._tokens: list[int] = []
        self.text = ""
        self.document = ""

    def step(self) -> bool:
        """Write a few tokens more; true when it is complete. Raises what ``score`` raises."""
        head, model, grammar = self._head, self._head._model, self._head._grammar
        answer = head.answer(self._message)
        before = b"".join(map(model.piece, answer.tokens))
        begun = before.rpartition(prompt.TAGS_CLOSING.encode())[2]
        opening = model.encode(prompt.REASONING_OPENING[len(begun.decode()) :])
        written = [*answer.tokens, *opening, *self._tokens]
        grammar.reset()
        for token in written:
            grammar.accept(token)
        model.append(head._prefix([*answer.asked, *written]))
        for _ in range(TOKENS_A_STEP):
            closing = model.encode(prompt.REASONING_CLOSING)
            if len(self._tokens) >= prompt.MAX_REASONING_TOKENS and grammar.allows(closing[0]):
                for token in closing:
                    grammar.accept(token)
                self._tokens += closing
            else:
                token = grammar.choose(model.logits())
                self._tokens.append(token)
                model.append([token])
            said = b"".join(map(model.piece, self._tokens))
            if said.endswith(prompt.REASONING_CLOSING.encode()):
                whole = before + b"".join(map(model.piece, opening)) + said
                self.document = whole.decode("utf-8")
                self.text = str(orjson.loads(self.document)["reasoning"]).strip()
                return True
            if len(self._tokens) > 2 * prompt.MAX_REASONING_TOKENS:
                raise EngineFailure("the reasoning never ends")
        head._live = [*answer.asked, *answer.tokens, *opening, *self._tokens]
        return False


class _Numbers:
    """The probabilities of the 21 numbers, from three looks: what opens one, and the digits of a
    positive and of a negative one. Numbers are written digit by digit: ``-``, ``0``, ``.``, ``7``.
    """

    def __init__(self, model: GrammarModel) -> None:
        self._digits = [_one(model, str(digit)) for digit in range(10)]
        self._minus, self._point = _one(model, "-"), _one(model, ".")
        zero = self._digits[0]
        self.branches = ((zero, self._point), (self._minus, zero, self._point))

    def chances(self, looks: Sequence[Sequence[Logits]]) -> NDArray[np.float64]:
        """Probabilities [21] in the order of ``affect_prompt.GRID``; they sum to 1."""
        (first, _, digit), (_, after_minus, _, negative) = looks
        zero, one = self._digits[0], self._digits[1]
        minus, nought, whole = _softmax(first, [self._minus, zero, one])
        small, great = _softmax(after_minus, [zero, one])
        up = nought * _softmax(digit, self._digits)
        down = minus * small * _softmax(negative, self._digits[1:])
        return np.concatenate([[minus * great], down[::-1], up, [whole]])


def readable(text: str) -> bool:
    """The encoder head's check of the language without its tokenizer: in place of finely cut words,
    a line of six words or more that has none of the commonest English ones."""
    return looks_english(text, _pieces)


def _pieces(words: str) -> int:
    found = words.split()
    return 0 if any(word in COMMON_WORDS for word in found) else 3 * len(found) // 2


def _softmax(logits: Logits, tokens: Sequence[int]) -> NDArray[np.float64]:
    chosen = logits[list(tokens)].astype(np.float64)
    raised = np.exp(chosen - chosen.max())
    found: NDArray[np.float64] = raised / raised.sum()
    return found


def _one(model: Any, text: str) -> int:
    tokens = model.encode(text)
    if len(tokens) != 1:
        raise ConfigError(
            f"the model's tokenizer has no token for {text!r}; it cannot be this head"
        )
    return int(tokens[0])
