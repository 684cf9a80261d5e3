"""``python -m benchmarks.encoder_runtimes``: the affect head in ONNX Runtime, llama.cpp, PyTorch.

The same weights in each (``benchmarks.encoder_weights``), each in a process of its own that is
given token ids; rounds go around the processes in random order, so that a slow phase of the machine
hits all. Accuracy is measured on the gold rows, against PyTorch in float32. Needs the ``train``
extra and gguf.

llama.cpp's BERT graph reads every token as of the first segment, so there the context is told from
the message by its place alone; the heads, a few small products, run in numpy after it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import tempfile
import time
from importlib.metadata import distribution
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sidecars.cahm import WEIGHTS
from sidecars.onnx_text import TOKENIZER_FILE, TextModel, Tokens, feed

GOLD = Path("trainers/affect/pool/gold.jsonl")
AXES = ("valence", "intimacy", "tension")
BATCH, PART = 64, 32
# llama.cpp attends over all sequences of one call at once, masked: larger calls cost more a token.
LLAMA_TOKENS = 512
MESSAGE = (
    "honestly i thought you would call me back after what happened last night, and now i am just "
    "sitting here wondering if i said something wrong"
)
Answer = tuple[NDArray[np.float32], NDArray[np.float32]]


class Runtime(Protocol):
    """Axes [N, 3] and unit vectors [N, 384] of N token lists."""

    def __call__(self, rows: list[Tokens]) -> Answer: ...


def in_pytorch(folder: Path, threads: int) -> Runtime:
    """float32, eager."""
    import torch

    from trainers.affect.head.network import AffectNet, Served
    from trainers.affect.head.weights import served_weights
    from trainers.encoder.minilm import MiniLM

    torch.set_num_threads(threads)
    net = AffectNet(MiniLM())
    net.load_state_dict({k: torch.tensor(v) for k, v in served_weights(WEIGHTS).items()}, False)
    model = Served(net).eval()

    def run(rows: list[Tokens]) -> Answer:
        arrays = feed(rows)
        with torch.inference_mode():
            out = model(*(torch.from_numpy(array) for array in arrays.values()))
        return out[0].numpy(), out[4].numpy()

    return run


def in_onnx(path: Path, threads: int) -> Runtime:
    """ONNX Runtime, with the options of the sidecar."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(rows: list[Tokens]) -> Answer:
        axes, vectors = session.run(["axes", "embedding"], feed(rows))
        return axes, vectors

    return run


def in_llama(path: Path, threads: int) -> Runtime:
    """llama.cpp for the encoder, numpy for the heads; at most ``LLAMA_TOKENS`` tokens a call."""
    import llama_cpp

    head = np.load(path.with_name("heads.npz"))
    llama = llama_cpp.Llama(
        str(path), embedding=True, pooling_type=llama_cpp.LLAMA_POOLING_TYPE_NONE, verbose=False,
        n_ctx=LLAMA_TOKENS, n_batch=LLAMA_TOKENS, n_ubatch=LLAMA_TOKENS, n_threads=threads,
        n_threads_batch=threads,
    )  # fmt: skip

    def hidden(rows: list[Tokens]) -> list[NDArray[np.float32]]:
        context, batch = llama._ctx, llama._batch
        batch.reset()
        for number, row in enumerate(rows):
            batch.add_sequence(row.ids, number, True)
        context.kv_cache_clear()
        context.decode(batch)
        ends = np.cumsum([len(row.ids) for row in rows])
        found = llama_cpp.llama_get_embeddings(context.ctx)
        return np.split(np.ctypeslib.as_array(found, (int(ends[-1]), 384)).copy(), ends[:-1])

    def run(rows: list[Tokens]) -> Answer:
        states: list[NDArray[np.float32]] = []
        part: list[Tokens] = []
        for row in rows:
            if part and sum(len(r.ids) for r in part) + len(row.ids) > LLAMA_TOKENS:
                states += hidden(part)
                part = []
            part.append(row)
        states += hidden(part)
        means = np.stack(
            [s[np.asarray(row.kinds) == 0].mean(0) for s, row in zip(states, rows, strict=True)]
        )
        inner = means @ head["axes.0.weight"].T + head["axes.0.bias"]
        axes = np.tanh(_gelu(inner) @ head["axes.2.weight"].T + head["axes.2.bias"])
        return axes, means / np.linalg.norm(means, axis=1, keepdims=True)

    return run


def _gelu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """With erf after Abramowitz and Stegun 7.1.26, within 2e-7."""
    z = np.abs(x) / np.sqrt(2.0)
    t = 1.0 / (1.0 + 0.3275911 * z)
    series = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    erf = 1.0 - sum(c * t ** (k + 1) for k, c in enumerate(series)) * np.exp(-z * z)
    return np.asarray(0.5 * x * (1.0 + np.sign(x) * erf), np.float32)


def prepare(folder: Path) -> dict[str, tuple[Any, Path, str]]:
    """Write every runtime's file; name → (maker, file, package)."""
    import torch

    from benchmarks.encoder_weights import write_gguf
    from trainers.affect.head.network import AffectNet, Served
    from trainers.affect.head.weights import served_weights
    from trainers.encoder.export import export_onnx
    from trainers.encoder.minilm import MiniLM

    weights = served_weights(WEIGHTS)
    net = AffectNet(MiniLM())
    net.load_state_dict({k: torch.tensor(v) for k, v in weights.items()}, False)
    export_onnx(Served(net), list(Served.outputs), folder / "full.onnx", quantise=False)
    np.savez(folder / "heads.npz", **{k: v for k, v in weights.items() if k.startswith("axes")})
    for kind in ("F16", "Q8_0"):
        write_gguf(weights, WEIGHTS / TOKENIZER_FILE, folder / f"{kind}.gguf", kind=kind)
    return {
        "PyTorch float32": (in_pytorch, folder / "full.onnx", "torch"),
        "ONNX Runtime float32": (in_onnx, folder / "full.onnx", "onnxruntime"),
        "ONNX Runtime int8 (served)": (in_onnx, WEIGHTS / "model.onnx", "onnxruntime"),
        "llama.cpp F16": (in_llama, folder / "F16.gguf", "llama-cpp-python"),
        "llama.cpp Q8_0": (in_llama, folder / "Q8_0.gguf", "llama-cpp-python"),
    }


