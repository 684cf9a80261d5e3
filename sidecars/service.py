"""What a model server must provide so that ``sidecars.serve`` can run it as a sidecar."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from aiohttp import web

from sidecars.metrics import Metrics

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What a sidecar serves; ``products`` is what it multiplies in, where there is a choice."""

    model: str
    sha256: str
    products: str = ""


class LoadCancelled(Exception):
    """Loading stopped because the process was asked to stop."""


class Service(ABC):
    """One model server. ``load`` and ``close`` frame its life; ``routes`` are its work."""

    name: ClassVar[str]
    default_port: ClassVar[int]
    description: ClassVar[str]

    metrics: Metrics

    @classmethod  # noqa: B027 - optional
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Add the options that only this sidecar has."""

    @classmethod
    @abstractmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        """Build it; raise ``ConfigError`` on bad values. Must be quick."""

    @abstractmethod
    def load(self, progress: Progress, stopping: Callable[[], bool]) -> ModelInfo:
        """Verify and load the model; runs in a thread, may block.

        Raises:
            LimbicError: it cannot be used. LoadCancelled: ``stopping()`` turned true.
        """

    @abstractmethod
    def routes(self) -> Iterable[web.RouteDef]:
        """The routes beside ``/health``, ``/ready`` and ``/metrics``; called before ``load``."""

    def queue_length(self) -> int:
        """Requests that wait for the model."""
        return 0

    def busy(self) -> bool:
        """Whether the model computes now."""
        return False

    async def start(self) -> None:  # noqa: B027 - optional
        """On the event loop, after ``load``."""

    async def close(self) -> None:  # noqa: B027 - optional
        """On the event loop, when nothing is in flight any more."""
