"""Vectors on the device, and batches made of whole documents.

A batch is a set of documents: its rows are all their windows, its bank all their vectors, so every
window meets its own document's other sentences as negatives as well as everyone else's.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from brain.errors import ConfigError
from trainers.lvm.corpora import is_dev
from trainers.lvm.store import CONTEXT, VectorStore

SEEN = 4096  # rows of a digest


@dataclass
class Corpus:
    """Documents of one split, from one or more stores, one after the other.

    ``vectors`` fp16 ``[V, D]``; ``starts``/``stops`` int64 ``[documents]``; ``weights`` how often
    each document is drawn in an epoch; ``encoder`` the sha256 of what made the vectors.
    """

    vectors: Tensor
    starts: np.ndarray
    stops: np.ndarray
    weights: np.ndarray
    encoder: str

    @property
    def targets(self) -> Tensor:
        """Target index of every window, int64 ``[W]``, in document order."""
        pairs = zip(self.starts, self.stops, strict=True)
        spans = [np.arange(a + CONTEXT, b) for a, b in pairs if b - a > CONTEXT]
        return torch.as_tensor(np.concatenate(spans), device=self.vectors.device)

    @property
    def owner(self) -> Tensor:
        """Document number of every vector, int64 ``[V]``."""
        lengths = torch.as_tensor(self.stops - self.starts)
        return torch.repeat_interleave(torch.arange(len(lengths)), lengths).to(self.vectors.device)

    def identity(self) -> dict[str, Any]:
        """What it holds, for the header of a checkpoint: sizes, encoder, and a digest of the
        documents' bounds and of ``SEEN`` rows spread evenly (all of them would take long)."""
        bounds = np.stack([self.starts, self.stops]).astype(np.int64)
        rows = np.linspace(0, len(self.vectors) - 1, min(SEEN, len(self.vectors))).astype(np.int64)
        seen = self.vectors[torch.as_tensor(rows, device=self.vectors.device)].cpu().numpy()
        digest = hashlib.sha256(bounds.tobytes() + np.ascontiguousarray(seen).tobytes())
        return {
            "documents": len(self.starts),
            "windows": int((self.stops - self.starts - CONTEXT).clip(min=0).sum()),
            "encoder": self.encoder,
            "digest": digest.hexdigest(),
        }

    def context(self, targets: Tensor) -> Tensor:
        """The five vectors before each target, float32 ``[B, 5, D]``."""
        offsets = torch.arange(-CONTEXT, 0, device=targets.device)
        return self.vectors[targets[:, None] + offsets].float()


def load_corpus(
    folders: list[Path],
    split: str,
    device: str,
    weights: list[float] | None = None,
    keep: Callable[[str], bool] = lambda document: True,
) -> Corpus:
    """Read one split of several stores; of its documents those whose name ``keep`` accepts.

    Raises VectorStoreError, and ConfigError where the stores cannot go together.
    """
    parts, starts, stops, shares, encoders = [], [], [], [], set()
    offset = 0
    for number, folder in enumerate(folders):
        store = VectorStore.open(folder)
        encoders.add(store.encoder_sha256)
        for document in store.documents:
            a, b = document.start, document.stop
            if document.split != split or b - a <= CONTEXT or not keep(document.id):
                continue
            parts.append(store.vectors[a:b])
            starts.append(offset)
            offset += b - a
            stops.append(offset)
            shares.append(weights[number] if weights and number < len(weights) else 1.0)
    if not parts:
        raise ConfigError(f"no document of split {split!r} has more than {CONTEXT} vectors")
    if len(encoders) > 1:
        raise ConfigError("the stores come from different encoders: " + ", ".join(sorted(encoders)))
    return Corpus(
        gather(parts, device), np.array(starts), np.array(stops), np.array(shares), encoders.pop()
    )


def load_parts(
    folders: list[Path], split: str, device: str, weights: list[float] | None, dev_share: float
) -> tuple[Corpus, Corpus | None]:
    """What to train on, and the documents of the first store that are held out to choose by."""

    def held(document: str) -> bool:
        return is_dev(document, dev_share)

    corpus = load_corpus(folders, split, device, weights, lambda document: not held(document))
    return corpus, load_corpus(folders[:1], split, device, keep=held) if dev_share else None