def serve(pipe: Connection, make: Any, path: Path, threads: int) -> None:
    """A process with one runtime, or none: answers ``(command, rows, times)`` until ``None``."""
    run = make(path, threads) if make else None
    while (task := pipe.recv()) is not None:
        command, rows, times = task
        if command == "memory":
            status = Path("/proc/self/status").read_text().splitlines()
            pipe.send(next(int(s.split()[1]) / 1024 for s in status if s.startswith("VmRSS:")))
        elif command == "score":
            order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
            parts = [run([rows[i] for i in order[k : k + PART]]) for k in range(0, len(rows), PART)]
            back = np.argsort(order)
            pipe.send(tuple(np.concatenate(array)[back] for array in zip(*parts, strict=True)))
        else:  # seconds of each of so many calls over all rows, PART at a time
            seconds = []
            for _ in range(times):
                started = time.perf_counter()
                for k in range(0, len(rows), PART):
                    run(rows[k : k + PART])
                seconds.append(time.perf_counter() - started)
            pipe.send(seconds)


def accuracy(found: Answer, exact: Answer, labels: NDArray[np.float64]) -> dict[str, float]:
    """Against PyTorch and against the labels [N, 3] (NaN: not labelled)."""
    cosine = (found[1] * exact[1]).sum(1)
    gap = np.abs(found[0] - exact[0])
    row = {"cosine": float(cosine.mean()), "lowest": float(cosine.min()),
           "mean_gap": float(gap.mean()), "largest_gap": float(gap.max())}  # fmt: skip
    for i, axis in enumerate(AXES):
        known = ~np.isnan(labels[:, i])
        r, best = (np.corrcoef(a[0][known, i], labels[known, i])[0, 1] for a in (found, exact))
        row |= {f"r_{axis}": float(r), f"lost_{axis}": float(best - r)}
    return row


def megabytes(package: str) -> float:
    """Installed size of one distribution, without what it depends on."""
    files = distribution(package).files or []
    paths = [Path(str(file.locate())) for file in files]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def main() -> None:
    """Print one JSON line a runtime, accuracy first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30, help="of 10 messages and one batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gold", type=int, default=0, help="only so many gold rows")
    args = parser.parse_args()
    gold = [json.loads(line) for line in GOLD.read_text().splitlines()]
    if args.gold:
        gold = random.Random(0).sample(gold, args.gold)
    labels = np.array([[row[axis] for axis in AXES] for row in gold], np.float64)
    read = TextModel.load(WEIGHTS).read
    alone = [read(row["text"], "") for row in gold]
    paired = [read(row["text"], "\n".join(row["context"])) for row in gold]
    one = [read(MESSAGE, "")]
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        made = prepare(Path(name))
        pipes: dict[str, Connection] = {}
        for key, (make, path, _) in {**made, "bare": (None, Path(), "")}.items():
            pipes[key], theirs = spawn.Pipe()
            spawn.Process(
                target=serve, args=(theirs, make, path, args.threads), daemon=True
            ).start()

        def ask(key: str, command: str, rows: list[Tokens], times: int = 1) -> Any:
            pipes[key].send((command, rows, times))
            return pipes[key].recv()

        exact = {k: ask("PyTorch float32", "score", rows) for k, rows in
                 (("alone", alone), ("with context", paired))}  # fmt: skip
        for key in made:
            for what, rows in (("alone", alone), ("with context", paired)):
                row = accuracy(ask(key, "score", rows), exact[what], labels)
                known = {"runtime": key, "gold": what, "n": len(rows)}
                print(json.dumps(known | {k: round(v, 4) for k, v in row.items()}), flush=True)
        single: dict[str, list[float]] = {key: [] for key in made}
        many: dict[str, list[float]] = {key: [] for key in made}
        for number in range(args.rounds + 1):
            for key in random.sample(list(made), len(made)):
                seconds, batch = ask(key, "time", one, 10), ask(key, "time", one * BATCH)
                if number:  # the first round warms up
                    single[key] += seconds
                    many[key] += batch
        served = "ONNX Runtime int8 (served)"
        bare = ask("bare", "memory", [])
        for key, (_, path, package) in made.items():
            p50, p95 = np.quantile(single[key], [0.5, 0.95])
            print(json.dumps({
                "runtime": key, "tokens": len(one[0].ids),
                "p50_ms": round(1e3 * float(p50), 2), "p95_ms": round(1e3 * float(p95), 2),
                "p50_ratio": round(float(p50 / np.median(single[served])), 2),
                "messages_s": round(BATCH / float(np.median(many[key])), 1),
                "rate_ratio": round(float(np.median(many[served]) / np.median(many[key])), 2),
                "memory_mb": round(ask(key, "memory", []) - bare, 1),
                "file_mb": round(path.stat().st_size / 1e6, 1),
                "package_mb": round(megabytes(package), 1),
            }), flush=True)  # fmt: skip
        for pipe in pipes.values():
            pipe.send(None)


if __name__ == "__main__":
    main()
