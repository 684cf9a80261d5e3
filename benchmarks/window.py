"""The window hides the prefill: time to first token on the real default model.

Against a bare loop on the same managed sidecar, its history already cached, that sends an equally
long prompt (head, a user's words, tail); A/B in random order, medians:

* ``answering``: side models answer in 15 ms. Limit: 1.15 × bare.
* ``silent``: side models never answer. Limit: soft deadline + 1.10 × bare.

And where the history is not cached, the time from the window's close to the first token, against
the same turn with ``llm.prefill = "off"``; each repetition has a history the server has never seen,
and a brain that was just started. Limit: 5 times faster.

* ``restart``, ``edit`` (the last turn taken back), ``trim`` (the oldest half dropped after a turn):
  the message comes once the idle prefill is done; how long that takes is shown.
* ``relaunch``: brain and model server both end and start again, as when a person leaves and comes
  back, and the message comes without any pause; what was evaluated before is on disk.
* ``at_once``: a message without any pause whose history this model server has never seen, with
  nothing on disk, so that only the window itself (soft deadline, silent side models) hides the
  prefill. No limit: it depends on the machine.

Run:  python -m benchmarks.window [--json] [--check] [--cases answering,silent,...]
Exit: 0, or with ``--check`` 1 when a limit is missed.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from benchmarks.bare import bare_stream
from benchmarks.conversation import message, seed_history
from benchmarks.servers import parser_of, show_progress, side_models
from brain import prompt
from brain.app import Limbic, SessionHandle
from brain.remote import open_http
from brain.settings import load_settings
from brain.turn import Turn

SIDE_MS = 15.0
KEY_ENV = "LIMBIC_BENCHMARK_KEY"
AGAINST_BARE = ("answering", "silent")
UNCACHED = ("restart", "edit", "trim", "relaunch", "at_once")
MAX_ANSWERING, MAX_SILENT, MIN_UNCACHED = 1.15, 1.10, 5.0


def environ_of(folder: Path, sides: str, **more: str) -> dict[str, str]:
    """Settings of a brain with both side models at ``sides``."""
    found = {
        "LIMBIC__PATHS__DATA": str(folder),
        # A side model that never answers is the subject here, not the breaker that gives it up.
        "LIMBIC__BREAKER__FAILURES": "100",
    }
    for name in ("CAHM", "LVM"):
        found[f"LIMBIC__SIDECARS__{name}__MODE"] = "remote"
        found[f"LIMBIC__SIDECARS__{name}__URL"] = sides
    return found | more


async def idle(limbic: Limbic, session_id: str) -> None:
    """Wait until the session has no work of its own."""
    session = await limbic.parts.sessions.get(session_id)
    while session.background:
        await asyncio.wait(list(session.background))


async def first_token(handle: SessionHandle, text: str) -> tuple[float, Turn]:
    """Seconds to the first token; the turn is cancelled there and leaves no trace."""
    began = time.perf_counter()
    turn = handle.say(text)
    async with aclosing(cast(Any, aiter(turn))) as tokens:
        await anext(tokens)
        spent = time.perf_counter() - began
    return spent, turn


async def against_bare(sides: str, *, tokens: int, repeats: int, seed: int) -> dict[str, Any]:
    """One brain with its managed sidecar; turns of the brain and of the bare loop alternate."""
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = load_settings(None, environ=environ_of(folder, sides))
        limbic = await stack.enter_async_context(Limbic.open(settings))
        http = await stack.enter_async_context(open_http())
        await limbic.wait_ready()
        endpoint = limbic.supervisor.endpoint("llm")
        url = endpoint.url + "/v1/chat/completions"
        history = await seed_history(limbic, "a", tokens=tokens, rng=rng)
        handle = limbic.session("a")
        session = await handle.open()
        head = prompt.head(session.persona, session.history)

        async def cache_head() -> None:
            done = await limbic.parts.llm.prefill(head, turn_id="", deadline_ms=60_000)
            if done is None:
                raise SystemExit("the sidecar did not prefill; nothing was measured")

        await cache_head()
        _, turn = await first_token(handle, message(rng))  # opens connections; gives the tail
        behaviour = turn.behaviour
        assert behaviour is not None
        found: dict[str, list[float]] = {"brain": [], "bare": []}
        phases: dict[str, list[float]] = {}
        for number in range(repeats):
            for side in rng.sample(sorted(found), 2):
                await cache_head()
                text = message(rng)
                if side == "brain":
                    spent, turn = await first_token(handle, text)
                    for name, value in turn.timings.items():
                        phases.setdefault(name, []).append(value)
                else:
                    messages = prompt.build(head, text, behaviour, tail_role=settings.llm.tail_role)
                    spent, _ = await bare_stream(
                        http, url, messages, behaviour, headers=endpoint.headers, first_only=True
                    )
                found[side].append(spent * 1000)
            show_progress(f"{number + 1}/{repeats} pairs")
        show_progress("")
        soft_ms = settings.blend.soft_deadline_ms
    brain_ms, bare_ms = (statistics.median(found[side]) for side in ("brain", "bare"))
    pairs = list(zip(found["brain"], found["bare"], strict=True))
    return {
        "brain_ms": round(brain_ms, 1),
        "bare_ms": round(bare_ms, 1),
        "ratio": round(statistics.median(a / b for a, b in pairs), 3),
        "ratio_beyond_window": round(statistics.median((a - soft_ms) / b for a, b in pairs), 3),
        "history_tokens": history,
        "phases_ms": {name: round(statistics.median(v), 1) for name, v in phases.items()},
        "pairs": repeats,
    }


@asynccontextmanager
async def restarted(
    folder: Path, sides: str, llm: str, *, prefill: bool, trim: bool
) -> AsyncIterator[Limbic]:
    """A brain that begins anew on ``folder``, while the model server goes on."""
    environ = environ_of(
        folder, sides, LIMBIC__LLM__BASE_URL=llm, LIMBIC__LLM__API_KEY_ENV=KEY_ENV,
        LIMBIC__LLM__PREFILL="auto" if prefill else "off",
    )  # fmt: skip
    if trim:
        environ["LIMBIC__CHAT__HISTORY_TOKENS"] = "1000"
    async with Limbic.open(load_settings(None, environ=environ)) as limbic:
        yield limbic


async def after_window(
    case: str, folder: Path, sides: str, llm: str, *, prefill: bool, name: str, rng: random.Random
) -> tuple[float, float]:
    """(ms from the window's close to the first token, ms of idle work before the message)."""
    async with restarted(folder, sides, llm, prefill=prefill, trim=case == "trim") as limbic:
        handle = limbic.session(name)
        began = time.perf_counter()
        await handle.open()
        if case == "edit":
            await handle.undo()
        elif case == "trim":
            start = (await handle.open()).history_start
            await handle.say(message(rng))
            began = time.perf_counter()
        if case != "at_once":
            await idle(limbic, name)
        idle_ms = (time.perf_counter() - began) * 1000
        if case == "trim" and (await handle.open()).history_start == start:
            raise SystemExit("the history was not trimmed; nothing was measured")
        _, turn = await first_token(handle, message(rng))
        return turn.timings["first_token_ms"] - turn.timings["window_ms"], idle_ms


async def relaunched(
    folder: Path, sides: str, *, prefill: bool, tokens: int, rng: random.Random
) -> tuple[float, float]:
    """(ms from the window's close to the first token, 0) after both processes started anew.

    Without prefill there are no saved states either: nothing of the history is evaluated early.
    """
    more = {} if prefill else {"LIMBIC__LLM__PREFILL": "off", "LIMBIC__LLM__STATES_MB": "0"}
    settings = load_settings(None, environ=environ_of(folder, sides, **more))
    async with Limbic.open(settings) as limbic:
        await limbic.wait_ready()
        await seed_history(limbic, "a", tokens=tokens, rng=rng)
        await limbic.session("a").open()
        await idle(limbic, "a")
    async with Limbic.open(settings) as limbic:
        await limbic.wait_ready()
        _, turn = await first_token(limbic.session("a"), message(rng))
        return turn.timings["first_token_ms"] - turn.timings["window_ms"], 0.0


async def uncached(
    cases: Sequence[str], sides: str, *, tokens: int, repeats: int, seed: int
) -> dict[str, Any]:
    """Turns with and without prefill alternate, each on a history the server has not seen."""
    rng = random.Random(seed)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        host = await stack.enter_async_context(
            Limbic.open(load_settings(None, environ=environ_of(folder / "host", sides)))
        )
        await host.wait_ready()
        endpoint = host.supervisor.endpoint("llm")
        os.environ[KEY_ENV] = endpoint.token or ""
        result: dict[str, Any] = {}
        for case in cases:
            found: dict[bool, list[float]] = {True: [], False: []}
            idles: list[float] = []
            for number in range(repeats):
                for prefill in rng.sample((True, False), 2):
                    name = f"{case}-{number}-{'on' if prefill else 'off'}"
                    # A trim at 1000 tokens leaves about half, which is what the others begin with.
                    wanted = 2 * tokens if case == "trim" else tokens
                    if case == "relaunch":
                        spent, idle_ms = await relaunched(
                            folder / name, sides, prefill=prefill, tokens=wanted, rng=rng
                        )
                        found[prefill].append(spent)
                        if prefill:
                            idles.append(idle_ms)
                        continue
                    async with restarted(
                        folder / "data", sides, endpoint.url, prefill=True, trim=False
                    ) as limbic:
                        await seed_history(limbic, name, tokens=wanted, rng=rng)
                    spent, idle_ms = await after_window(
                        case, folder / "data", sides, endpoint.url,
                        prefill=prefill, name=name, rng=rng,
                    )  # fmt: skip
                    found[prefill].append(spent)
                    if prefill:
                        idles.append(idle_ms)
                show_progress(f"{case}: {number + 1}/{repeats} pairs")
            show_progress("")
            pairs = zip(found[False], found[True], strict=True)
            result[case] = {
                "after_window_ms": round(statistics.median(found[True]), 1),
                "without_prefill_ms": round(statistics.median(found[False]), 1),
                "times_faster": round(statistics.median(a / b for a, b in pairs), 2),
                "idle_ms": round(statistics.median(idles), 0),
                "pairs": repeats,
            }
    return result


def missed(result: dict[str, Any]) -> bool:
    """Whether a limit is missed."""
    return (
        ("answering" in result and result["answering"]["ratio"] > MAX_ANSWERING)
        or ("silent" in result and result["silent"]["ratio_beyond_window"] > MAX_SILENT)
        or any(
            result[case]["times_faster"] < MIN_UNCACHED
            for case in ("restart", "edit", "trim", "relaunch")
            if case in result
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Measure and print."""
    parser = parser_of(__doc__)
    parser.add_argument("--repeats", type=int, default=12, help="A/B pairs of each case")
    parser.add_argument("--history", type=int, default=500, help="tokens of history")
    parser.add_argument("--cases", default=",".join(AGAINST_BARE + UNCACHED))
    parser.add_argument("--check", action="store_true", help="exit 1 when a limit is missed")
    args = parser.parse_args(argv)
    cases = args.cases.split(",")
    if unknown := set(cases) - {*AGAINST_BARE, *UNCACHED}:
        parser.error(f"unknown cases: {', '.join(sorted(unknown))}")
    shared = {"tokens": args.history, "repeats": args.repeats, "seed": args.seed}
    result: dict[str, Any] = {}
    for case in (c for c in AGAINST_BARE if c in cases):
        with side_models(delay_ms=SIDE_MS if case == "answering" else None) as sides:
            found = result[case] = asyncio.run(against_bare(sides, **shared))
        if not args.json:
            print(
                f"{case:<10} first token: brain {found['brain_ms']:.0f} ms, bare loop"
                f" {found['bare_ms']:.0f} ms, ratio {found['ratio']:.2f}"
                f" (beyond the soft deadline: {found['ratio_beyond_window']:.2f})"
                f"  {found['phases_ms']}"
            )
    if rest := [c for c in UNCACHED if c in cases]:
        with side_models(delay_ms=None) as sides:
            result |= asyncio.run(uncached(rest, sides, **shared))
        for case in rest if not args.json else ():
            found = result[case]
            print(
                f"{case:<10} window's close to first token: {found['after_window_ms']:.0f} ms,"
                f" without prefill {found['without_prefill_ms']:.0f} ms,"
                f" {found['times_faster']:.1f} times faster (idle work {found['idle_ms']:.0f} ms)"
            )
    if args.json:
        print(orjson.dumps(result).decode())
    return int(args.check and missed(result))


if __name__ == "__main__":
    sys.exit(main())
