"""``python -m trainers.affect.head.refit``: a head of an exported file, fitted without its run.

    python -m trainers.affect.head.refit --data FILE.npz --model FOLDER --out FOLDER

The heads of an exported file are float32 products on one pooled vector a message, so a linear head
can be fitted on these vectors and written into the graph: no PyTorch, no GPU, and the other outputs
stay what they were, bit for bit. It fits **arousal**: ridge on EmoBank's dev rows alone, with
the penalty that is best in five folds of whole documents. Train rows would teach nothing new: the
encoder was trained on them and its vectors already give their labels away. The gate: every other
output is unchanged on gold and pairs, and arousal, by folds, is better than what the tension axis
says of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import Ridge
from tokenizers import Tokenizer

from sidecars.onnx_text import MANIFEST_FILE, MODEL_FILE, TOKENIZER_FILE, TextModel
from trainers.affect.head import measure
from trainers.affect.head.arrays import Prepared
from trainers.affect.head.report import WEIGHTS
from trainers.affect.head.served import opened, run_onnx
from trainers.encoder.float_graph import write_float_graph
from trainers.encoder.manifest import write_manifest

HEAD = "net.tags.weight"  # any head: its other input is the pooled vector
POOLED, AROUSAL = "pooled", "arousal"
FOLDS = 5
PENALTIES = (30.0, 100.0, 300.0, 1000.0, 3000.0)
Array = NDArray[np.float32]


def pooled_name(graph: Any) -> str:
    """The tensor that all heads read.

    Raises:
        ValueError: not an affect head of this project.
    """
    for node in graph.node:
        if HEAD in node.input:
            return str(node.input[0])
    raise ValueError("the model has no head that reads a pooled vector")


def with_pooled(folder: Path) -> TextModel:
    """The exported file with one more output, its pooled vector [N, 384]."""
    model = onnx.load(str(folder / MODEL_FILE))
    graph = model.graph
    graph.node.append(helper.make_node("Identity", [pooled_name(graph)], [POOLED]))
    graph.output.append(
        helper.make_tensor_value_info(POOLED, TensorProto.FLOAT, ["batch", "width"])
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER_FILE))
    return TextModel(session, tokenizer, json.loads((folder / MANIFEST_FILE).read_text()))


def fit_arousal(data: Prepared, pooled: Array) -> tuple[Array, float, dict[str, float]]:
    """Weights [384] and bias before tanh, and r on dev, out of fold, by penalty."""
    dev = data.rows("dev", "emobank")
    x, wanted = pooled[dev], np.arctanh(np.clip(data.axes[dev, 2], -0.95, 0.95))
    fold = measure.folds_of(data.groups[dev], FOLDS)
    scores = {}
    for penalty in PENALTIES:
        guess = np.zeros(len(dev), np.float32)
        for i in range(FOLDS):
            inside = fold == i
            if inside.any():
                model = Ridge(alpha=penalty).fit(x[~inside], wanted[~inside])
                guess[inside] = model.predict(x[inside])
        scores[penalty] = measure.pearson(guess, data.axes[dev, 2])
    model = Ridge(alpha=max(scores, key=scores.__getitem__)).fit(x, wanted)
    found = {f"penalty {penalty:g}": r for penalty, r in scores.items()}
    return model.coef_.astype(np.float32), float(model.intercept_), found


def graft(source: Path, target: Path, weight: Array, bias: float) -> None:
    """Write the exported model with an output ``arousal`` [N]; replaces one that is there."""
    model = onnx.load(str(source))
    graph = model.graph
    names = [f"refit.{AROUSAL}.{part}" for part in ("weight", "bias", "axis")]
    kept = [o for o in graph.output if o.name != AROUSAL]
    nodes = [n for n in graph.node if not {AROUSAL, *names} & {*n.output, *n.input}]
    starts = [i for i in graph.initializer if i.name not in names]
    for field, left in ((graph.output, kept), (graph.node, nodes), (graph.initializer, starts)):
        del field[:]
        field.extend(left)
    values: list[NDArray[Any]] = [
        weight[:, None],
        np.array([bias], np.float32),
        np.array([1], np.int64),
    ]
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for value, name in zip(values, names, strict=True)
    )
    product, total, flat = (f"refit.{AROUSAL}/{step}" for step in ("product", "sum", "flat"))
    graph.node.extend([
        helper.make_node("MatMul", [pooled_name(graph), names[0]], [product]),
        helper.make_node("Add", [product, names[1]], [total]),
        helper.make_node("Squeeze", [total, names[2]], [flat]),
        helper.make_node("Tanh", [flat], [AROUSAL]),
    ])  # fmt: skip
    graph.output.append(helper.make_tensor_value_info(AROUSAL, TensorProto.FLOAT, ["batch"]))
    onnx.checker.check_model(model)
    target.write_bytes(model.SerializeToString())


def changed(before: TextModel, after: TextModel, data: Prepared, folder: Path | None) -> list[str]:
    """Names of outputs of ``before`` that ``after`` gives otherwise, on gold and pairs."""
    rows = np.concatenate([data.rows(part) for part in ("gold", "pair_a", "pair_b")])
    old, new = run_onnx(before, data, rows), run_onnx(after, data, rows)
    return [k for k, v in old.items() if k != AROUSAL and not np.array_equal(v[rows], new[k][rows])]


def main(argv: list[str] | None = None) -> int:
    """Fit, write, compare. Exit codes: 0, 1 the gate failed, 2 usage, 78 bad model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--model", type=Path, default=WEIGHTS, help="an exported folder")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--version", default="2", help="of the model that is written")
    parser.add_argument("--cache", type=Path, help="folder that keeps what the model said")
    args = parser.parse_args(argv)
    if not args.data.is_file():
        parser.error(f"{args.data}: no such file; trainers.affect.head.prepare makes it")
    data, before = opened(parser, args.data, args.model)
    dev = data.rows("dev", "emobank")
    print(f"{len(dev)} rows through {args.model}", flush=True)
    names = ("axes", "spread", "tags", "emotions", POOLED)
    out = run_onnx(with_pooled(args.model), data, dev, names=names, folder=args.cache)
    weight, bias, scores = fit_arousal(data, out[POOLED])
    tension = measure.pearson(out["axes"][dev, 2], data.axes[dev, 2])
    print(json.dumps({"r on dev": {"tension axis": tension, **scores}}, indent=1))
    args.out.mkdir(parents=True, exist_ok=True)
    if args.out.resolve() != args.model.resolve():
        shutil.copyfile(args.model / TOKENIZER_FILE, args.out / TOKENIZER_FILE)
    part = args.out / f"{MODEL_FILE}.part"
    graft(args.model / MODEL_FILE, part, weight, bias)
    part.replace(args.out / MODEL_FILE)
    write_float_graph(args.out)
    fields = {k: v for k, v in before.manifest.items() if k != "files"}
    write_manifest(args.out, **fields | {"version": args.version})
    differ = changed(before, TextModel.load(args.out, threads=2), data, args.cache)
    if differ:
        print(f"gate: {', '.join(differ)} changed")
    return 1 if differ or max(scores.values()) <= tension else 0


if __name__ == "__main__":
    raise SystemExit(main())
