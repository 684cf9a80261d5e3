"""The exported head on prepared rows: the file that is served, run without PyTorch."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from brain.errors import ConfigError
from sidecars.onnx_text import TextModel
from trainers.affect.head.arrays import Prepared
from trainers.affect.head.measure import Outputs
from trainers.affect.head.rowcache import RowCache

BATCH = 32


def opened(
    parser: argparse.ArgumentParser, data: Path, model: Path, *, threads: int = 2
) -> tuple[Prepared, TextModel]:
    """The set and the exported head of a command, or its end in one line: 2 for a file that is no
    set, 78 for a folder that is no model."""
    try:
        return Prepared.load(data), TextModel.load(model, threads=threads)
    except ValueError as error:
        parser.error(str(error))
    except ConfigError as error:
        parser.exit(error.exit_code, f"{parser.prog}: {error}\n")


def run_onnx(
    model: TextModel,
    data: Prepared,
    rows: NDArray[np.int64],
    *,
    names: tuple[str, ...] | None = None,
    folder: Path | None = None,
) -> Outputs:
    """Outputs ``names`` (all) over all N rows, NaN where not run; kept in ``folder`` if given."""
    wanted = names or model.outputs

    def run(part: NDArray[np.int64]) -> Outputs:
        found: Outputs = {}
        # By length: a batch is padded to its longest row, and padding costs time alone.
        order = np.argsort(data.starts[part + 1] - data.starts[part], kind="stable")
        for start in range(0, len(part), BATCH):
            places = order[start : start + BATCH]
            ids, mask, kinds = data.batch(part[places])
            feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": kinds}
            for name, array in model.infer(feed).items():
                if name in wanted:
                    shape = (len(part), *array.shape[1:])
                    found.setdefault(name, np.empty(shape, np.float32))[places] = array
        return found

    name = str(model.manifest.get("name", "model"))
    return RowCache(folder, f"{name}-{'-'.join(wanted)}", model.sha256, data).outputs(rows, run)


def answers(
    model: TextModel, data: Prepared, rows: NDArray[np.int64], folder: Path | None = None
) -> Outputs:
    """What the sidecar would say: every output but the vector, axes and arousal within [-1, 1]."""
    names = tuple(name for name in model.outputs if name != "embedding")
    found = run_onnx(model, data, rows, names=names, folder=folder)
    # int8 can leave tanh by a hair; the sidecar clips it, too.
    return {k: np.clip(v, -1, 1) if k in ("axes", "arousal") else v for k, v in found.items()}
