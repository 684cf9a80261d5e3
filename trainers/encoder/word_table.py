"""A graph's table of word vectors as int8, with a scale for every row.

Rows differ: the largest value of MiniLM's table is six times what a row has for its largest in the
middle of the table, so one scale for all costs six times the error of a scale each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEWEST_ROWS = 1024  # smaller tables (positions, kinds) stay float32: they save nothing
ROWS, SCALES = ".int8", ".scale"


def quantise_word_tables(model: Any) -> int:
    """Replace each Gather from a large float32 table [V, D] by one of int8 rows and one of their
    scales [V, 1], in place; returns how many there were."""
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    done: set[str] = set()
    for node in graph.node:
        table = tensors.get(node.input[0]) if node.op_type == "Gather" else None
        if table is None or not _is_word_table(table):
            nodes.append(node)
            continue
        name, (end,) = table.name, node.output
        if name not in done:
            done.add(name)
            rows, scales = quantised_rows(numpy_helper.to_array(table))
            graph.initializer.remove(table)
            graph.initializer.append(numpy_helper.from_array(rows, name + ROWS))
            graph.initializer.append(numpy_helper.from_array(scales, name + SCALES))
        ids = node.input[1]
        nodes += [
            helper.make_node("Gather", [name + ROWS, ids], [f"{end}.rows"], f"{end}/rows"),
            helper.make_node("Gather", [name + SCALES, ids], [f"{end}.scales"], f"{end}/scales"),
            helper.make_node(
                "Cast", [f"{end}.rows"], [f"{end}.wide"], f"{end}/wide", to=TensorProto.FLOAT
            ),
            helper.make_node("Mul", [f"{end}.wide", f"{end}.scales"], [end], f"{end}/scaled"),
        ]
    del graph.node[:]
    graph.node.extend(nodes)
    return len(done)


def quantised_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """[V, D] → int8 [V, D] and float32 scales [V, 1]; their product is the table, to half a step
    of each row."""
    largest = np.abs(table).max(axis=1, keepdims=True)
    scales = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    return np.round(table / scales).astype(np.int8), scales


def _is_word_table(tensor: Any) -> bool:
    return (
        tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and int(tensor.dims[0]) >= FEWEST_ROWS
    )
