"""A program that chats with the store and is killed at its n-th SQL statement.

``python tests/crash_turns.py DIRECTORY KILL_AT``: prints what it was promised, one JSON line a
promise, unbuffered; ``KILL_AT`` 0 runs to the end and prints how many statements there were.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from brain.persona import load_persona
from brain.settings import load_settings
from brain.store import Store
from brain.store_sql import NewMemory, TurnCommit

TURNS = 4


async def main(directory: Path, kill_at: int) -> None:
    model = load_persona("companion", load_settings(None, environ={})).hormones
    count = 0

    def trace(statement: str) -> None:
        nonlocal count
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    store = Store(directory, lambda event, **fields: None)
    store._statement_hook = trace
    await store.load_session("s", persona="companion", at=0.0)
    for n in range(TURNS):
        begun = await store.begin_turn("s", f"t{n}", f"words {n}", at=float(n))
        promise("user", f"words {n}")
        await store.finish_turn(
            TurnCommit(
                session_id="s", seq=begun.seq, status="done", reply=f"reply {n}", affect=None,
                state=model.initial(float(n)), record={"n": n}, tokens=3, at=float(n),
                memory=NewMemory(text=f"words {n}", weight=0.5),
            )
        )  # fmt: skip
        promise("reply", f"reply {n}")
    await store.close()
    print(json.dumps({"statements": count}), flush=True)


def promise(kind: str, text: str) -> None:
    os.write(1, json.dumps({kind: text}).encode() + b"\n")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
