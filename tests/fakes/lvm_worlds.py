"""Synthetic stores of known structure, and an encoder that needs no model."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from trainers.lvm.store import VectorStore, store_in_memory, unit

DIM = 16


class HashEncoder:
    """Each text its own pseudo-random direction; equal texts give equal vectors."""

    def __init__(self, fail_after: int | None = None, nan: bool = False, dim: int = DIM) -> None:
        self.name, self.sha256 = "hash", "f" * 64
        self.calls = 0
        self._fail_after, self._nan, self._dim = fail_after, nan, dim

    def encode(self, texts: list[str]) -> np.ndarray:
        if self._fail_after is not None and self.calls >= self._fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        seeds = [int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) for t in texts]
        rows = [np.random.default_rng(s).standard_normal(self._dim) for s in seeds]
        vectors = unit(np.asarray(rows, dtype=np.float32))
        if self._nan:
            vectors[0, 0] = np.nan
        return vectors


def drifting_store(documents: int = 120, length: int = 14, seed: int = 0) -> VectorStore:
    """Topics that drift: a linear world, where copying and ridge have something to work with."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((DIM, DIM)))[0]
    made = []
    for _ in range(documents):
        topic = unit(rng.standard_normal(DIM))
        rows = [topic]
        for _ in range(length - 1):
            noise = unit(rng.standard_normal(DIM))
            rows.append(unit(0.3 * topic + 0.5 * rows[-1] + 0.3 * turn @ rows[-1] + 0.6 * noise))
        made.append(np.asarray(rows))
    return store_in_memory(made, halves(documents))


def codes() -> np.ndarray:
    """The codebook of ``cycling_store``: more codes than a linear map can tell apart."""
    return unit(np.random.default_rng(7).standard_normal((400, DIM)).astype(np.float32))


def cycling_store(documents: int = 120, length: int = 16, seed: int = 0) -> VectorStore:
    """Each document walks the codebook in order from a place of its own, with a little noise."""
    rng, book = np.random.default_rng(seed), codes()
    made = []
    for i in range(documents):
        # Even starts: every store visits the whole book, so that stores are equally hard.
        steps = (i * len(book) // documents + np.arange(length)) % len(book)
        made.append(unit(book[steps] + 0.05 * rng.standard_normal((length, DIM))))
    return store_in_memory(made, halves(documents))


class CycleRule:
    """The rule of ``cycling_store``: what a perfect student would have learned."""

    def predict(self, context: np.ndarray) -> np.ndarray:
        book = codes()
        return book[((context[:, -1] @ book.T).argmax(axis=1) + 1) % len(book)]


def halves(documents: int) -> list[str]:
    return ["train" if i % 2 else "valid" for i in range(documents)]


def write_store(store: VectorStore, folder: Path) -> None:
    """The store on disk."""
    import json

    folder.mkdir()
    np.save(folder / "vectors.npy", store.vectors)
    entries = [
        {"id": d.id, "start": d.start, "stop": d.stop, "split": d.split} for d in store.documents
    ]
    manifest = {"encoder": "hash", "encoder_sha256": "f" * 64, "dim": store.dim}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "documents": entries}))
