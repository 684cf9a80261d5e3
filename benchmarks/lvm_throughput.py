"""``python -m benchmarks.lvm_throughput``: what the pipeline adds to the encoder and to a step.

``vectors``: texts a second of a whole store build ÷ of the encoder alone on the same texts.
``training``: steps a second of the loop (whole documents, gathering, clipping, averaging)
÷ of the same network's bare forward, backward and optimiser step on tensors that are ready.
``scaling``: windows a second of an epoch's batches with their contexts and banks, and the memory
that the process adds for itself, from 50,000 windows up; vectors are random.
All in one run, sides alternating; medians.
"""

from __future__ import annotations

import argparse
import gzip
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from trainers.lvm import checkpoint
from trainers.lvm.batches import Corpus, epoch_batches, gather
from trainers.lvm.corpora import load_corpora
from trainers.lvm.losses import cosine_loss, rank_losses
from trainers.lvm.recipes import load
from trainers.lvm.train import build, optimizer_of, train_step
from trainers.lvm.vectors import TextModelEncoder, build_store

WORDS = ["well", "I", "think", "we", "went", "for", "a", "long", "walk", "and", "it", "rained"]
DIM, DOCUMENT = 384, 45
RECIPE = Path(__file__).parent.parent / "config" / "lvm" / "ours_dialogue.toml"


def alternate(sides: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of each side's figure, sides taking turns."""
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            found[name].append(side())
    return {name: statistics.median(values) for name, values in found.items()}


def vectors(rounds: int, documents: int) -> dict[str, float]:
    """Texts a second of the encoder alone and of a whole build."""
    draw = np.random.default_rng(0)
    texts = [
        [" ".join(draw.choice(WORDS, draw.integers(3, 25))) for _ in range(DOCUMENT)]
        for _ in range(documents)
    ]
    encoder = TextModelEncoder(None, threads=1)
    corpus = load_corpora(None)["chitchat_byu"]
    flat = [text for document in texts for text in document]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        path = data / corpus.path
        path.parent.mkdir(parents=True)
        with gzip.open(path, "wt", encoding="utf-8") as file:
            for number, turns in enumerate(texts):
                row = {"doc": str(number), corpus.field: turns, "split": "train"}
                file.write(json.dumps(row) + "\n")
        count = iter(range(10_000))

        def alone() -> float:
            began = time.perf_counter()
            encoder.encode(flat)
            return len(flat) / (time.perf_counter() - began)

        def whole() -> float:
            began = time.perf_counter()
            build_store("chitchat_byu", corpus, data, data / f"s{next(count)}", encoder)
            return len(flat) / (time.perf_counter() - began)

        found = alternate({"alone": alone, "whole": whole}, rounds)
    return {**found, "share": found["whole"] / found["alone"]}


def random_corpus(windows: int) -> Corpus:
    """Documents of unit vectors that nobody said, mapped as a real corpus is."""
    count = windows // (DOCUMENT - 5)
    draw = np.random.default_rng(0)

    def part() -> np.ndarray:
        rows = draw.standard_normal((DOCUMENT, DIM), dtype=np.float32)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)

    some = [part() for _ in range(200)]
    edges = np.arange(count + 1) * DOCUMENT
    parts = [some[i % len(some)] for i in range(count)]
    return Corpus(gather(parts, "cpu"), edges[:-1], edges[1:], np.ones(count), "benchmark")


def training(rounds: int, batch: int) -> dict[str, float]:
    """Steps a second of the loop and of the bare step."""
    torch.set_num_threads(1)
    recipe = load(RECIPE)
    corpus = random_corpus(20_000)
    net = build(recipe, corpus)
    optimizer = optimizer_of(net, recipe)
    average = checkpoint.Average(net, recipe.ema)
    # The same batches for both sides; the bare one has them as tensors beforehand.
    batches = [b for b, _ in zip(epoch_batches(corpus, batch, 0, 0), range(4), strict=False)]
    ready = [(corpus.context(b.targets), corpus.vectors[b.bank].float(), b) for b in batches]

    def loop() -> float:
        began = time.perf_counter()
        for one, _ in zip(epoch_batches(corpus, batch, 0, 0), range(4), strict=False):
            train_step(net, optimizer, corpus, one, recipe)
            average.update(net)
        return 4 / (time.perf_counter() - began)

    def bare() -> float:
        began = time.perf_counter()
        for context, bank, one in ready:
            everyone, own = rank_losses(net.rank(context, bank), one, bank)
            vector = cosine_loss(net.vector(context), bank[one.place])
            optimizer.zero_grad(set_to_none=True)
            (vector * 10 + everyone + recipe.own_weight * own).backward()
            optimizer.step()
        return 4 / (time.perf_counter() - began)

    found = alternate({"bare": bare, "loop": loop}, rounds)
    return {**found, "share": found["loop"] / found["bare"]}


def own_memory_mb() -> float:
    """Anonymous resident memory: what the process keeps for itself, mapped files left out."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    return float("nan")


def scaling(sizes: list[int], batch: int) -> list[dict[str, float]]:
    """An epoch's batches without the network, for corpora of growing size."""
    rows = []
    for size in sizes:
        before = own_memory_mb()
        corpus = random_corpus(size)
        most, seen, began = 0.0, 0, time.perf_counter()
        for number, one in enumerate(epoch_batches(corpus, batch, 0, 0)):
            context, bank = corpus.context(one.targets), corpus.vectors[one.bank].float()
            seen += len(context)
            if number % 20 == 0:
                most = max(most, own_memory_mb())
            del context, bank
        seconds = time.perf_counter() - began
        rows.append(
            {
                "windows": seen,
                "windows_s": seen / seconds,
                "corpus_mb": corpus.vectors.numel() * 2 / 2**20,
                "own_mb": most - before,
            }
        )
        del corpus
    return rows


def main() -> None:
    """Print one JSON line for each part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--documents", type=int, default=40, help="of the vectors part")
    parser.add_argument("--batch", type=int, default=1024, help="windows a batch")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 200_000, 800_000])
    parser.add_argument(
        "--part", choices=["vectors", "training", "scaling"], help="one part instead of all"
    )
    args = parser.parse_args()
    parts: dict[str, Callable[[], object]] = {
        "vectors": lambda: vectors(args.rounds, args.documents),
        "training": lambda: training(args.rounds, args.batch),
        "scaling": lambda: scaling(args.sizes, args.batch),
    }
    chosen = [args.part] if args.part else list(parts)
    for name in chosen:
        print(json.dumps({name: parts[name]()}), flush=True)


if __name__ == "__main__":
    main()
