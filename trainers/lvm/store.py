"""Sentence vectors on disk: one memory-mapped float16 matrix, with document offsets.

A store is a folder with ``vectors.npy`` (float16 ``[N, D]``, unit norm up to rounding) and
``manifest.json`` (``encoder``, ``encoder_sha256``, ``dim`` and ``documents``, each with ``id``,
``start``, ``stop``, ``split``). The manifest is written last: a folder without one is not a store.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from trainers.lvm.errors import TooFewWindows, VectorError, VectorStoreError

CONTEXT = 5
VECTORS = "vectors.npy"
MANIFEST = "manifest.json"
CHECK_ROWS = 65_536  # rows looked at together: bounds the memory of a check


@dataclass(frozen=True, slots=True)
class Document:
    """Rows ``start`` up to, not including, ``stop`` of a store."""

    id: str
    start: int
    stop: int
    split: str


@dataclass(frozen=True)
class VectorStore:
    """An open store. ``vectors`` float16 ``[N, D]`` is a read-only memory map (or an array)."""

    vectors: np.ndarray
    documents: tuple[Document, ...]
    manifest: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def __post_init__(self) -> None:
        _check_documents(self.documents, len(self.vectors))
        starts = np.array([d.start for d in self.documents], dtype=np.int64)
        object.__setattr__(self, "_starts", starts)

    @classmethod
    def open(cls, folder: Path | str, *, encoder_sha256: str | None = None) -> VectorStore:
        """Open a store.

        Raises:
            VectorStoreError: no store, half-built, damaged, or (when ``encoder_sha256`` is given)
                made by another encoder.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        try:
            vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise VectorStoreError(f"{folder / VECTORS} cannot be read: {error}") from error
        if vectors.ndim != 2 or vectors.shape[1] != manifest["dim"]:
            raise VectorStoreError(
                f"{folder / VECTORS} has shape {vectors.shape}; "
                f"the manifest says {manifest['dim']} dimensions"
            )
        if encoder_sha256 is not None and manifest["encoder_sha256"] != encoder_sha256:
            raise VectorStoreError(
                f"{folder} was made by another encoder ({manifest['encoder']} "
                f"{manifest['encoder_sha256'][:12]}, wanted {encoder_sha256[:12]})"
            )
        try:
            documents = tuple(
                Document(str(d["id"]), int(d["start"]), int(d["stop"]), str(d["split"]))
                for d in manifest["documents"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise VectorStoreError(f"{folder / MANIFEST}: a document is malformed") from error
        return cls(vectors, documents, manifest, folder)

    @property
    def dim(self) -> int:
        """Dimensions of one vector."""
        return int(self.vectors.shape[1])

    @property
    def encoder_sha256(self) -> str:
        """Hash of the encoder that made the vectors; empty for a store made in memory."""
        return str(self.manifest.get("encoder_sha256", ""))

    @property
    def splits(self) -> dict[str, int]:
        """Documents in each split."""
        counts: dict[str, int] = {}
        for document in self.documents:
            counts[document.split] = counts.get(document.split, 0) + 1
        return counts

    def windows(self, split: str) -> np.ndarray:
        """Target rows of a split, int64 ``[W]``: row i with rows i-5..i in one document.

        Raises:
            TooFewWindows: the split has none.
        """
        parts = [
            np.arange(d.start + CONTEXT, d.stop, dtype=np.int64)
            for d in self.documents
            if d.split == split and d.stop - d.start > CONTEXT
        ]
        if not parts:
            known = ", ".join(f"{name} {count}" for name, count in sorted(self.splits.items()))
            raise TooFewWindows(
                f"no document of split '{split}' has more than {CONTEXT} sentences "
                f"(documents: {known or 'none'})"
            )
        return np.concatenate(parts)

    def document_of(self, indices: np.ndarray) -> np.ndarray:
        """Position in ``documents`` of each row, int64, the shape of ``indices``."""
        starts: np.ndarray = self._starts  # type: ignore[attr-defined]
        return np.searchsorted(starts, np.asarray(indices), side="right").astype(np.int64) - 1

    def rows(self, indices: np.ndarray) -> np.ndarray:
        """Vectors of these rows, float32 ``[..., D]``, made unit norm again after float16."""
        return unit(np.asarray(self.vectors[np.asarray(indices)], dtype=np.float32))

    def contexts(self, targets: np.ndarray) -> np.ndarray:
        """The five vectors before each target, oldest first, float32 ``[B, 5, D]``."""
        return self.rows(np.asarray(targets)[:, None] + np.arange(-CONTEXT, 0))

    def check_finite(self) -> None:
        """Raises VectorError when any value is NaN or infinite."""
        for start in range(0, len(self.vectors), CHECK_ROWS):
            block = np.asarray(self.vectors[start : start + CHECK_ROWS])
            bad = ~np.isfinite(block).all(axis=1)
            if bad.any():
                row = start + int(np.flatnonzero(bad)[0])
                raise VectorError(f"row {row} of {self.folder or 'the store'} is NaN or infinite")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors scaled to length 1 along the last axis; a zero vector stays zero."""
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.maximum(norms, 1e-12)


def store_in_memory(
    documents: list[np.ndarray], splits: list[str] | str = "valid", **manifest: Any
) -> VectorStore:
    """A store of these documents, each float ``[n, D]``; for tests and synthetic controls."""
    names = [splits] * len(documents) if isinstance(splits, str) else splits
    stops = np.cumsum([len(d) for d in documents])
    entries = tuple(
        Document(str(i), int(stop) - len(d), int(stop), name)
        for i, (d, stop, name) in enumerate(zip(documents, stops, names, strict=True))
    )
    return VectorStore(unit(np.concatenate(documents)).astype(np.float16), entries, manifest)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        why = "its build was interrupted" if folder.is_dir() else "there is no such folder"
        raise VectorStoreError(f"{folder} is not a vector store: {why} (run: limbic lvm vectors)")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise VectorStoreError(f"{path} is not JSON: {error}") from error
    missing = {"encoder", "encoder_sha256", "dim", "documents"} - set(manifest)
    if missing:
        raise VectorStoreError(f"{path} lacks {', '.join(sorted(missing))}")
    if not manifest["documents"]:
        raise VectorStoreError(f"{path} has no document boundaries")
    return dict(manifest)


def _check_documents(documents: tuple[Document, ...], rows: int) -> None:
    position = 0
    for document in documents:
        if document.start != position or document.stop <= document.start:
            raise VectorStoreError(
                f"document '{document.id}' starts at row {document.start}, expected {position}"
            )
        position = document.stop
    if position != rows:
        raise VectorStoreError(f"the documents cover {position} rows; the vectors have {rows}")
