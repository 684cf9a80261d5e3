"""``python -m benchmarks.affect_head``: the affect sidecar over HTTP, beside PyTorch eager.

One sidecar that multiplies in int8 and one in float32, from the same file of weights: one message
of 30 tokens at a time (p50, p95), then batches of 64 (messages a second), in turns, so that a slow
phase of the machine hits both; resident memory after that and after batches of 64 full-length
messages. Beside seconds, the processor time that a message took of its sidecar: with one thread it
says what is faster even where other programs keep the machine busy.

Then the sidecar with what it chooses for this processor, ``--pause-ms`` between messages, with a
turn id, so that a reason is worked out for each where the pause is longer than the sidecar's quiet
time. Beside them the float32 network of the same shape in PyTorch eager, called directly.

The last lines say how far the two kinds of products are apart over the gold rows, and what the
machine allows: the rate of a bare float32 matrix product of the encoder's shape, the rate that 250
messages a second need, and the share of the bare rate that each row reaches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import numpy as np

MESSAGE = (
    "honestly i thought you would call me back after what happened last night, and now i am just "
    "sitting here wondering if i said something wrong"
)
LONG_MESSAGE = "word " * 126
BATCH = 64
TARGET = 250  # messages a second
TOKENS = 30
# Multiplications of one token with the encoder's matrices; attention adds one in a hundred.
WEIGHTS_A_TOKEN = 6 * (4 * 384 * 384 + 2 * 384 * 1536)
GOLD = Path("trainers/affect/pool/gold.jsonl")
PRODUCTS = ("int8", "float32")
Row = dict[str, float]


class Running(NamedTuple):
    """A sidecar that runs."""

    url: str
    pid: int


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def cpu_ms(pid: int) -> float:
    """Processor time that a process has used, in ms, in steps of 10."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return 1000 * (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def quantiles(seconds: list[float]) -> Row:
    """p50 and p95 in ms."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p95_ms": 1000 * ordered[int(0.95 * len(ordered))],
    }


def rate_of(seconds: list[float]) -> float:
    """Messages a second, the median of batches."""
    return BATCH / sorted(seconds)[len(seconds) // 2]


@contextmanager
def sidecar(threads: int, products: str) -> Iterator[Running]:
    """A sidecar as a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "sidecars.cahm", "--port", str(port), "--threads", str(threads),
         "--products", products],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Running(f"http://127.0.0.1:{port}", child.pid)
    finally:
        child.terminate()
        child.wait()


async def until_ready(http: aiohttp.ClientSession, url: str) -> None:
    """Wait for a sidecar to load, a minute at most."""
    for _ in range(600):
        try:
            async with http.get(f"{url}/ready") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError(f"{url} is not ready after a minute")


async def timed(http: aiohttp.ClientSession, url: str, body: object) -> float:
    """Seconds of one request."""
    started = time.perf_counter()
    async with http.post(url, json=body) as answer:
        await answer.read()
        answer.raise_for_status()
    return time.perf_counter() - started


