"""The ``cahm`` sidecar: ``POST /v1/affect`` and ``/v1/affect/batch``, no PyTorch.

``--model`` is a folder with an encoder head (ONNX, the default) or a generative head's GGUF file.
Scores leave at once; why they are what they are is computed afterwards, when nothing waits, and is
kept for ``POST /v1/affect/reasoning {turn_id}``.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Self, TypeVar

import numpy as np
from aiohttp import web
from pydantic import Field, StringConstraints

from brain.errors import ConfigError, InputError
from brain.schema import MAX_REASONING_CHARS, MAX_TEXT_CHARS, WireFrame, check_text
from sidecars.affect_head import ONE_WORD, AffectHead, Message, Scores
from sidecars.batching import MicroBatcher, Shed, deadline_passed
from sidecars.guard import Problem, Timed, context_of, json_response, read_body
from sidecars.launch import main
from sidecars.process import bound_free_memory, limit_openmp_spinning
from sidecars.service import ModelInfo, Progress, Service

if TYPE_CHECKING:
    from sidecars.affect_generative import GenerativeHead

WEIGHTS = Path(__file__).parent / "weights" / "cahm"
MAX_BATCH_ITEMS = 256
KEPT_REASONS = 256
# Reasons wait until no message came for so long: in a burst, scores are all that matters.
QUIET_S = 0.05
WorkT = TypeVar("WorkT")
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]


class AffectItem(WireFrame):
    """One message of a request."""

    text: Text
    context: Annotated[tuple[Text, ...], Field(max_length=2)] = ()

    def message(self) -> Message:
        """Checked: raises InputError for empty text, and for control characters in any text."""
        text = check_text(self.text)
        try:
            context = tuple(check_text(c) for c in self.context if c.strip())
        except InputError as error:
            raise InputError(f"context: {error}") from error
        return Message(text, context)


class AffectRequest(AffectItem, Timed):
    """``POST /v1/affect``."""


class BatchRequest(Timed):
    """``POST /v1/affect/batch``."""

    items: Annotated[tuple[AffectItem, ...], Field(min_length=1, max_length=MAX_BATCH_ITEMS)]


class CahmService(Service):
    """One head, one worker thread; concurrent requests share its batches."""

    name: ClassVar[str] = "cahm"
    default_port: ClassVar[int] = 8082
    description: ClassVar[str] = "Score messages on valence, intimacy and tension."

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._head: AffectHead | GenerativeHead
        self._batcher: MicroBatcher[Message, Scores] | None = None
        self._wanted: asyncio.Queue[tuple[str, Message]] = asyncio.Queue(KEPT_REASONS)
        # None: dropped before it was computed.
        self._reasons: OrderedDict[str, asyncio.Future[str | None]] = OrderedDict()
        self._last_arrival = 0.0
        self._reasoner: asyncio.Task[None] | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--model", type=Path, default=WEIGHTS, help="a model folder, or a GGUF file's reference"
        )
        parser.add_argument(
            "--adapter", type=Path, help="a generative head's adapter; --model is then its base"
        )
        parser.add_argument(
            "--products", choices=("auto", "int8", "float32"), default="auto",
            help="what an encoder head multiplies in (default: what this processor is faster at)",
        )  # fmt: skip
        parser.add_argument("--threads", type=int, default=2, help="of one inference (default: 2)")
        parser.add_argument("--max-queue", type=int, default=512, help="messages that may wait")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        limits = {"threads": (1, 64), "max_queue": (MAX_BATCH_ITEMS, 100_000)}
        wrong = [
            f"--{key.replace('_', '-')} must be {low} to {high} (got {value})"
            for key, (low, high) in limits.items()
            if not low <= (value := getattr(args, key)) <= high
        ]
        if wrong:
            raise ConfigError(*wrong)
        return cls(args)

    def load(self, progress: Progress, stopping: Callable[[], bool]) -> ModelInfo:
        progress("loading the affect head")
        model, threads = self._args.model, self._args.threads
        adapter, products = getattr(self._args, "adapter", None), self._args.products
        if adapter is not None or ".gguf" in model.name or model.is_file():
            if products != "auto":
                raise ConfigError(f"--products {products} is for a folder with an encoder head")
            limit_openmp_spinning()
            # Imported here: it loads llama.cpp, which the default head does not need.
            from sidecars.affect_generative import GenerativeHead

            self._head = GenerativeHead.load(
                model, adapter=adapter, threads=threads, progress=progress, stopping=stopping
            )
        else:
            self._head = AffectHead.load(model, threads=threads, products=products)
            return ModelInfo(self._head.name, self._head.sha256, self._head.products)
        return ModelInfo(self._head.name, self._head.sha256)

    async def start(self) -> None:
        self._batcher = MicroBatcher(
            self._head.score,
            name="cahm",
            # A generative head takes longer for each: every message's deadline is looked at.
            max_batch=32 if isinstance(self._head, AffectHead) else 1,
            max_queue=self._args.max_queue,
        )
        self._inference = self.metrics.histogram(
            "limbic_cahm_seconds", "From a request's arrival to its scores"
        )
        if isinstance(self._head, AffectHead):
            self.metrics.constant(
                "limbic_cahm_products",
                "Always 1; what is multiplied in",
                products=self._head.products,
            )
        self._reasoner = asyncio.create_task(self._reason())

    async def close(self) -> None:
        if self._reasoner is not None:
            self._reasoner.cancel()
            await asyncio.wait([self._reasoner])
        for future in self._reasons.values():
            if not future.done():
                future.set_result(None)
        if self._batcher is not None:
            await self._batcher.close()

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v1/affect", self._affect),
            web.post("/v1/affect/batch", self._batch),
            web.post("/v1/affect/reasoning", self._reasoning),
        ]

    def queue_length(self) -> int:
        return self._batcher.queue_length if self._batcher else 0

    async def _affect(self, request: web.Request) -> web.Response:
        arrived = time.monotonic()
        body = await read_body(request, AffectRequest)
        context = context_of(request, body)
        message = body.message()
        scores = (await self._score([message], context.deadline))[0]
        if context.turn_id:
            self._want_reason(context.turn_id, message)
        return json_response(self._answer(scores, arrived))

    async def _batch(self, request: web.Request) -> web.Response:
        arrived = time.monotonic()
        body = await read_body(request, BatchRequest)
        messages = [item.message() for item in body.items]
        found = await self._score(messages, context_of(request, body).deadline)
        return json_response({"items": [self._answer(scores, arrived) for scores in found]})

    async def _reasoning(self, request: web.Request) -> web.Response:
        """Wait for a reason as long as its asker does; it is worked out and kept all the same."""
        context = context_of(request, await read_body(request, Timed))
        if not context.turn_id:
            raise Problem(400, "invalid_request", "turn_id: Field required")
        found = self._reasons.get(context.turn_id)
        if found is not None and not found.done():
            left = None if context.deadline is None else context.deadline - time.monotonic()
            await asyncio.wait([found], timeout=None if left is None else max(0.0, left))
            if not found.done():
                raise deadline_passed("it was worked out")
        reasoning = found.result() if found is not None else None
        if reasoning is None:
            raise Problem(404, "unknown_turn", "no message of that turn was scored lately")
        return json_response({"turn_id": context.turn_id, "reasoning": reasoning})

    async def _score(self, messages: Sequence[Message], deadline: float | None) -> Sequence[Scores]:
        assert self._batcher is not None
        self._last_arrival = time.monotonic()
        try:
            if len(messages) == 1:
                return [await self._batcher.submit(messages[0], deadline=deadline)]
            return await self._batcher.submit_many(messages, deadline=deadline)
        except* Shed as shed:
            raise shed.exceptions[0] from None
        except* ArithmeticError as error:
            raise Problem(500, "not_finite", str(error.exceptions[0])) from None

    def _answer(self, scores: Scores, arrived: float) -> dict[str, Any]:
        seconds = time.monotonic() - arrived
        self._inference.observe(seconds)
        return {
            "valence": scores.valence, "intimacy": scores.intimacy, "tension": scores.tension,
            "confidence": scores.confidence, "tags": scores.tags, "reasoning": "",
            "latency_ms": seconds * 1000, "model": self._head.name,
        }  # fmt: skip

    def _want_reason(self, turn_id: str, message: Message) -> None:
        """Queue a reason unless too many wait: scores matter more than why."""
        pending = self._reasons.get(turn_id)
        if self._wanted.full() or (pending is not None and not pending.done()):
            return  # the same turn again is the same message: whoever waits gets its reason
        self._reasons[turn_id] = asyncio.get_running_loop().create_future()
        self._reasons.move_to_end(turn_id)
        while len(self._reasons) > KEPT_REASONS:
            _, oldest = self._reasons.popitem(last=False)
            if not oldest.done():
                oldest.set_result(None)
        self._wanted.put_nowait((turn_id, message))

    async def _reason(self) -> None:
        """Explain messages one at a time, when no message waits for its scores."""
        while True:
            turn_id, message = await self._wanted.get()
            future = self._reasons.get(turn_id)
            if future is None or future.done():
                continue
            try:
                text = await self._explain(message)
            except Exception as error:  # a missing reason must not end the reasons of others
                text = f"no reason: {error}"
            if not future.done():
                future.set_result(text[:MAX_REASONING_CHARS])

    async def _explain(self, message: Message) -> str:
        """Leave-one-out, or more of the answer, one inference at a time, so that a message's scores
        wait for one at most and memory is that of one message."""
        head = self._head
        if not isinstance(head, AffectHead):  # it goes on writing where the scores ended
            telling = head.telling(message)
            while not await self._quietly(telling.step):
                pass
            return telling.text
        words, variants = head.leave_one_out(message)
        if len(words) < 2:
            return ONE_WORD
        rows = [await self._quietly(functools.partial(head.axes, [one])) for one in variants]
        return head.tell(words, np.concatenate(rows))

    async def _quietly(self, work: Callable[[], WorkT]) -> WorkT:
        """Run a short piece of work when no message came for a while and none waits."""
        assert self._batcher is not None
        while (rest := self._last_arrival + QUIET_S - time.monotonic()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(rest)
        return await self._batcher.aside(work)


if __name__ == "__main__":
    bound_free_memory()
    sys.exit(main(CahmService))
