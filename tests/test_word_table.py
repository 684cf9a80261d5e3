"""Word vectors in int8 with a scale a row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

onnx = pytest.importorskip("onnx")

from trainers.encoder.word_table import (  # noqa: E402
    FEWEST_ROWS,
    quantise_word_tables,
    quantised_rows,
)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-8, 8, width=32, allow_subnormal=False),
    )
)
def test_every_row_comes_back_to_half_a_step_of_its_own(table: np.ndarray) -> None:
    rows, scales = quantised_rows(table)
    assert rows.dtype == np.int8 and scales.shape == (len(table), 1) and (scales > 0).all()
    gap = np.abs(rows.astype(np.float64) * scales - table)
    assert (gap <= scales * 0.5001).all()
    assert (np.abs(rows).max(axis=1) == np.where(np.abs(table).max(axis=1) > 0, 127, 0)).all()


def test_a_graph_looks_words_up_as_before_and_keeps_small_tables_as_they_are() -> None:
    rng = np.random.default_rng(0)
    words = (rng.normal(size=(FEWEST_ROWS, 8)) * rng.uniform(0.1, 9, (FEWEST_ROWS, 1))).astype("f4")
    kinds = rng.normal(size=(2, 8)).astype("f4")
    ids = np.array([[0, 5, 1023], [7, 7, 0]])
    model = two_lookups(words, kinds)
    before = run(model, ids, ids % 2)
    assert quantise_word_tables(model) == 1
    tensors = {t.name: t.data_type for t in model.graph.initializer}
    assert tensors == {
        "words.int8": onnx.TensorProto.INT8,
        "words.scale": onnx.TensorProto.FLOAT,
        "kinds": onnx.TensorProto.FLOAT,
    }
    after = run(model, ids, ids % 2)
    step = np.abs(words[ids]).max(axis=2, keepdims=True) / 127
    # Both lookups of the table read the same rows.
    assert (np.abs(after - before) <= 2 * 0.501 * step).all() and not np.array_equal(after, before)


def two_lookups(words: np.ndarray, kinds: np.ndarray) -> Any:
    """words[ids] + words[ids] + kinds[which]."""
    helper, tensor = onnx.helper, onnx.numpy_helper.from_array
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["first"], "first"),
        helper.make_node("Gather", ["words", "ids"], ["second"], "second"),
        helper.make_node("Gather", ["kinds", "which"], ["third"], "third"),
        helper.make_node("Add", ["first", "second"], ["both"]),
        helper.make_node("Add", ["both", "third"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, k, ["b", "t"]) for n, k in (("ids", 7), ("which", 7))]
    out = helper.make_tensor_value_info("y", 1, ["b", "t", words.shape[1]])
    graph = helper.make_graph(
        nodes, "g", ends, [out], [tensor(words, "words"), tensor(kinds, "kinds")]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: Any, ids: np.ndarray, which: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    found: np.ndarray = session.run(None, {"ids": ids, "which": which})[0]
    return found
