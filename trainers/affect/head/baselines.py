"""What an affect head must beat, on the same rows: ``python -m trainers.affect.head.baselines``.

Word-piece TF-IDF + ridge and frozen sentence vectors + ridge, fitted on train a source and axis at
a time (so each sees its own scale); VADER's word valence (Hutto and Gilbert 2014) without its
rules; and "tension = −valence" on top of the frozen vectors.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import Ridge
from tokenizers import Tokenizer

from sidecars.onnx_text import TextModel
from trainers.affect.head import measure
from trainers.affect.head.arrays import SOURCES, Prepared
from trainers.affect.head.export import run_onnx
from trainers.encoder.minilm import VOCABULARY, package_folder

ALPHAS = {"tfidf": 1.0, "frozen": 0.3}
Array = NDArray[np.float32]
ENCODER = Path(__file__).parents[3] / "sidecars" / "weights" / "minilm"
PLACES = (("test", "emobank"), ("test", "intimacy"), ("gold", "llm_label"))


def counts(data: Prepared, rows: NDArray[np.int64]) -> csr_matrix:
    """Word pieces of the message itself, [N, vocabulary]."""
    where, what = [], []
    for i, row in enumerate(rows):
        part = slice(data.starts[row], data.starts[row + 1])
        own = data.ids[part][data.kinds[part] == 0]
        what.append(own)
        where.append(np.full(len(own), i))
    ones = np.ones(sum(map(len, what)), np.float32)
    return csr_matrix((ones, (np.concatenate(where), np.concatenate(what))),
                      shape=(len(rows), VOCABULARY))  # fmt: skip


def fitted(
    data: Prepared, features: Callable[[NDArray[np.int64]], Any], alpha: float
) -> dict[tuple[str, str], Array]:
    """Predicted axes [n, 3] of each place measured, by ridge on that place's own source."""
    found = {}
    for part, source in PLACES:
        train, test = data.rows("train", source), data.rows(part, source)
        axes = np.zeros((len(test), 3), np.float32)
        for i in range(3):
            known = train[~np.isnan(data.axes[train, i])]
            if len(known):
                model = Ridge(alpha=alpha).fit(features(known), data.axes[known, i])
                axes[:, i] = model.predict(features(test))
        found[part, source] = axes
    return found


def vader(data: Prepared, lexicon: Path) -> dict[tuple[str, str], Array]:
    """Mean word valence, as valence and, negated, as tension."""
    words = {}
    for line in lexicon.read_text(encoding="utf-8").splitlines():
        word, value, *_ = line.split("\t")
        words[word] = float(value) / 4
    tokenizer = Tokenizer.from_file(str(package_folder() / "tokenizer.json"))
    found = {}
    for part, source in PLACES:
        rows = data.rows(part, source)
        score = np.zeros(len(rows), np.float32)
        for i, row in enumerate(rows):
            ids = data.ids[data.starts[row] : data.starts[row + 1]]
            hits = [words[w] for w in tokenizer.decode(ids.tolist()).split() if w in words]
            score[i] = float(np.mean(hits)) if hits else 0.0
        found[part, source] = np.stack([score, np.zeros_like(score), -score], 1)
    return found


def figures(data: Prepared, predicted: dict[tuple[str, str], Array]) -> dict[str, float]:
    """r on each axis that a place measures."""
    found = {}
    for (part, source), axes in predicted.items():
        rows = data.rows(part, source)
        for i, axis in enumerate(("valence", "intimacy", "tension")):
            known = ~np.isnan(data.axes[rows, i])
            if known.sum() >= 20:
                name = "gold" if part == "gold" else source
                found[f"{name} {axis} r"] = measure.pearson(
                    axes[known, i], data.axes[rows[known], i]
                )
    return found


def compare(
    data: Prepared, own: dict[str, Array], lexicon: Path | None = None
) -> dict[str, dict[str, float]]:
    """All baselines, and models by their predicted axes ``[N, 3]``, on the same rows."""
    sources = [SOURCES.index(source) for _, source in PLACES]
    wanted = np.concatenate([data.rows("train", SOURCES[s]) for s in sources]
                            + [data.rows(part, source) for part, source in PLACES])  # fmt: skip
    table: dict[str, dict[str, float]] = {}
    if lexicon:
        table["VADER words"] = figures(data, vader(data, lexicon))
    weigh = TfidfTransformer(sublinear_tf=True).fit(counts(data, wanted))
    table["TF-IDF + ridge"] = figures(
        data, fitted(data, lambda rows: weigh.transform(counts(data, rows)), ALPHAS["tfidf"])
    )
    vectors = run_onnx(TextModel.load(ENCODER, threads=2), data, wanted)["embedding"]
    frozen = fitted(data, lambda rows: vectors[rows], ALPHAS["frozen"])
    table["frozen vectors + ridge"] = figures(data, frozen)
    mirrored = {k: np.stack([v[:, 0], v[:, 1], -v[:, 0]], 1) for k, v in frozen.items()}
    table["tension = −valence"] = figures(data, mirrored)
    for name, axes in own.items():
        table[name] = figures(data, {place: axes[data.rows(*place)] for place in PLACES})
    return table


def render(table: dict[str, dict[str, float]]) -> str:
    """The table for a terminal."""
    names = list(next(reversed(table.values())))
    lines = [f"{'':26}" + "".join(f"{name:>22}" for name in names)]
    for model, row in table.items():
        lines.append(f"{model:26}" + "".join(f"{row.get(name, 0.0):22.3f}" for name in names))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print and write the table of all baselines and of a model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lexicon", type=Path, help="vader_lexicon.txt")
    parser.add_argument("--model", type=Path, default=ENCODER.parent / "cahm")
    parser.add_argument("--out", type=Path, help="JSON")
    args = parser.parse_args(argv)
    data = Prepared.load(args.data)
    rows = np.concatenate([data.rows(part, source) for part, source in PLACES])
    axes = run_onnx(TextModel.load(args.model, threads=2), data, rows)["axes"]
    table = compare(data, {args.model.name: axes}, args.lexicon)
    print(render(table))
    if args.out:
        args.out.write_text(json.dumps(table, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
