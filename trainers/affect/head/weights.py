"""The served affect head's weights, out of its ONNX file: to train on, and to compare runtimes.

The file keeps matrices as int8 in blocks with a scale each; multiplied out they are the float32
weights of ``trainers.affect.head.network.AffectNet``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from trainers.encoder.word_table import ROWS, SCALES

Array = NDArray[np.float32]
ZERO = 128  # of symmetric 8-bit MatMulNBits
OURS = ("net.", "refit.")  # exported with the network; grafted by ``refit``


def served_weights(folder: Path) -> dict[str, Array]:
    """Float32 weights of an exported head's folder, by the names of ``AffectNet``."""
    graph = onnx.load(folder / "model.onnx").graph
    fixed = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            fixed[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    after = {name: node for node in graph.node for name in node.input}
    plain = (".bias", "norm.weight", "norm1.weight", "norm2.weight")
    found: dict[str, Array] = {
        _stem(name): np.asarray(value, np.float32)
        for name, value in fixed.items()
        if name.startswith(OURS) and name.endswith(plain)
    }
    for name, table in fixed.items():
        if name.endswith(f".weight{ROWS}"):
            stem = name.removesuffix(ROWS)
            found[_stem(stem)] = table.astype(np.float32) * fixed[f"{stem}{SCALES}"]
        elif name.startswith(OURS) and name.endswith(".weight") and table.ndim == 2:
            found[_stem(name)] = np.asarray(table, np.float32)  # small tables, kept as they were
    for node in graph.node:
        if node.op_type in ("MatMulNBits", "MatMul") and (layer := _layer_of(node, after, fixed)):
            found[f"{layer}.weight"] = _matrix(node, fixed)
    return found


def _matrix(node: Any, fixed: dict[str, NDArray[Any]]) -> Array:
    if node.op_type == "MatMul":
        return np.asarray(next(fixed[name] for name in node.input if name in fixed).T, np.float32)
    blocks, scales = fixed[node.input[1]], fixed[node.input[2]]
    rows = blocks.shape[0]
    whole = (blocks.astype(np.float32) - ZERO) * scales.reshape(rows, -1, 1)
    width = next(a.i for a in node.attribute if a.name == "K")
    return np.asarray(whole.reshape(rows, -1)[:, :width], np.float32)


def _layer_of(node: Any, after: dict[str, Any], fixed: dict[str, NDArray[Any]]) -> str | None:
    """The layer that a product belongs to, by the bias that is added to it."""
    add = after.get(node.output[0])
    for name in add.input if add is not None else ():
        if name in fixed and name.startswith(OURS) and name.endswith(".bias"):
            return _stem(name).removesuffix(".bias")
    return None


def _stem(name: str) -> str:
    return name.partition(".")[2]
