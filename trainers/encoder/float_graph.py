"""The float32 graph of an exported model: ``python -m trainers.encoder.float_graph FOLDER``.

It adds ``float32.onnx`` to a folder with an int8 ``model.onnx`` and renews the manifest's hashes;
``model.onnx`` stays as it is, byte for byte. Each int8 product (MatMulNBits) becomes a
DequantizeLinear in the same blocks and a float32 product. Weights are not stored twice: a tensor of
the graph names the range of bytes that it has in ``model.onnx`` (ONNX's external data), and ONNX
Runtime multiplies them out once, when it loads the graph. A graph is made for one ``model.onnx``,
whose SHA-256 it holds: whoever writes that file anew makes the graph anew.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, version_converter

from brain.errors import EXIT_CONFIG, ConfigError
from sidecars.onnx_text import FLOAT_FILE, MODEL_FILE, WEIGHTS_SHA256, TextModel, read_manifest
from trainers.encoder.manifest import renew_manifest

OPSET, IR_VERSION = 21, 10  # the first that dequantise in blocks
ZERO = 128  # of symmetric 8-bit MatMulNBits
KEPT_BYTES = 1024  # smaller tensors stand in the graph itself
SENTENCES = ("Good morning.", "You lied to me again, and you know it!", "i feel nothing these days")


def write_float_graph(folder: Path) -> Path:
    """Write ``float32.onnx`` beside the ``model.onnx`` of a folder; returns its path.

    Raises:
        ValueError: the model has no int8 products in blocks, as ``export_onnx`` makes them.
    """
    weights = (folder / MODEL_FILE).read_bytes()
    model = version_converter.convert_version(onnx.load_from_string(weights), OPSET)
    model.ir_version = IR_VERSION
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[Any] = []
    for node in graph.node:
        nodes += _in_float32(node, tensors) if node.op_type == "MatMulNBits" else [node]
    if len(nodes) == len(graph.node):
        raise ValueError(f"{folder / MODEL_FILE}: no int8 products; it was not exported in blocks")
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    for tensor in tensors.values():
        _refer(tensor, weights)
        graph.initializer.append(tensor)
    helper.set_model_props(model, {WEIGHTS_SHA256: hashlib.sha256(weights).hexdigest()})
    path = folder / FLOAT_FILE
    path.write_bytes(model.SerializeToString())
    return path


def _in_float32(node: Any, tensors: dict[str, Any]) -> list[Any]:
    """x [.., K] by int8 blocks [N, K / block, block] with scales → two nodes, weights as [N, K]."""
    known = {attribute.name: attribute.i for attribute in node.attribute}
    rows, width, block = known["N"], known["K"], known["block_size"]
    if known["bits"] != 8 or width % block or len(node.input) != 3:
        raise ValueError(f"{node.name}: not symmetric int8 in whole blocks")
    source, blocks, scales = node.input
    shape = [rows, width // block]
    for name, dims in ((blocks, [rows, width]), (scales, shape)):
        del tensors[name].dims[:]
        tensors[name].dims.extend(dims)
    zeros = f"zeros.{rows}.{shape[1]}"
    if zeros not in tensors:
        tensors[zeros] = numpy_helper.from_array(np.full(shape, ZERO, np.uint8), zeros)
    weight = f"{blocks}.float32"
    return [
        helper.make_node(
            "DequantizeLinear", [blocks, scales, zeros], [weight], axis=1, block_size=block
        ),
        # Transposed while it multiplies: a Transpose would be one more copy while loading.
        helper.make_node(
            "FusedMatMul", [source, weight], list(node.output), node.name, domain="com.microsoft",
            transB=1,
        ),
    ]  # fmt: skip


def _refer(tensor: Any, weights: bytes) -> None:
    """Replace a large tensor's bytes by where they stand in ``model.onnx``."""
    if len(tensor.raw_data) < KEPT_BYTES or (start := weights.find(tensor.raw_data)) < 0:
        return
    where = {"location": MODEL_FILE, "offset": start, "length": len(tensor.raw_data)}
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in where.items():
        tensor.external_data.add(key=key, value=str(value))


def largest_gap(folder: Path, texts: Sequence[str] = SENTENCES) -> float:
    """How far float32 and int8 products are apart: of the first output, the largest difference.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    a, b = (TextModel.load(folder, products=products) for products in ("int8", "float32"))
    name = a.outputs[0]
    return float(np.abs(a.run(texts)[name] - b.run(texts)[name]).max())


def main(argv: list[str] | None = None) -> int:
    """Add the graph to a folder; exit 78 when the folder is not what its manifest says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="an exported model")
    folder = parser.parse_args(argv).folder
    try:
        read_manifest(folder)
        path = write_float_graph(folder)
        renew_manifest(folder)
        gap = largest_gap(folder)
    except (ConfigError, ValueError) as error:
        print(f"float_graph: {error}", file=sys.stderr)
        return EXIT_CONFIG
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB; largest gap to int8 products {gap:.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
