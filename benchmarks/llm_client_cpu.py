"""CPU time of one turn: the LLM client against a bare aiohttp + orjson loop, same server.

The scripted server runs in its own process and sends ``--tokens`` events a reply, each its own
write, ``--token-ms`` apart. Blocks of turns by the client (A) and by the bare loop (B) alternate in
one process, in random order within each pair; what is compared is this process's CPU time (user +
system) per turn. The figure is the median over pairs of A/B, so a slow phase of the machine hits
both sides of a pair.

The bare loop reads lines, decodes each event and joins the text: no limits, no retries, no errors.

Run:  python -m benchmarks.llm_client_cpu [--json] [--max-ratio 1.25]
Exit: 0, or 1 when the ratio is above ``--max-ratio``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson

from brain.breaker import CircuitBreaker
from brain.clock import SystemClock
from brain.events import Endpoint, discard
from brain.llm import LLMClient
from brain.remote import open_http
from brain.schema import Behaviour, Message
from brain.settings import BreakerSettings, LlmSettings

MESSAGES = [Message(role="system", content="You are kind and brief. " * 20)] + [
    Message(role="user" if n % 2 == 0 else "assistant", content=f"Message {n}: " + "words " * 12)
    for n in range(9)
]
BEHAVIOUR = Behaviour(directive="calm", temperature=0.7, top_p=0.9, max_tokens=200)

Turn = Callable[[], Awaitable[str]]


async def bare_turn(http: aiohttp.ClientSession, url: str) -> str:
    """The least that streams a reply."""
    body = {
        "model": "default",
        "messages": [{"role": m.role, "content": m.content} for m in MESSAGES],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": BEHAVIOUR.temperature,
        "top_p": BEHAVIOUR.top_p,
        "max_tokens": BEHAVIOUR.max_tokens,
    }
    parts = []
    async with http.post(
        url, data=orjson.dumps(body), headers={"Content-Type": "application/json"}
    ) as response:
        async for line in response.content:
            if line.startswith(b"data: "):
                if line[6:].strip() == b"[DONE]":
                    break
                event = orjson.loads(line[6:])
                if event["choices"]:
                    parts.append(event["choices"][0]["delta"].get("content") or "")
        await response.read()  # to the end of the body, so that the connection is reused
    return "".join(parts)


async def client_turn(client: LLMClient) -> str:
    """One turn as the brain makes it."""
    async with client.stream(MESSAGES, behaviour=BEHAVIOUR, turn_id="bench") as reply:
        async for _ in reply:
            pass
    return reply.text


async def cpu_ms(turn: Turn, turns: int) -> float:
    """CPU milliseconds of this process per turn."""
    began = time.process_time()
    for _ in range(turns):
        await turn()
    return (time.process_time() - began) * 1000 / turns


async def measure(url: str, *, pairs: int, turns: int, seed: int) -> dict[str, Any]:
    """Alternate the two and compare."""
    clock = SystemClock(seed)
    rng = random.Random(seed)

    async def endpoint() -> Endpoint:
        return Endpoint(url)

    async with open_http() as http:
        client = LLMClient(
            LlmSettings(base_url=url),
            endpoint=endpoint,
            http=http,
            breaker=CircuitBreaker(BreakerSettings(), remote="llm", clock=clock, emit=discard),
            clock=clock,
            emit=discard,
        )
        completions = url + "/v1/chat/completions"
        sides: dict[str, Turn] = {
            "client": lambda: client_turn(client),
            "bare": lambda: bare_turn(http, completions),
        }
        texts = {name: await turn() for name, turn in sides.items()}
        if texts["client"] != texts["bare"] or not texts["bare"]:
            raise SystemExit("the two loops read different replies; nothing was measured")
        for turn in sides.values():
            await cpu_ms(turn, turns)  # warm up
        found: dict[str, list[float]] = {"client": [], "bare": []}
        gc.collect()
        gc.freeze()
        for pair in range(pairs):
            for name in rng.sample(sorted(sides), 2):
                found[name].append(await cpu_ms(sides[name], turns))
            if sys.stderr.isatty():
                print(f"\r{pair + 1}/{pairs} pairs", end="", file=sys.stderr)
        if sys.stderr.isatty():
            print(file=sys.stderr)
    ratios = sorted(a / b for a, b in zip(found["client"], found["bare"], strict=True))
    return {
        "client_ms": round(statistics.median(found["client"]), 4),
        "bare_ms": round(statistics.median(found["bare"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(ratios[len(ratios) // 10], 3),
        "ratio_p90": round(ratios[len(ratios) * 9 // 10], 3),
    }


def main(argv: list[str] | None = None) -> int:
    """Start the server, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=40, help="A/B pairs of blocks")
    parser.add_argument("--turns", type=int, default=25, help="turns in one block")
    parser.add_argument("--tokens", type=int, default=32, help="events a reply")
    parser.add_argument("--token-ms", type=float, default=0.0, help="pause between events")
    parser.add_argument("--max-ratio", type=float, help="exit 1 above this ratio")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    args = parser.parse_args(argv)
    server = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.fakes.llm_server",
            "--tokens",
            str(args.tokens),
            "--token-ms",
            str(args.token_ms),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline().split()[1])
        result = asyncio.run(
            measure(f"http://127.0.0.1:{port}", pairs=args.pairs, turns=args.turns, seed=args.seed)
        )
    finally:
        server.terminate()
        server.wait()
    result |= {
        "tokens": args.tokens,
        "token_ms": args.token_ms,
        "pairs": args.pairs,
        "turns": args.turns,
        "python": platform.python_version(),
        "aiohttp": aiohttp.__version__,
        "cpus": os.cpu_count(),
    }
    if args.json:
        print(orjson.dumps(result).decode())
    else:
        print(
            f"CPU a turn of {args.tokens} events: client {result['client_ms']:.3f} ms, "
            f"bare loop {result['bare_ms']:.3f} ms, ratio {result['ratio']:.2f} "
            f"(p10 {result['ratio_p10']:.2f}, p90 {result['ratio_p90']:.2f})"
        )
    return int(args.max_ratio is not None and result["ratio"] > args.max_ratio)


if __name__ == "__main__":
    sys.exit(main())
