"""The served affect head's weights as a GGUF file of llama.cpp's BERT architecture.

They are the numbers that ``trainers.affect.head.weights`` multiplies out for PyTorch, so runtimes
are compared on the same weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
LAYERS = 6
_BLOCK_NAMES = {
    "query": "attn_q", "key": "attn_k", "value": "attn_v", "out": "attn_output", "up": "ffn_up",
    "down": "ffn_down", "norm1": "attn_output_norm", "norm2": "layer_output_norm",
}  # fmt: skip


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
