"""Scripted side models as a program: answers after ``--delay-ms``, or with ``--never`` not at all.

Prints ``port N`` once listening; ends when its standard input closes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

from aiohttp import web

from tests.fakes.side_server import Answer, FakeSide

DIMENSION = 384  # of common sentence encoders


class PacedSide(FakeSide):
    """Every answer is played like ``answer``."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(dim=DIMENSION)
        self._always = answer

    async def _play(self, request: web.Request, answer: Answer, body: Any) -> web.StreamResponse:
        return await super()._play(request, self._always, body)


def main() -> None:
    """Serve until the parent leaves."""
    parser = argparse.ArgumentParser(description="Scripted affect and foresight models")
    parser.add_argument("--delay-ms", type=float, default=15.0)
    parser.add_argument("--never", action="store_true", help="hold every request")
    args = parser.parse_args()

    async def serve() -> None:
        async with PacedSide(Answer(delay_s=args.delay_ms / 1000, hold=args.never)) as side:
            print(f"port {side.url.rsplit(':', 1)[1]}", flush=True)
            while await asyncio.to_thread(sys.stdin.readline):
                pass

    asyncio.run(serve())


if __name__ == "__main__":
    main()
