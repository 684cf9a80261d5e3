"""Many sessions at once: first token against a bare loop, memory of a session, 500 open sessions.

The scripted server sends its first token after ``--ttft-ms`` and one each ``--token-ms``. Rounds of
``--sessions`` turns at the same moment, by the brain and by a bare loop, alternate in random
order; the figure is the median over rounds of (median first token of the brain ÷ of the bare loop).
Memory is the growth of the resident size while ``--open`` sessions are opened, one turn each.

Run:  python -m benchmarks.sessions [--json] [--max-ratio 1.15] [--max-mb 0.5]
Exit: 0, or 1 when a limit is passed or a session did not answer.
"""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

import orjson

from benchmarks.bare import bare_stream
from benchmarks.llm_client_cpu import BEHAVIOUR, MESSAGES
from benchmarks.servers import SIDES_OFF, parser_of, scripted_server, show_progress
from brain.app import Limbic
from brain.remote import open_http
from brain.settings import load_settings

WORDS = "I had a rough day and I do not know why, do you?"
TURNS_A_SESSION = 5  # then new ones, so that the brain's prompts are as long as the bare loop's
FirstToken = Callable[[str], Awaitable[float]]


def resident_mb() -> float:
    """Resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not report resident memory under /proc")


async def say(limbic: Limbic, session_id: str) -> float:
    """A whole turn; seconds to its first token."""
    began = time.perf_counter()
    first_s = 0.0
    turn = limbic.session(session_id).say(WORDS)
    async with aclosing(cast(Any, aiter(turn))) as tokens:
        async for _ in tokens:
            first_s = first_s or time.perf_counter() - began
    if turn.status != "done":
        raise SystemExit(f"session {session_id}: the turn ended {turn.status}")
    return first_s


async def idle(limbic: Limbic) -> None:
    """Wait until no session has work of its own."""
    for session in limbic.parts.sessions.open_sessions():
        while session.background:
            await asyncio.wait(list(session.background))


async def compare(url: str, *, sessions: int, rounds: int, seed: int) -> dict[str, Any]:
    """Rounds of simultaneous turns, brain and bare loop in turn."""
    rng = random.Random(seed)
    completions = url + "/v1/chat/completions"
    with tempfile.TemporaryDirectory() as folder:
        environ = {"LIMBIC__LLM__BASE_URL": url, "LIMBIC__PATHS__DATA": folder, **SIDES_OFF}
        settings = load_settings(None, environ=environ)
        async with Limbic.open(settings) as limbic, open_http() as http:

            async def bare(_: str) -> float:
                return (await bare_stream(http, completions, MESSAGES, BEHAVIOUR))[0]

            sides: dict[str, FirstToken] = {
                "brain": lambda name: say(limbic, name),
                "bare": bare,
            }

            async def one_round(side: FirstToken, number: int) -> float:
                names = [f"s{number // TURNS_A_SESSION}-{n}" for n in range(sessions)]
                for name in names:
                    await limbic.session(name).open()  # as whoever writes in it has done
                await idle(limbic)
                firsts = await asyncio.gather(*map(side, names))
                # What the brain does after a turn must burden neither side's next round.
                await idle(limbic)
                await limbic.telemetry.flush()
                return statistics.median(firsts) * 1000

            for side in sides.values():
                await one_round(side, 0)
            gc.collect()
            gc.freeze()
            found: dict[str, list[float]] = {"brain": [], "bare": []}
            for number in range(rounds):
                for name in rng.sample(sorted(sides), 2):
                    found[name].append(await one_round(sides[name], number + 1))
                show_progress(f"{number + 1}/{rounds} rounds of {sessions} sessions")
            show_progress("")
    ratios = sorted(a / b for a, b in zip(found["brain"], found["bare"], strict=True))
    return {
        "brain_first_ms": round(statistics.median(found["brain"]), 2),
        "bare_first_ms": round(statistics.median(found["bare"]), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_p10": round(ratios[len(ratios) // 10], 3),
        "ratio_p90": round(ratios[len(ratios) * 9 // 10], 3),
        "sessions": sessions,
        "rounds": rounds,
    }


async def fill(url: str, *, total: int, at_once: int) -> dict[str, Any]:
    """Open ``total`` sessions with a turn each, then speak in all of them again."""
    with tempfile.TemporaryDirectory() as folder:
        environ = {"LIMBIC__LLM__BASE_URL": url, "LIMBIC__PATHS__DATA": folder, **SIDES_OFF}
        async with Limbic.open(load_settings(None, environ=environ)) as limbic:

            async def speak(first: int, last: int) -> None:
                for start in range(first, last, at_once):
                    block = range(start, min(start + at_once, last))
                    await asyncio.gather(*(say(limbic, f"s{n}") for n in block))
                    show_progress(f"{block[-1] + 1}/{total} sessions")

            await speak(0, at_once)  # pools, caches and threads reach their size
            await speak(0, at_once)
            gc.collect()
            before = resident_mb()
            await speak(at_once, total)
            gc.collect()
            after = resident_mb()
            opened = len(limbic.parts.sessions)
            await speak(0, total)
            still = len(limbic.parts.sessions)
            show_progress("")
    return {
        "open_sessions": opened,
        "open_after_second_turn": still,
        "mb_per_session": round((after - before) / max(1, total - at_once), 4),
        "resident_mb": round(after, 1),
    }


def main(argv: list[str] | None = None) -> int:
    """Start the server, measure, print."""
    parser = parser_of(__doc__)
    parser.add_argument("--sessions", type=int, default=32, help="turns at the same moment")
    parser.add_argument("--rounds", type=int, default=20, help="A/B pairs of rounds")
    parser.add_argument("--open", type=int, default=500, help="sessions to hold open")
    parser.add_argument("--tokens", type=int, default=32, help="events a reply")
    parser.add_argument("--ttft-ms", type=float, default=50.0)
    parser.add_argument("--token-ms", type=float, default=5.0)
    parser.add_argument("--max-ratio", type=float, help="exit 1 above this ratio")
    parser.add_argument("--max-mb", type=float, help="exit 1 above this growth a session")
    args = parser.parse_args(argv)
    with scripted_server(tokens=args.tokens, token_ms=args.token_ms, ttft_ms=args.ttft_ms) as url:
        result = asyncio.run(
            compare(url, sessions=args.sessions, rounds=args.rounds, seed=args.seed)
        )
    with scripted_server(tokens=args.tokens, token_ms=0.0) as url:
        result |= asyncio.run(fill(url, total=args.open, at_once=args.sessions))
    if args.json:
        print(orjson.dumps(result).decode())
    else:
        print(
            f"First token, {args.sessions} sessions at once: brain {result['brain_first_ms']:.1f}"
            f" ms, bare loop {result['bare_first_ms']:.1f} ms, ratio {result['ratio']:.3f}"
            f" (p10 {result['ratio_p10']:.3f}, p90 {result['ratio_p90']:.3f})\n"
            f"Memory: {result['mb_per_session']:.3f} MB a session; {result['open_sessions']}"
            f" sessions open in {result['resident_mb']:.0f} MB, all answered a second turn"
        )
    slow = args.max_ratio is not None and result["ratio"] > args.max_ratio
    big = args.max_mb is not None and result["mb_per_session"] > args.max_mb
    few = result["open_after_second_turn"] != args.open
    return int(slow or big or few)


if __name__ == "__main__":
    sys.exit(main())
