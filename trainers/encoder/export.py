"""Export a text model to int8 ONNX, verified: ``python -m trainers.encoder.export --out FOLDER``.

Weights and, at run time, activations are quantised to int8 in blocks of 64 values (ONNX Runtime's
MatMulNBits). One scale for a whole activation tensor, as plain dynamic quantisation has it, costs
ten times as much: some dimensions of MiniLM are far larger than the rest (mean cosine .989 instead
of .998 over 120 chat turns). Word vectors are looked up, not multiplied: int8 with a scale a row.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sidecars.onnx_text import MODEL_FILE, TOKENIZER_FILE, TextModel
from trainers.encoder.manifest import write_manifest
from trainers.encoder.minilm import MiniLM, load_minilm, package_folder, pool
from trainers.encoder.word_table import quantise_word_tables

BLOCK = 64
INT8_SUMS = 4  # accuracy_level of MatMulNBits: multiply int8 by int8
INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


class SentenceEncoder(nn.Module):
    """MiniLM → one unit vector a text, [B, 384]."""

    def __init__(self, body: MiniLM) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        hidden = self.body(input_ids, attention_mask, token_type_ids)
        vector = pool(hidden, attention_mask, token_type_ids)
        return vector / vector.norm(dim=1, keepdim=True).clamp(min=1e-12)


def export_onnx(model: nn.Module, outputs: list[str], path: Path, *, quantise: bool = True) -> None:
    """Write ``model`` (three int64 [B, T] inputs) as ONNX with free batch and length."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    example = torch.ones((2, 8), dtype=torch.int64)
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    axes |= {name: {0: "batch"} for name in outputs}
    model.eval()
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "full.onnx"
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                (example, example, torch.zeros_like(example)),
                str(full),
                input_names=INPUTS,
                output_names=outputs,
                dynamic_axes=axes,
                opset_version=17,
                dynamo=False,
            )
        if not quantise:
            shutil.copyfile(full, path)
            return
        logging.getLogger().setLevel(logging.ERROR)  # the quantiser reports every node
        products = MatMulNBitsQuantizer(
            onnx.load(full), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=INT8_SUMS
        )
        products.process()
        whole = products.model.model
        quantise_word_tables(whole)
        path.write_bytes(whole.SerializeToString())


def copy_tokenizer(folder: Path) -> None:
    """The package's tokenizer, without the padding it would add to every text."""
    tokenizer = json.loads((package_folder() / TOKENIZER_FILE).read_text())
    tokenizer["padding"] = None
    tokenizer["truncation"] = None
    text = json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":"))
    (folder / TOKENIZER_FILE).write_text(text)


def agreement(folder: Path, model: nn.Module, texts: Sequence[str]) -> tuple[float, float]:
    """(mean, lowest) cosine between the exported and the PyTorch vector over ``texts``."""
    exported = TextModel.load(folder)
    vectors = exported.run(texts)["embedding"]
    cosines = []
    for text, vector in zip(texts, vectors, strict=True):
        ids = exported.read(text, "").ids
        row = torch.tensor([ids])
        with torch.inference_mode():
            exact = model(row, torch.ones_like(row), torch.zeros_like(row))[0].numpy()
        cosines.append(float(exact @ vector / np.linalg.norm(vector) / np.linalg.norm(exact)))
    return float(np.mean(cosines)), float(np.min(cosines))


def main(argv: list[str] | None = None) -> int:
    """Export the sentence encoder and check it on real sentences; exit 1 below .995."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sentences", type=Path, help="a text a line, to compare on")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    model = SentenceEncoder(load_minilm()).eval()
    copy_tokenizer(args.out)
    export_onnx(model, ["embedding"], args.out / MODEL_FILE)
    write_manifest(
        args.out, name="all-MiniLM-L6-v2", version="1", kind="encoder", dim=384, max_tokens=256
    )
    pool_file = Path(__file__).parents[1] / "affect" / "pool" / "real_turns.jsonl"
    lines = (args.sentences or pool_file).read_text().splitlines()[:300]
    texts = [json.loads(line)["text"] if line.startswith("{") else line for line in lines]
    mean, lowest = agreement(args.out, model, texts)
    print(
        f"{args.out}: cosine with PyTorch over {len(texts)} texts: {mean:.4f} (lowest {lowest:.4f})"
    )
    return 0 if mean >= 0.995 else 1


if __name__ == "__main__":
    raise SystemExit(main())
