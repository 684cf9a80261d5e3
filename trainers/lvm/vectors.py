"""Corpus to vector store: encode, leave out near-copies, write; a stopped build can go on.

A build works in ``OUT.building``: parts of whole documents, each written beside its place and moved
there when complete. When all parts exist they are joined and the folder is renamed to ``OUT``, so
``OUT`` is either absent or whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trainers.lvm.corpora import Corpus, TextDocument, corpus_file, read_documents
from trainers.lvm.errors import VectorError, VectorStoreError
from trainers.lvm.store import MANIFEST, VECTORS, VectorStore, unit

PART_TEXTS = 2048  # texts encoded between two writes: what an interruption can cost
FORMAT = 1
Progress = Callable[[int, int], None]


class Encoder(Protocol):
    """Texts to vectors. ``sha256`` identifies the weights."""

    name: str
    sha256: str

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 ``[N, D]`` for N texts."""


class TextModelEncoder:
    """The shipped torch-free sentence encoder, or another model folder of the same form."""

    def __init__(self, folder: Path | None = None, *, threads: int = 1) -> None:
        from sidecars.onnx_text import TextModel

        self._model = TextModel.load(folder or default_encoder_folder(), threads=threads)
        self.name = str(self._model.manifest.get("name", "encoder"))
        self.sha256 = self._model.sha256

    def encode(self, texts: list[str]) -> np.ndarray:
        """float32 ``[N, D]``."""
        return np.asarray(self._model.run(texts)["embedding"], dtype=np.float32)


def default_encoder_folder() -> Path:
    """Where the shipped encoder lies."""
    import sidecars

    return Path(sidecars.__file__).parent / "weights" / "minilm"


def build_store(
    name: str,
    corpus: Corpus,
    data: Path,
    out: Path,
    encoder: Encoder,
    *,
    limit: int | None = None,
    split: str | None = None,
    part_texts: int = PART_TEXTS,
    progress: Progress = lambda documents, texts: None,
) -> VectorStore:
    """Encode a corpus into a store at ``out``.

    Args:
        limit: read only so many documents of the corpus.
        split: keep only this split's documents, cleaned as in a store of them all.
        progress: called after each part with the documents and texts done so far.

    Raises:
        CorpusError: the corpus cannot be read.
        VectorStoreError: ``out`` exists, or holds an unfinished build with other settings.
        VectorError: the encoder returned NaN or another shape than promised.
    """
    if out.exists():
        raise VectorStoreError(f"{out} exists already: choose another folder or remove it")
    settings = _settings(name, corpus, data, encoder, limit, part_texts) | {"split": split}
    work = out.with_name(out.name + ".building")
    _start(work, settings)
    documents = texts = number = 0
    wanted = (d for d in read_documents(corpus, data, limit) if split in (None, d.split))
    for number, part in enumerate(_parts(wanted, part_texts), 1):
        if not _part(work, number - 1, "json").exists():
            _encode_part(part, work, number - 1, encoder, corpus.near_duplicate)
        documents += len(part)
        texts += sum(len(d.texts) for d in part)
        progress(documents, texts)
    if number == 0:
        shutil.rmtree(work)
        raise VectorStoreError(f"no text of {name} is left after cleaning")
    _join(work, number, settings)
    work.replace(out)
    return VectorStore.open(out)


def near_copies(vectors: np.ndarray, limit: float) -> np.ndarray:
    """Which rows stay, bool ``[n]``: those with cosine ≤ ``limit`` to every earlier row that stays.

    ``vectors`` is unit norm ``[n, D]``, one document.
    """
    keep = np.ones(len(vectors), dtype=bool)
    close = np.tril(vectors @ vectors.T > limit, -1)
    # Only rows with any close earlier row need the sequential look: few, as a rule.
    for row in np.flatnonzero(close.any(axis=1)):
        keep[row] = not (close[row] & keep).any()
    return keep


def _parts(documents: Iterator[TextDocument], size: int) -> Iterator[list[TextDocument]]:
    part: list[TextDocument] = []
    texts = 0
    for document in documents:
        part.append(document)
        texts += len(document.texts)
        if texts >= size:
            yield part
            part, texts = [], 0
    if part:
        yield part


