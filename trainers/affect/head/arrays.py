"""The prepared data set: one ``.npz`` of token ids and targets; needs only NumPy to read.

A target nobody measured is NaN and every loss and figure masks it. ``part`` says what a row is for;
gold and the two sides of minimal pairs are in the file to be measured on, and ``rows("train")`` can
never return them.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

AXES = ("valence", "intimacy", "tension")
TAGS = (
    "hostile_intimacy", "aggressive_distance", "neutral_but_close", "flat_numb", "fearful_urgent",
    "playful_neutral", "safety_edge", "everyday_warm", "everyday_neutral",
)  # fmt: skip
PARTS = ("train", "dev", "test", "gold", "pair_a", "pair_b", "unlabelled")
SOURCES = ("llm_label", "emobank", "intimacy", "goemotions", "xed", "semeval", "chat", "pair",
           "variant", "prose")  # fmt: skip
MAX_TOKENS = 128
_PER_ROW = (
    "axes", "shares", "tags", "emotions", "film", "intensity", "weight", "part", "source", "weak",
    "clean_pair", "pair_axis", "groups",
)  # fmt: skip


def digest_of(arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over names, types, shapes and values of all arrays: another label is another set."""
    found = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        found.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


@dataclass(frozen=True)
class Prepared:
    """N rows. ``ids``/``kinds`` are flat, row i at ``starts[i]:starts[i+1]``; targets are float32:
    ``axes`` [N, 3], ``shares`` [N, 3] (weight of each axis), ``tags``, ``emotions``, ``film``,
    ``intensity`` [N, K]; ``weight`` [N]; ``part``, ``source`` codes [N]; ``groups`` [N]: the
    rows of one document, frame, thread or minimal pair share a number; they are resampled together.
    ``digest`` names the set: ``digest_of`` its arrays, or what an older ``prepare`` hashed.
    """

    ids: NDArray[np.uint16]
    kinds: NDArray[np.uint8]
    starts: NDArray[np.int64]
    axes: NDArray[np.float32]
    shares: NDArray[np.float32]
    tags: NDArray[np.float32]
    emotions: NDArray[np.float32]
    film: NDArray[np.float32]
    intensity: NDArray[np.float32]
    weight: NDArray[np.float32]
    part: NDArray[np.uint8]
    source: NDArray[np.uint8]
    weak: NDArray[np.bool_]
    clean_pair: NDArray[np.bool_]
    pair_axis: NDArray[np.int8]
    groups: NDArray[np.int32]
    digest: str

    @classmethod
    def load(cls, path: str | Path) -> Prepared:
        """Read what ``prepare`` wrote.

        Raises:
            ValueError: it is not such a file, or an older ``prepare`` wrote it.
        """
        try:
            with np.load(path) as file:
                found = {name: file[name] for name in file.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: cannot be read ({error}); run prepare again") from error
        wanted = [field.name for field in fields(cls)]
        if missing := sorted(set(wanted) - set(found)):
            raise ValueError(f"{path}: lacks {', '.join(missing)}; run prepare again")
        found["digest"] = str(found["digest"])
        return cls(**{name: found[name] for name in wanted})

    def targets_of(self, rows: NDArray[np.int64]) -> Prepared:
        """The same set with ``rows`` alone, repeated where they repeat, and without their tokens:
        what figures are computed on."""
        changed = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name in _PER_ROW}
        return replace(self, **changed, starts=self.starts[:0])

    def rows(self, part: str, source: str | None = None) -> NDArray[np.int64]:
        """Indices of one part, of one source or of all."""
        mask = self.part == PARTS.index(part)
        if source is not None:
            mask &= self.source == SOURCES.index(source)
        return np.flatnonzero(mask)

    def batch(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """(input_ids, attention_mask, token_type_ids) of some rows, padded, int64 [B, T]."""
        lengths = self.starts[rows + 1] - self.starts[rows]
        shape = (len(rows), int(lengths.max()))
        places = np.arange(shape[1])
        mask = places[None, :] < lengths[:, None]
        flat = np.where(mask, self.starts[rows][:, None] + places[None, :], 0)
        ids = np.where(mask, self.ids[flat], 0).astype(np.int64)
        kinds = np.where(mask, self.kinds[flat], 0).astype(np.int64)
        return ids, mask.astype(np.int64), kinds
