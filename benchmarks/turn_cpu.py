"""CPU time of a whole turn of the brain against a bare aiohttp + orjson loop, same server.

The brain's turn includes everything: durable message, state, prompt, streaming, the commit of reply
and state in one transaction (fsync), telemetry. Blocks of turns alternate in one process; what is
compared is this process's CPU time (user + system, all threads) per turn, as the median over pairs.

Run:  python -m benchmarks.turn_cpu [--json] [--max-ratio 2]
Exit: 0, or 1 when the ratio is above ``--max-ratio``.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import random
import statistics
import sys
import tempfile
from typing import Any

import orjson

from benchmarks.llm_client_cpu import Turn, bare_turn, cpu_ms
from benchmarks.servers import parser_of, scripted_server
from brain.app import Limbic
from brain.remote import open_http
from brain.settings import load_settings

TURNS_A_SESSION = 5


async def measure(url: str, *, pairs: int, turns: int, seed: int) -> dict[str, Any]:
    """Alternate the two and compare."""
    rng = random.Random(seed)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        environ = {"LIMBIC__LLM__BASE_URL": url, "LIMBIC__PATHS__DATA": folder}
        settings = load_settings(None, environ=environ)
        async with Limbic.open(settings) as limbic, open_http() as http:

            async def brain_turn() -> str:
                session = limbic.session(f"s{next(numbers) // TURNS_A_SESSION}")
                return await session.say("I had a rough day and I do not know why, do you?")

            sides: dict[str, Turn] = {
                "brain": brain_turn,
                "bare": lambda: bare_turn(http, url + "/v1/chat/completions"),
            }
            for turn in sides.values():
                await cpu_ms(turn, turns)
            found: dict[str, list[float]] = {"brain": [], "bare": []}
            gc.collect()
            gc.freeze()
            for _ in range(pairs):
                for name in rng.sample(sorted(sides), 2):
                    found[name].append(await cpu_ms(sides[name], turns))
    ratios = sorted(a / b for a, b in zip(found["brain"], found["bare"], strict=True))
    return {
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
    parser.add_argument("--max-ratio", type=float, help="exit 1 above this ratio")
    args = parser.parse_args(argv)
    with scripted_server(tokens=args.tokens, token_ms=args.token_ms, plain=not args.managed) as url:
        result = asyncio.run(measure(url, pairs=args.pairs, turns=args.turns, seed=args.seed))
    if args.json:
        print(orjson.dumps(result).decode())
    else:
        print(
            f"CPU a turn of {args.tokens} chunks: brain {result['brain_ms']:.3f} ms, bare loop"
            f" {result['bare_ms']:.3f} ms, ratio {result['ratio']:.2f}"
            f" (p10 {result['ratio_p10']:.2f}, p90 {result['ratio_p90']:.2f})"
        )
    return int(args.max_ratio is not None and result["ratio"] > args.max_ratio)


if __name__ == "__main__":
    sys.exit(main())