async def over_http(
    running: dict[str, Running], rounds: int, *, reasons: bool, pause_s: float
) -> dict[str, Row]:
    """Latency, throughput and memory of sidecars that are asked in turns."""
    single: dict[str, list[float]] = {name: [] for name in running}
    many: dict[str, list[float]] = {name: [] for name in running}
    found: dict[str, Row] = {}
    timeout = aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(timeout=timeout) as http:
        for side in running.values():
            await until_ready(http, side.url)
        before = {name: cpu_ms(side.pid) for name, side in running.items()}
        for number in range(rounds + 5):
            for name, side in running.items():
                body = {"text": MESSAGE} | ({"turn_id": f"t{number}"} if reasons else {})
                single[name].append(await timed(http, f"{side.url}/v1/affect", body))
                await asyncio.sleep(pause_s)
        if reasons:
            for side in running.values():
                await timed(http, f"{side.url}/v1/affect/reasoning", {"turn_id": f"t{rounds + 4}"})
        between = {name: cpu_ms(side.pid) for name, side in running.items()}
        items = {"items": [{"text": MESSAGE}] * BATCH}
        for _ in range(max(3, rounds // 20)):
            for name, side in running.items():
                many[name].append(await timed(http, f"{side.url}/v1/affect/batch", items))
                await asyncio.sleep(pause_s)
        for name, side in running.items():
            memory, after = resident_mb(side.pid), cpu_ms(side.pid)
            longest = {"items": [{"text": LONG_MESSAGE}] * BATCH}
            for _ in range(2):
                await timed(http, f"{side.url}/v1/affect/batch", longest)
            found[name] = {
                **quantiles(single[name][5:]),
                "cpu_ms": (between[name] - before[name]) / (rounds + 5),
                "messages_s": rate_of(many[name]),
                "batch_cpu_ms": (after - between[name]) / (BATCH * len(many[name])),
                "rss_mb": memory, "rss_long_mb": resident_mb(side.pid),
            }  # fmt: skip
    return found


def in_pytorch(rounds: int, threads: int) -> Row:
    """The same network in float32, eager, without HTTP."""
    import torch

    from trainers.affect.head.network import AffectNet, Served
    from trainers.encoder.minilm import load_minilm

    torch.set_num_threads(threads)
    model = Served(AffectNet(load_minilm())).eval()
    row = torch.randint(1000, 20000, (1, TOKENS))

    def run(ids: torch.Tensor) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model(ids, torch.ones_like(ids), torch.zeros_like(ids))
        return time.perf_counter() - started

    single = [run(row) for _ in range(rounds + 5)][5:]
    batches = [run(row.repeat(BATCH, 1)) for _ in range(max(3, rounds // 20))]
    memory = resident_mb(os.getpid())
    return {**quantiles(single), "messages_s": rate_of(batches), "rss_mb": memory}


def matrix_rate(threads: int, times: int = 30) -> float:
    """Float32 GFLOP/s of [1024, 384] by [384, 1536] in PyTorch, best of ``times``."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 384), torch.randn(384, 1536)
    fastest = float("inf")
    for _ in range(times):
        started = time.perf_counter()
        a @ b
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * 1024 * 384 * 1536 / fastest / 1e9


def allowed(rate: float, rows: dict[str, Row]) -> Row:
    """What the target needs of the machine, and the share of its bare rate that each row reaches.

    A share can come out above 1: the bare rate is of one shape, for a moment, in PyTorch.
    """
    a_message = 2 * WEIGHTS_A_TOKEN * TOKENS / 1e9
    shares = {f"share, {name}": row["messages_s"] * a_message / rate for name, row in rows.items()}
    return {"gflop_s": rate, "target_gflop_s": TARGET * a_message, **shares}


def gold_gap(threads: int) -> Row:
    """How far the axes of both kinds of products are apart over the gold rows, with context."""
    from sidecars.cahm import WEIGHTS
    from sidecars.onnx_text import TextModel

    rows = [json.loads(line) for line in GOLD.read_text().splitlines()]
    texts, before = [r["text"] for r in rows], ["\n".join(r["context"]) or None for r in rows]
    a, b = (
        TextModel.load(WEIGHTS, threads=threads, products=p).run(texts, before)["axes"]
        for p in PRODUCTS
    )
    return {"rows": len(rows), "largest": np.abs(a - b).max(), "mean": np.abs(a - b).mean()}


def main() -> None:
    """Print every row as JSON, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause-ms", type=float, default=100.0, help="between messages")
    args = parser.parse_args()
    pause_s = args.pause_ms / 1000

    def show(what: str, row: Row) -> None:
        print(json.dumps({"what": what, **{k: round(float(v), 3) for k, v in row.items()}}),
              flush=True)  # fmt: skip

    with ExitStack() as stack:
        running = {p: stack.enter_context(sidecar(args.threads, p)) for p in PRODUCTS}
        rows = asyncio.run(over_http(running, args.rounds, reasons=False, pause_s=pause_s))
    with sidecar(args.threads, "auto") as one:
        name = "chosen, with reasons"
        rows |= asyncio.run(over_http({name: one}, args.rounds, reasons=True, pause_s=pause_s))
    rows["pytorch"] = in_pytorch(args.rounds, args.threads)
    for name, row in rows.items():
        show(name, row)
    for name, over in (("int8", "pytorch"), ("float32", "pytorch"), ("float32", "int8")):
        ratios = {k: rows[name][k] / v for k, v in rows[over].items()}
        show(f"{name} ÷ {over}", ratios)
    show("float32 and int8 on gold", gold_gap(args.threads))
    show("machine", allowed(matrix_rate(args.threads), rows))


if __name__ == "__main__":
    main()