def gather(parts: list[np.ndarray], device: str) -> Tensor:
    """All rows one after the other, fp16 ``[V, D]``.

    On the CPU they lie in an unnamed temporary file that is mapped into memory: its pages are the
    system's to drop, so a run needs memory for its batches and not for its corpus.
    """
    rows, dim = sum(len(part) for part in parts), parts[0].shape[1]
    if torch.device(device).type != "cpu":
        vectors = torch.empty((rows, dim), dtype=torch.float16, device=device)
        at = 0
        for part in parts:  # piece by piece: never two copies of the corpus in memory
            piece = torch.from_numpy(np.array(part, dtype=np.float16))
            vectors[at : at + len(part)] = piece.to(device)
            at += len(part)
        return vectors
    with tempfile.TemporaryFile(prefix="limbic-lvm-") as file:
        mapped = np.memmap(file, dtype=np.float16, mode="w+", shape=(rows, dim))
    at = 0
    for part in parts:
        mapped[at : at + len(part)] = part
        at += len(part)
    return torch.from_numpy(mapped)


def subset(corpus: Corpus, documents: np.ndarray) -> Corpus:
    """The corpus of these document numbers only, in that order, in memory of its own."""
    starts, stops = corpus.starts[documents], corpus.stops[documents]
    rows = corpus.vectors.cpu().numpy()
    ends = np.cumsum(stops - starts)
    return Corpus(
        gather([rows[a:b] for a, b in zip(starts, stops, strict=True)], str(corpus.vectors.device)),
        ends - (stops - starts),
        ends,
        corpus.weights[documents],
        corpus.encoder,
    )


@dataclass
class Batch:
    """``targets`` int64 ``[B]`` and ``bank`` int64 ``[N]`` index the corpus; ``place`` int64
    ``[B]`` is where in the bank the target stands; ``same`` bool ``[B, N]`` marks its document."""

    targets: Tensor
    bank: Tensor
    place: Tensor
    same: Tensor


def make_batch(corpus: Corpus, documents: np.ndarray) -> Batch:
    """The batch of these document numbers (each at most once)."""
    starts, stops = corpus.starts[documents], corpus.stops[documents]
    device = corpus.vectors.device
    bank = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    lengths = stops - starts
    owner = np.repeat(np.arange(len(lengths)), lengths)
    within = np.arange(len(bank)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    place = np.flatnonzero(within >= CONTEXT)
    owner_t = torch.as_tensor(owner, device=device)
    place_t = torch.as_tensor(place, device=device)
    bank_t = torch.as_tensor(bank, device=device)
    return Batch(bank_t[place_t], bank_t, place_t, owner_t[place_t][:, None] == owner_t[None])


def epoch_batches(corpus: Corpus, size: int, seed: int, epoch: int) -> Iterator[Batch]:
    """Batches of about ``size`` windows over one epoch, the same for the same seed and epoch.

    A document of weight w appears floor(w) times, and once more with probability w - floor(w).
    """
    rng = np.random.default_rng([seed, epoch])
    whole = np.floor(corpus.weights)
    times = whole + (rng.random(len(whole)) < corpus.weights - whole)
    for turn in range(int(times.max())):
        chosen = rng.permutation(np.flatnonzero(times > turn))
        windows = np.cumsum(corpus.stops[chosen] - corpus.starts[chosen] - CONTEXT)
        parts = max(1, round(windows[-1] / size))
        edges = np.searchsorted(windows, windows[-1] * np.arange(1, parts) / parts)
        for documents in np.split(chosen, edges):
            if len(documents):
                yield make_batch(corpus, documents)


def count_batches(corpus: Corpus, size: int) -> int:
    """About how many batches an epoch has."""
    windows = (corpus.stops - corpus.starts - CONTEXT) * corpus.weights
    return max(1, round(float(windows.sum()) / size))