def _encode_part(
    part: list[TextDocument], work: Path, number: int, encoder: Encoder, limit: float
) -> None:
    texts = [text for document in part for text in document.texts]
    vectors = checked(encoder.encode(texts), len(texts))
    kept: list[np.ndarray] = []
    entries: list[dict[str, Any]] = []
    start = 0
    for document in part:
        own = vectors[start : start + len(document.texts)]
        start += len(document.texts)
        own = own[near_copies(own, limit)]
        kept.append(own.astype(np.float16))
        entries.append({"id": document.id, "split": document.split, "rows": len(own)})
    path = _part(work, number, "npy")
    with path.with_suffix(".tmp").open("wb") as file:
        np.save(file, np.concatenate(kept))
    path.with_suffix(".tmp").replace(path)
    # The list of documents comes last: its presence says that the part is complete.
    _write_json(_part(work, number, "json"), {"texts": len(texts), "documents": entries})


def checked(vectors: np.ndarray, rows: int) -> np.ndarray:
    """The encoder's answer as unit float32 ``[rows, D]``; VectorError when it is unusable."""
    vectors = np.asarray(vectors, dtype=np.float32)
    if vectors.ndim != 2 or len(vectors) != rows:
        raise VectorError(f"the encoder gave shape {vectors.shape} for {rows} texts")
    if not np.isfinite(vectors).all():
        raise VectorError("the encoder gave NaN or infinite values")
    return unit(vectors)


def _join(work: Path, parts: int, settings: dict[str, Any]) -> None:
    lists = [json.loads(_part(work, i, "json").read_text()) for i in range(parts)]
    documents: list[dict[str, Any]] = []
    row = 0
    for entry in (entry for one in lists for entry in one["documents"]):
        documents.append(
            {
                "id": entry["id"],
                "start": row,
                "stop": row + entry["rows"],
                "split": entry["split"],
            }
        )
        row += entry["rows"]
    first = np.load(_part(work, 0, "npy"), mmap_mode="r", allow_pickle=False)
    dim = int(first.shape[1])
    joined = np.lib.format.open_memmap(
        work / VECTORS, mode="w+", dtype=np.float16, shape=(row, dim)
    )
    position = 0
    for i in range(parts):
        part = np.load(_part(work, i, "npy"), allow_pickle=False)
        if part.shape[1] != dim:
            raise VectorError(f"part {i} has {part.shape[1]} dimensions, the first has {dim}")
        joined[position : position + len(part)] = part
        position += len(part)
    joined.flush()
    del joined
    texts = sum(one["texts"] for one in lists)
    _write_json(
        work / MANIFEST,
        {**settings, "dim": dim, "texts": texts, "near_copies": texts - row}
        | {"documents": documents},
    )
    for path in [*work.glob("part-*"), work / "build.json"]:
        path.unlink()


def _settings(
    name: str, corpus: Corpus, data: Path, encoder: Encoder, limit: int | None, part_texts: int
) -> dict[str, Any]:
    digest = hashlib.sha256()
    with corpus_file(corpus, data).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {
        "format": FORMAT,
        "corpus": name,
        "kind": corpus.kind,
        "licence": corpus.licence,
        "corpus_sha256": digest.hexdigest(),
        "cleaning": corpus.model_dump(exclude={"path", "licence", "kind"}),
        "encoder": encoder.name,
        "encoder_sha256": encoder.sha256,
        "limit": limit,
        "part_texts": part_texts,
    }


def _start(work: Path, settings: dict[str, Any]) -> None:
    note = work / "build.json"
    if note.is_file():
        old = json.loads(note.read_text())
        changed = sorted(k for k in settings if old.get(k) != settings[k])
        if changed:
            raise VectorStoreError(
                f"{work} is an unfinished build with another {', '.join(changed)}: "
                "remove it to start afresh"
            )
    elif work.exists() and any(work.glob("*")) and not (work / "build.json.tmp").exists():
        raise VectorStoreError(f"{work} is in the way and is not an unfinished build")
    work.mkdir(parents=True, exist_ok=True)
    _write_json(note, settings)


def _part(work: Path, number: int, suffix: str) -> Path:
    return work / f"part-{number:05d}.{suffix}"


def _write_json(path: Path, value: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False))
    temporary.replace(path)
