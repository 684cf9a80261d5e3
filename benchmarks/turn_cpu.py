"""CPU time of a whole turn of the brain against a bare aiohttp + orjson loop, same server.

The brain's turn includes everything: durable message, state, prompt, streaming, the commit of reply
and state in one transaction (fsync), telemetry. Blocks of turns alternate in one process; what is
compared is this process's CPU time (user + system, all threads) per turn, as the median over pairs.

``--floor`` measures a third side: the bare loop and nothing but what the store promises,
two durable commits (SQLite, WAL, ``synchronous=FULL``) handed to a thread and awaited. No turn that
keeps the promise without blocking the loop can cost less; see docs/decisions/0005.

Run:  python -m benchmarks.turn_cpu [--json] [--floor] [--max-ratio 2]
Exit: 0, or 1 when the ratio is above ``--max-ratio``.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import sqlite3
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from benchmarks.llm_client_cpu import Turn, bare_turn, cpu_ms
from benchmarks.servers import SIDES_OFF, parser_of, scripted_server
from brain.app import Limbic
from brain.remote import open_http
from brain.settings import load_settings

TURNS_A_SESSION = 5


class Floor:
    """The bare loop with the store's promise added and nothing else."""

    def __init__(self, http: aiohttp.ClientSession, url: str, folder: Path) -> None:
        self._http, self._url = http, url
        self._thread = ThreadPoolExecutor(1)
        self._connection = sqlite3.connect(
            folder / "floor.db", check_same_thread=False, isolation_level=None
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("CREATE TABLE turns (id INTEGER PRIMARY KEY, text TEXT) STRICT")

    async def turn(self) -> str:
        """Words durable, reply streamed, reply durable."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._commit, "what was said")
        reply = await bare_turn(self._http, self._url)
        await loop.run_in_executor(self._thread, self._commit, reply)
        return reply

    def close(self) -> None:
        """Stop the thread, close the file."""
        self._thread.shutdown()
        self._connection.close()

    def _commit(self, text: str) -> None:
        self._connection.execute("INSERT INTO turns (text) VALUES (?)", (text,))


async def measure(
    url: str, *, pairs: int, turns: int, seed: int, floor: bool = False
) -> dict[str, Any]:
    """Alternate the sides and compare each with the bare loop."""
    rng = random.Random(seed)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        environ = {"LIMBIC__LLM__BASE_URL": url, "LIMBIC__PATHS__DATA": folder, **SIDES_OFF}
        settings = load_settings(None, environ=environ)
        async with Limbic.open(settings) as limbic, open_http() as http:

            async def brain_turn() -> str:
                session = limbic.session(f"s{next(numbers) // TURNS_A_SESSION}")
                return await session.say("I had a rough day and I do not know why, do you?")

            sides: dict[str, Turn] = {
                "brain": brain_turn,
                "bare": lambda: bare_turn(http, url + "/v1/chat/completions"),
            }
            least = Floor(http, url + "/v1/chat/completions", Path(folder)) if floor else None
            if least is not None:
                sides["floor"] = least.turn
            for turn in sides.values():
                await cpu_ms(turn, turns)
            found: dict[str, list[float]] = {name: [] for name in sides}
            gc.collect()
            gc.freeze()
            for _ in range(pairs):
                for name in rng.sample(sorted(sides), len(sides)):
                    found[name].append(await cpu_ms(sides[name], turns))
            if least is not None:
                least.close()
    ratios = sorted(a / b for a, b in zip(found["brain"], found["bare"], strict=True))
    extra = {}
    if floor:
        least_ratios = [a / b for a, b in zip(found["floor"], found["bare"], strict=True)]
        over = [a / b for a, b in zip(found["brain"], found["floor"], strict=True)]
        extra = {
            "floor_ms": round(statistics.median(found["floor"]), 4),
            "floor_ratio": round(statistics.median(least_ratios), 3),
            "brain_to_floor": round(statistics.median(over), 3),
        }
    return {
        **extra,
        "brain_ms": round(statistics.median(found["brain"]), 4),
        "bare_ms": round(statistics.median(found["bare"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(ratios[len(ratios) // 10], 3),
        "ratio_p90": round(ratios[len(ratios) * 9 // 10], 3),
        "pairs": pairs,
        "turns": turns,
    }


def main(argv: list[str] | None = None) -> int:
    """Start the server, measure, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--pairs", type=int, default=40, help="A/B pairs of blocks")
    parser.add_argument("--turns", type=int, default=25, help="turns in one block")
    parser.add_argument("--tokens", type=int, default=32, help="events a reply")
    parser.add_argument("--token-ms", type=float, default=0.5, help="pause between events")
    parser.add_argument(
        "--managed", action="store_true", help="the server has this project's own routes"
    )
    parser.add_argument("--floor", action="store_true", help="measure the least a turn can cost")
    parser.add_argument("--max-ratio", type=float, help="exit 1 above this ratio")
    args = parser.parse_args(argv)
    with scripted_server(tokens=args.tokens, token_ms=args.token_ms, plain=not args.managed) as url:
        result = asyncio.run(
            measure(url, pairs=args.pairs, turns=args.turns, seed=args.seed, floor=args.floor)
        )
    if args.json:
        print(orjson.dumps(result).decode())
    else:
        print(
            f"CPU a turn of {args.tokens} chunks: brain {result['brain_ms']:.3f} ms, bare loop"
            f" {result['bare_ms']:.3f} ms, ratio {result['ratio']:.2f}"
            f" (p10 {result['ratio_p10']:.2f}, p90 {result['ratio_p90']:.2f})"
        )
        if args.floor:
            print(
                f"floor (bare loop and two durable commits): {result['floor_ms']:.3f} ms,"
                f" {result['floor_ratio']:.2f} x the bare loop; brain"
                f" {result['brain_to_floor']:.2f} x the floor"
            )
    return int(args.max_ratio is not None and result["ratio"] > args.max_ratio)


if __name__ == "__main__":
    sys.exit(main())
