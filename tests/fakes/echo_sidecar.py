"""A sidecar process without a model, for tests: ``python -m tests.fakes.echo_sidecar``."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Self

from aiohttp import web

from brain.errors import ArtifactMissing
from sidecars.launch import main
from sidecars.service import ModelInfo, Progress, Service


class EchoSidecar(Service):
    """``--load missing`` fails, ``--load forever`` never ends, ``--load noisy`` prints."""

    name = "echo"
    default_port = 0
    description = "Echo."

    def __init__(self, how: str) -> None:
        self._how = how

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--load", default="quick")

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        return cls(args.load)

    def load(self, progress: Progress, stopping: Callable[[], bool]) -> ModelInfo:
        progress("half of it")
        if self._how == "missing":
            raise ArtifactMissing("model x: does not exist; give another")
        if self._how == "forever":
            threading.Event().wait()
        if self._how == "noisy":
            print("a library that prints")
        return ModelInfo("echo-1", "ab" * 32)

    def routes(self) -> Iterable[web.RouteDef]:
        return []


if __name__ == "__main__":
    sys.exit(main(EchoSidecar))
