"""``python -m benchmarks.lvm_sidecar``: the lvm sidecar on one thread: a window, texts, memory.

``/infer`` of one window, vectors given: the server's own latency. ``/encode``: texts a second in
batches of 64 texts of 14 words.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import subprocess
import sys
import time

import aiohttp

from benchmarks.affect_head import quantiles, resident_mb

TEXT = "well the weather is nice here today and I went for a walk"


async def ask(url: str, rounds: int) -> dict[str, float]:
    """Figures of a sidecar at ``url``."""
    draw = random.Random(0)
    window = [[draw.gauss(0, 1) for _ in range(384)] for _ in range(5)]

    async with aiohttp.ClientSession() as http:

        async def post(path: str, body: object) -> dict[str, object]:
            async with http.post(url + path, json=body) as answer:
                found: dict[str, object] = await answer.json()
                return found

        for _ in range(200):
            try:
                async with http.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        answers = [await post("/infer", {"context_vectors": window}) for _ in range(rounds + 20)]
        seconds = [float(str(a["latency_ms"])) / 1000 for a in answers[20:]]
        rates = []
        for _ in range(max(3, rounds // 50)):
            started = time.perf_counter()
            await post("/encode", {"texts": [TEXT] * 64})
            rates.append(64 / (time.perf_counter() - started))
    return {**quantiles(seconds), "texts_s": sorted(rates)[len(rates) // 2]}


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "sidecars.lvm", "--port", str(port), "--threads", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = asyncio.run(ask(f"http://127.0.0.1:{port}", args.rounds))
        found["rss_mb"] = resident_mb(child.pid)
    finally:
        child.terminate()
        child.wait()
    print(json.dumps({k: round(v, 2) for k, v in found.items()}))


if __name__ == "__main__":
    main()
