"""``python -m benchmarks.lvm_sidecar``: the lvm sidecar on one thread, beside PyTorch eager.

Two servers, the shipped one and the same service whose network is PyTorch eager
(``benchmarks.lvm_eager``), asked in turn, in random order; a ratio is the median over the pairs
of shipped ÷ eager. Times are those of the caller, JSON and HTTP included, but for ``infer``, which
is the server's own. ``network alone`` calls the two networks in this process, without HTTP.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
for name in THREADS:  # before NumPy and PyTorch read them, and for the servers
    os.environ[name] = "1"

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.affect_head import resident_mb  # noqa: E402

TEXT = "well the weather is nice here today and I went for a walk"
SERVERS = {"shipped": "sidecars.lvm", "eager": "benchmarks.lvm_eager"}
CANDIDATES, BATCH, TEXTS = 20, 64, 64
WARM = 10
Pairs = dict[str, list[float]]


async def in_turn(
    sides: dict[str, Callable[[], Awaitable[float]]], rounds: int, draw: random.Random
) -> Pairs:
    """Seconds of each side, one a round, in random order; the first rounds do not count."""
    found: Pairs = {name: [] for name in sides}
    for number in range(rounds + WARM):
        for name in draw.sample(sorted(sides), len(sides)):
            seconds = await sides[name]()
            if number >= WARM:
                found[name].append(seconds)
    return found


def figures(pairs: Pairs) -> dict[str, float]:
    """p50 and p95 of both sides in ms, and the median of the pairs' ratios."""
    row = {}
    for name, seconds in pairs.items():
        ordered = sorted(seconds)
        row[f"{name}_p50_ms"] = 1000 * ordered[len(ordered) // 2]
        row[f"{name}_p95_ms"] = 1000 * ordered[int(0.95 * len(ordered))]
    ratios = [a / b for a, b in zip(pairs["shipped"], pairs["eager"], strict=True)]
    return row | {"ratio": statistics.median(ratios)}


def vectors(*shape: int) -> np.ndarray:
    """Unit float32 vectors of the encoder's dimension, the same in every run."""
    drawn = np.random.default_rng(0).normal(size=(*shape, 384)).astype(np.float32)
    unit: np.ndarray = drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return unit


def memory(pids: dict[str, int]) -> dict[str, float]:
    """Resident memory of both servers in MB, and its ratio."""
    found = {name: resident_mb(pid) for name, pid in pids.items()}
    row = {f"{name}_mb": mb for name, mb in found.items()}
    return row | {"ratio": found["shipped"] / found["eager"]}


async def served(
    urls: dict[str, str], pids: dict[str, int], rounds: int
) -> dict[str, dict[str, float]]:
    """Rows of both servers over HTTP; memory before and after the large batches."""
    window = vectors(5).tolist()
    bodies: dict[str, tuple[str, Any]] = {
        "infer, one window": ("/infer", {"context_vectors": window}),
        f"rank, {CANDIDATES} candidates": (
            "/rank",
            {"context_vectors": window, "candidates": vectors(CANDIDATES).tolist()},
        ),
        f"encode, {TEXTS} texts": ("/encode", {"texts": [TEXT] * TEXTS}),
        f"infer, {BATCH} windows": ("/infer", {"context_vectors": vectors(BATCH, 5).tolist()}),
    }
    rows: dict[str, dict[str, float]] = {}
    async with aiohttp.ClientSession() as http:
        for url in urls.values():
            await ready(http, url)

        def asking(url: str, path: str, body: Any, own_clock: bool) -> Callable[[], Any]:
            raw = json.dumps(body).encode()

            async def ask() -> float:
                began = time.perf_counter()
                async with http.post(
                    url + path, data=raw, headers={"Content-Type": "application/json"}
                ) as answer:
                    answer.raise_for_status()
                    found = await answer.json()
                taken = time.perf_counter() - began
                return found["latency_ms"] / 1000 if own_clock else taken

            return ask

        for what, (path, body) in bodies.items():
            few = rounds if "one" in what or path == "/rank" else max(5, rounds // 10)
            sides = {
                name: asking(url, path, body, what == "infer, one window")
                for name, url in urls.items()
            }
            if what == f"infer, {BATCH} windows":
                rows["resident memory"] = memory(pids)
            rows[what] = figures(await in_turn(sides, few, random.Random(0)))
    rows["resident memory after that"] = memory(pids)
    return rows


async def ready(http: aiohttp.ClientSession, url: str) -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            async with http.get(f"{url}/ready") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{url} does not get ready")


async def alone(rounds: int) -> dict[str, dict[str, float]]:
    """Rows of the two networks in this process."""
    from benchmarks.lvm_eager import EagerNetwork
    from sidecars.lvm import WEIGHTS
    from sidecars.lvm_network import LvmNetwork

    folder = WEIGHTS / "lvm_dialogue"
    networks = {"shipped": LvmNetwork.load(folder), "eager": EagerNetwork.load(folder)}

    def calling(call: Callable[[], Any]) -> Callable[[], Awaitable[float]]:
        async def timed() -> float:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began

        return timed

    rows = {}
    for windows in (1, 32, 256):
        context = vectors(windows, 5)
        sides = {n: calling(lambda m=m, c=context: m.predict(c)) for n, m in networks.items()}
        found = await in_turn(sides, max(5, rounds // windows), random.Random(0))
        rows[f"network alone, {windows} windows"] = figures(found)
    context = vectors(1, 5)
    for count in (CANDIDATES, 1000):
        bank = vectors(count)
        sides = {n: calling(lambda m=m, b=bank: m.rank(context, b)) for n, m in networks.items()}
        found = await in_turn(sides, max(5, rounds * CANDIDATES // count), random.Random(0))
        rows[f"network alone, rank {count}"] = figures(found)
    return rows


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def main() -> None:
    """Print one JSON line a row."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    ports = {name: free_port() for name in SERVERS}
    children = {
        name: subprocess.Popen(
            [sys.executable, "-m", module, "--port", str(ports[name]), "--threads", "1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name, module in SERVERS.items()
    }
    try:
        urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
        pids = {name: child.pid for name, child in children.items()}
        rows = asyncio.run(served(urls, pids, args.rounds))
    finally:
        for child in children.values():
            child.terminate()
        for child in children.values():
            child.wait()
    rows |= asyncio.run(alone(args.rounds))
    for what, row in rows.items():
        print(json.dumps({"what": what, **{k: round(v, 2) for k, v in row.items()}}))


if __name__ == "__main__":
    main()
