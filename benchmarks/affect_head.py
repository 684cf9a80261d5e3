"""``python -m benchmarks.affect_head``: the affect sidecar over HTTP, beside PyTorch eager.

One message of 30 tokens at a time (p50, p95), batches of 64 (messages a second), resident memory;
``--pause-ms`` apart, once without a turn id and once with one, so that a reason is worked out for
each, between messages where the pause is longer than the sidecar's quiet time. Beside it the
float32 network of the same shape in PyTorch eager, called directly. Ratios in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import aiohttp

MESSAGE = (
    "honestly i thought you would call me back after what happened last night, and now i am just "
    "sitting here wondering if i said something wrong"
)


def resident_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p95 in ms."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1000 * ordered[len(ordered) // 2],
        "p95_ms": 1000 * ordered[int(0.95 * len(ordered))],
    }


def sidecar(rounds: int, threads: int, *, reasons: bool, pause_s: float) -> dict[str, float]:
    """Figures of the sidecar as a process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(
        [sys.executable, "-m", "sidecars.cahm", "--port", str(port), "--threads", str(threads)],
        stdout=subprocess.DEVNULL,
    )
    try:
        found = asyncio.run(
            over_http(f"http://127.0.0.1:{port}", rounds, reasons=reasons, pause_s=pause_s)
        )
        return {**found, "rss_mb": resident_mb(child.pid)}
    finally:
        child.terminate()
        child.wait()


async def over_http(url: str, rounds: int, *, reasons: bool, pause_s: float) -> dict[str, float]:
    """Latency of single messages and throughput of batches, of a sidecar at ``url``."""
    async with aiohttp.ClientSession() as http:
        for _ in range(200):
            try:
                async with http.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        single: list[float] = []
        for number in range(rounds + 5):
            body = {"text": MESSAGE} | ({"turn_id": f"t{number}"} if reasons else {})
            started = time.perf_counter()
            async with http.post(f"{url}/v1/affect", json=body) as answer:
                await answer.read()
            single.append(time.perf_counter() - started)
            await asyncio.sleep(pause_s)
        if reasons:
            last = {"turn_id": f"t{rounds + 4}"}
            async with http.post(f"{url}/v1/affect/reasoning", json=last) as answer:
                answer.raise_for_status()
        items = [{"text": MESSAGE}] * 64
        rates: list[float] = []
        for _ in range(max(3, rounds // 20)):
            started = time.perf_counter()
            async with http.post(f"{url}/v1/affect/batch", json={"items": items}) as answer:
                await answer.read()
            rates.append(len(items) / (time.perf_counter() - started))
    return {**quantiles(single[5:]), "messages_s": sorted(rates)[len(rates) // 2]}


def in_pytorch(rounds: int, threads: int) -> dict[str, float]:
    """The same network in float32, eager, without HTTP."""
    import os

    import torch

    from trainers.affect.head.network import AffectNet, Served
    from trainers.encoder.minilm import load_minilm

    torch.set_num_threads(threads)
    model = Served(AffectNet(load_minilm())).eval()
    row = torch.randint(1000, 20000, (1, 30))

    def run(ids: torch.Tensor) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            model(ids, torch.ones_like(ids), torch.zeros_like(ids))
        return time.perf_counter() - started

    single = [run(row) for _ in range(rounds + 5)][5:]
    many = row.repeat(64, 1)
    rates = sorted(64 / run(many) for _ in range(max(3, rounds // 20)))
    memory = resident_mb(os.getpid())
    return {**quantiles(single), "messages_s": rates[len(rates) // 2], "rss_mb": memory}


def main() -> None:
    """Print both rows as JSON and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pause-ms", type=float, default=100.0, help="between messages")
    args = parser.parse_args()
    pause_s = args.pause_ms / 1000
    ours = sidecar(args.rounds, args.threads, reasons=False, pause_s=pause_s)
    with_reasons = sidecar(args.rounds, args.threads, reasons=True, pause_s=pause_s)
    torch_row = in_pytorch(args.rounds, args.threads)
    ratios = {k: ours[k] / torch_row[k] for k in ours}
    for name, row in (
        ("sidecar", ours),
        ("sidecar, with reasons", with_reasons),
        ("pytorch", torch_row),
        ("ratio", ratios),
    ):
        print(json.dumps({"what": name, **{k: round(v, 2) for k, v in row.items()}}))


if __name__ == "__main__":
    main()
