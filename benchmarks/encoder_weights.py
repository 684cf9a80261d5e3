"""The served affect head's weights, out of its ONNX file: for PyTorch and for llama.cpp.

The file keeps matrices as int8 in blocks with a scale each; multiplied out they are the float32
weights of ``trainers.affect.head.network.AffectNet``, and the same numbers go into a GGUF file of
llama.cpp's BERT architecture. So runtimes are compared on the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[np.float32]
ZERO = 128  # of symmetric 8-bit MatMulNBits
LAYERS = 6
_BLOCK_NAMES = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output", "up": "ffn_up",
    "down": "ffn_down", "norm1": "attn_output_norm", "norm2": "layer_output_norm",
}  # fmt: skip


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
        name.removeprefix("net."): np.asarray(value, np.float32)
        for name, value in fixed.items()
        if name.startswith("net.") and name.endswith(plain)
    }
    for name, table in fixed.items():
        if name.endswith(".weight_quantized"):  # looked up, not multiplied: one scale serves all
            stem = name.removesuffix("_quantized")
            zero, scale = fixed[f"{stem}_zero_point"], fixed[f"{stem}_scale"]
            found[stem.removeprefix("net.")] = (table.astype(np.float32) - zero) * scale
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
        if name in fixed and name.startswith("net.") and name.endswith(".bias"):
            return str(name.removeprefix("net.").removesuffix(".bias"))
    return None


def write_gguf(weights: dict[str, Array], tokenizer: Path, path: Path, *, kind: str) -> None:
    """The encoder as a GGUF file for llama.cpp; ``kind`` is F16 or Q8_0, of the matrices."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name("limbic-affect-encoder")
    writer.add_context_length(512)
    writer.add_embedding_length(384)
    writer.add_feed_forward_length(1536)
    writer.add_block_count(LAYERS)
    writer.add_head_count(12)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(getattr(gguf.LlamaFileType, f"MOSTLY_{kind}"))
    _add_tokenizer(writer, tokenizer)
    for name, value in weights.items():
        if not name.startswith("body."):
            continue  # the heads are a few small products after the encoder
        target = _gguf_name(name.removeprefix("body."))
        small = value.ndim == 1 or target.startswith(("position_embd", "token_types"))
        kind_of = gguf.GGMLQuantizationType.F32 if small else gguf.GGMLQuantizationType[kind]
        writer.add_tensor(target, gguf.quants.quantize(value, kind_of), raw_dtype=kind_of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    if stem.startswith("blocks."):
        _, number, part = stem.split(".")
        return f"blk.{number}.{_BLOCK_NAMES[part]}.{end}"
    names = {"words": "token_embd", "positions": "position_embd", "kinds": "token_types"}
    return f"{names.get(stem, 'token_embd_norm')}.{end}"


def _add_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """WordPiece as llama.cpp wants it: a mark before what begins a word, none within it."""
    vocabulary = json.loads(path.read_text())["model"]["vocab"]
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    special = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    plain = [t if t in special else t[2:] if t.startswith("##") else f"\u2581{t}" for t in tokens]
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(plain)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_type_count(2)
    writer.add_unk_token_id(vocabulary["[UNK]"])
    writer.add_sep_token_id(vocabulary["[SEP]"])
    writer.add_pad_token_id(vocabulary["[PAD]"])
    writer.add_mask_token_id(vocabulary["[MASK]"])
    writer.add_bos_token_id(vocabulary["[CLS]"])
    writer.add_eos_token_id(vocabulary["[SEP]"])
