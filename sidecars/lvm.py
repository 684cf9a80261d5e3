"""The ``lvm`` sidecar: sentence vectors, the next one expected, candidates ranked; no torch."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from aiohttp import web
from pydantic import Field, StringConstraints

from brain.errors import ConfigError
from brain.schema import CONTEXT_VECTORS, MAX_TEXT_CHARS, WireFrame
from sidecars.batching import MicroBatcher
from sidecars.guard import Problem, Timed, context_of, json_response, read_body
from sidecars.launch import main
from sidecars.lvm_linear import LinearNetwork
from sidecars.lvm_network import LvmNetwork, load_network
from sidecars.onnx_text import TextModel, first_line
from sidecars.service import ModelInfo, Progress, Service
from sidecars.weights import WEIGHTS, shipped

MAX_TEXTS = 1024
MAX_WINDOWS = 1024
MAX_CANDIDATES = 10_000
Array = npt.NDArray[np.float32]
Text = Annotated[str, StringConstraints(max_length=MAX_TEXT_CHARS)]
NO_MODEL = "no next-message model is loaded; give one with --model"


class EncodeRequest(Timed):
    """``POST /encode``."""

    texts: Annotated[tuple[Text, ...], Field(min_length=1, max_length=MAX_TEXTS)]


class InferRequest(Timed):
    """``POST /infer``: [n ≤ 5][D], or [B][n ≤ 5][D] with one n."""

    context_vectors: Annotated[list[Any], Field(min_length=1, max_length=MAX_WINDOWS)]


class RankRequest(Timed):
    """``POST /rank``."""

    context_vectors: Annotated[list[Any], Field(min_length=1, max_length=CONTEXT_VECTORS)]
    candidates: Annotated[list[Any], Field(min_length=1, max_length=MAX_CANDIDATES)]


class ChatTurn(WireFrame):
    """A message as chat clients send it."""

    content: Text


class ChatRequest(Timed):
    """``POST /chat``."""

    messages: Annotated[tuple[Text | ChatTurn, ...], Field(min_length=1, max_length=5)]


@dataclass(frozen=True, slots=True)
class Job:
    """``texts`` to encode, or ``context`` [B, 5, D] to continue."""

    texts: tuple[str, ...] = ()
    context: Array | None = None


class LvmService(Service):
    """Encoder and predictor behind one worker thread."""

    name: ClassVar[str] = "lvm"
    default_port: ClassVar[int] = 9008
    description: ClassVar[str] = "Encode messages and predict the vector of the next one."

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._encoder: TextModel
        self._network: LvmNetwork | LinearNetwork | None = None
        self._dim = 0
        self._model = ""
        self._encoder_name = ""
        self._batcher: MicroBatcher[Job, Array] | None = None

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--encoder", type=Path, default=WEIGHTS / "minilm", help="its folder")
        parser.add_argument(
            "--model",
            type=Path,
            help="the predictor's folder, or lvm_dialogue (the default) or lvm_articles, which are "
            "shipped",
        )
        parser.add_argument("--threads", type=int, default=1, help="of one inference (default: 1)")
        parser.add_argument("--max-queue", type=int, default=256, help="requests that may wait")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        limits = {"threads": (1, 64), "max_queue": (1, 100_000)}
        wrong = [
            f"--{key.replace('_', '-')} must be {low} to {high} (got {value})"
            for key, (low, high) in limits.items()
            if not low <= (value := getattr(args, key)) <= high
        ]
        if wrong:
            raise ConfigError(*wrong)
        if args.model is None:
            args.model = WEIGHTS / "lvm_dialogue"
        else:
            args.model = shipped(args.model)
            if not args.model.exists():
                # Going on with the encoder alone would take surprise and anticipation in silence.
                raise ConfigError(
                    f"--model {args.model}: no such folder; give the one of a predictor, or "
                    "lvm_dialogue or lvm_articles, which are shipped"
                )
        return cls(args)

    def load(self, progress: Progress, stopping: Callable[[], bool]) -> ModelInfo:
        progress("loading the encoder")
        self._encoder = TextModel.load(self._args.encoder, threads=self._args.threads)
        if "embedding" not in self._encoder.outputs:
            raise ConfigError(f"{self._args.encoder}: not a sentence encoder")
        manifest = self._encoder.manifest
        self._model = _said(manifest, "name", self._args.encoder)
        self._encoder_name = f"{self._model}-{manifest.get('version', '?')}"
        self._dim = self._measured(manifest.get("dim"))
        if not self._args.model.exists():
            progress(f"no predictor at {self._args.model}: the encoder is served alone")
            return ModelInfo(self._model, self._encoder.sha256)
        progress("loading the predictor")
        network = load_network(self._args.model)
        made_for = network.manifest.get("encoder_sha256")
        if made_for != self._encoder.sha256:
            raise ConfigError(
                f"{self._args.model} was made for another encoder ({str(made_for)[:12]}); "
                f"this one is {self._encoder.sha256[:12]}"
            )
        if network.dim != self._dim:
            raise ConfigError(
                f"{self._args.model}: predicts {network.dim} dimensions; the encoder's have "
                f"{self._dim}"
            )
        name, version = (_said(network.manifest, k, self._args.model) for k in ("name", "version"))
        network.predict(np.zeros((1, CONTEXT_VECTORS, self._dim), np.float32))
        self._network, self._model = network, f"{name}-{version}"
        return ModelInfo(self._model, network.manifest["files"]["model.safetensors"]["sha256"])

    def _measured(self, said: object) -> int:
        """Dimensions of the encoder's vectors, from a first run; they are what its manifest says.

        Raises:
            ConfigError: it does not run, or its manifest says otherwise (exit code 78).
        """
        where = self._args.encoder
        try:
            found = self._encode(["warm start"]).shape
        except Exception as error:  # the runtime raises types of its own
            raise ConfigError(f"{where}: cannot be run ({first_line(error)})") from error
        if not isinstance(said, int) or found != (1, said):
            raise ConfigError(
                f"{where}: gives vectors of shape {found[1:]}, its manifest says dim "
                f"{str(said)[:40]}; export it again"
            )
        return said

    async def start(self) -> None:
        self._batcher = MicroBatcher(
            self._compute, name="lvm", max_batch=32, max_queue=self._args.max_queue
        )

    async def close(self) -> None:
        if self._batcher is not None:
            await self._batcher.close()

    def routes(self) -> Iterable[web.RouteDef]:
        return [
            web.post("/encode", self._encode_route),
            web.post("/infer", self._infer),
            web.post("/rank", self._rank),
            web.post("/chat", self._chat),
        ]

    def queue_length(self) -> int:
        return self._batcher.queue_length if self._batcher else 0

    # -- routes ----------------------------------------------------------------------------------

    async def _encode_route(self, request: web.Request) -> web.Response:
        body = await read_body(request, EncodeRequest)
        vectors = await self._submit(Job(texts=body.texts), context_of(request, body).deadline)
        return json_response(
            {
                "embeddings": vectors.tolist(),
                "shape": list(vectors.shape),
                "encoder": self._encoder.sha256,
                "encoder_name": self._encoder_name,
            }
        )

    async def _infer(self, request: web.Request) -> web.Response:
        arrived = time.monotonic()
        body = await read_body(request, InferRequest)
        context, single = self._windows(body.context_vectors)
        self._need_network()
        found = await self._submit(Job(context=context), context_of(request, body).deadline)
        answer = found[0] if single else found
        return json_response(
            {
                "predicted_vector": answer.tolist(),
                "latency_ms": (time.monotonic() - arrived) * 1000,
                "model": self._model,
            }
        )

    async def _rank(self, request: web.Request) -> web.Response:
        body = await read_body(request, RankRequest)
        context, _ = self._windows(body.context_vectors)
        candidates = self._matrix(body.candidates, "candidates")
        network = self._need_network()
        # Ten thousand candidates take a while: not on the loop that answers /health.
        scores = await asyncio.to_thread(network.rank, context, candidates)
        return json_response({"scores": _finite(scores[0]).tolist()})

    async def _chat(self, request: web.Request) -> web.Response:
        arrived = time.monotonic()
        body = await read_body(request, ChatRequest)
        self._need_network()
        deadline = context_of(request, body).deadline
        texts = tuple(m if isinstance(m, str) else m.content for m in body.messages)
        vectors = await self._submit(Job(texts=texts), deadline)
        encoded = time.monotonic()
        context, _ = self._windows(vectors.tolist())
        found = await self._submit(Job(context=context), deadline)
        done = time.monotonic()
        return json_response(
            {
                "predicted_vector": found[0].tolist(),
                "text": None,
                "text_missing": "there is no decoder yet",
                "model": self._model,
                "latency_ms": {
                    "encode": (encoded - arrived) * 1000,
                    "infer": (done - encoded) * 1000,
                    "total": (done - arrived) * 1000,
                },
            }
        )

    # -- work ------------------------------------------------------------------------------------

    async def _submit(self, job: Job, deadline: float | None) -> Array:
        assert self._batcher is not None
        return await self._batcher.submit(job, deadline=deadline)

    def _compute(self, jobs: Sequence[Job]) -> list[Array]:
        """All texts of a batch in one go, all windows in another; in the worker thread."""
        texts = [text for job in jobs for text in job.texts]
        vectors = self._encode(texts) if texts else np.zeros((0, self._dim), np.float32)
        windows = [job.context for job in jobs if job.context is not None]
        predicted = np.zeros((0, self._dim), np.float32)
        if windows:
            predicted = _finite(self._need_network().predict(np.concatenate(windows)))
        results, text, window = [], 0, 0
        for job in jobs:
            if job.context is None:
                results.append(vectors[text : text + len(job.texts)])
                text += len(job.texts)
            else:
                results.append(predicted[window : window + len(job.context)])
                window += len(job.context)
        return results

    def _encode(self, texts: Sequence[str]) -> Array:
        return _finite(np.asarray(self._encoder.run(texts)["embedding"], np.float32))

    def _need_network(self) -> LvmNetwork | LinearNetwork:
        if self._network is None:
            raise Problem(503, "no_model", NO_MODEL)
        return self._network

    def _windows(self, value: list[Any]) -> tuple[Array, bool]:
        """Unit float32 [B, 5, D], and whether one window was sent. Fewer than five vectors are
        padded by repeating the oldest in front."""
        array = _numbers(value, "context_vectors")
        single = array.ndim == 2
        array = array[None] if single else array
        if array.ndim != 3 or not 1 <= array.shape[1] <= CONTEXT_VECTORS:
            raise Problem(
                400, "invalid_request",
                f"context_vectors must be [n][{self._dim}] or [B][n][{self._dim}], n 1 to 5",
            )  # fmt: skip
        self._check_dim(array, "context_vectors")
        missing = CONTEXT_VECTORS - array.shape[1]
        padded = np.concatenate([np.repeat(array[:, :1], missing, axis=1), array], axis=1)
        return padded, single

    def _matrix(self, value: list[Any], name: str) -> Array:
        array = _numbers(value, name)
        if array.ndim != 2:
            raise Problem(400, "invalid_request", f"{name} must be [N][{self._dim}]")
        self._check_dim(array, name)
        return array

    def _check_dim(self, array: Array, name: str) -> None:
        if array.shape[-1] != self._dim:
            raise Problem(
                400,
                "wrong_dimension",
                f"{name} have {array.shape[-1]} dimensions; the encoder's have {self._dim}",
            )


def _said(manifest: dict[str, Any], key: str, folder: Path) -> str:
    """What a model's manifest must say of it; raises ConfigError where it does not."""
    value = manifest.get(key)
    if not isinstance(value, str | int) or not str(value):
        raise ConfigError(f"{folder}: its manifest lacks {key}; export the model again")
    return str(value)


def _numbers(value: list[Any], name: str) -> Array:
    """A rectangular float32 array of unit vectors; anything else is a 400."""
    try:
        array = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise Problem(
            400, "invalid_request", f"{name} must be numbers, every vector of one length"
        ) from None
    if not np.isfinite(array).all():
        raise Problem(400, "invalid_request", f"{name} hold a value that is not finite")
    norms = np.linalg.norm(array, axis=-1, keepdims=True) if array.ndim else np.ones(1)
    if array.ndim < 2 or (norms < 1e-6).any():
        raise Problem(400, "invalid_request", f"{name} must be vectors, none of length zero")
    unit: Array = array / norms
    return unit


def _finite(array: Array) -> Array:
    if not np.isfinite(array).all():
        raise Problem(500, "not_finite", "the model gave a value that is not finite")
    return array


if __name__ == "__main__":
    sys.exit(main(LvmService))
