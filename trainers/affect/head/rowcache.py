"""What a frozen model says of rows, computed once and kept: NumPy alone.

A file belongs to one model and one set of token ids, by their hashes: another encoder or another
set reads nothing of it. It is written every ``EVERY`` rows: a killed run loses that many at most.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.affect.head.arrays import Prepared
from trainers.affect.head.measure import Outputs

EVERY = 4096


class RowCache:
    """Outputs by row, float32, in a file of ``folder``.

    ``model`` is the hash of the weights. Without a folder nothing is kept.
    """

    def __init__(self, folder: Path | None, name: str, model: str, data: Prepared) -> None:
        tokens = hashlib.sha256(data.ids.tobytes() + data.starts.tobytes() + data.kinds.tobytes())
        self.path = None
        if folder is not None:
            self.path = folder / f"{name}-{model[:16]}-{tokens.hexdigest()[:16]}.npz"
        self._total = len(data.part)

    def read(self) -> tuple[NDArray[np.int64], Outputs]:
        """(rows, their outputs) so far; a file that cannot be read counts as none."""
        if self.path is None or not self.path.exists():
            return np.zeros(0, np.int64), {}
        try:
            with np.load(self.path) as file:
                found = {key: file[key] for key in file.files}
        except (OSError, ValueError, zipfile.BadZipFile):
            return np.zeros(0, np.int64), {}
        return found.pop("rows"), found

    def outputs(
        self, rows: NDArray[np.int64], run: Callable[[NDArray[np.int64]], Outputs]
    ) -> Outputs:
        """Output name → array over all N rows of the set, NaN where not asked for.

        ``run`` is called with the rows that are not there yet, some at a time, and returns their
        outputs in that order.
        """
        known, kept = self.read()
        missing = np.setdiff1d(rows, known)
        for start in range(0, len(missing), EVERY):
            part = missing[start : start + EVERY]
            fresh = run(part)
            kept = {
                key: np.concatenate([kept[key], value]) if key in kept else value
                for key, value in fresh.items()
            }
            known = np.concatenate([known, part])
            self._write(known, kept)
        whole = {}
        wanted = np.isin(known, rows)
        for key, value in kept.items():
            whole[key] = np.full((self._total, *value.shape[1:]), np.nan, np.float32)
            whole[key][known[wanted]] = value[wanted]
        return whole

    def _write(self, rows: NDArray[np.int64], kept: Outputs) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f"{self.path.name}.part")
        arrays: dict[str, Any] = {"rows": rows, **kept}
        with part.open("wb") as file:
            np.savez(file, **arrays)
        part.replace(self.path)
