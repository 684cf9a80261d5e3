"""``python -m trainers.affect.head.left_out --data FILE.npz``: leave one cell out.

What is known of an archetype that nobody taught: ridge on the frozen vectors of the encoder that
ships is fitted to the pool's train rows without those of the archetype, and measured on its gold
rows; beside it stands the same ridge with them. Where the first is hardly worse, the axes carry
over to the cell. The served head cannot say: its encoder was trained on every cell. Needs no
PyTorch.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import Ridge

from trainers.affect.head import measure
from trainers.affect.head.arrays import TAGS, Prepared
from trainers.affect.head.baselines import PENALTIES, Array, Rows, frozen_vectors

FIGURES = ("mae", "sign", "worst_axis_sign")


def left_out(data: Prepared, vectors: Array) -> dict[str, dict[str, Any]]:
    """Archetype → its gold rows' figures ``with`` and ``without`` its train and dev rows.

    ``vectors`` [N, D], finite on the pool's train and dev rows and on gold.
    """
    train, dev = (data.rows(part, "llm_label") for part in ("train", "dev"))
    gold = data.rows("gold")

    def figures(without: int | None) -> dict[int, Any]:
        kept = [r if without is None else r[data.tags[r, without] != 1.0] for r in (train, dev)]
        axes = np.full((len(data.part), 3), np.nan, np.float32)
        axes[gold] = _best(data, vectors, *kept).predict(vectors[gold])
        return measure.cells(data, axes)

    whole = figures(None)
    return {
        TAGS[tag]: {"n": found["n"], "rows": int((data.tags[train, tag] == 1.0).sum()),
                    "with": _own(found), "without": _own(figures(tag)[tag])}
        for tag, found in whole.items()
    }  # fmt: skip


def _best(data: Prepared, vectors: Array, train: Rows, dev: Rows) -> Ridge:
    """All three axes at once, with the penalty whose mean r is best on ``dev``."""
    train = train[~np.isnan(data.axes[train]).any(1)]
    models = [Ridge(alpha=a).fit(vectors[train], data.axes[train]) for a in PENALTIES]
    known = dev[~np.isnan(data.axes[dev]).any(1)]
    if len(known) < 3:
        return models[len(models) // 2]

    def mean_r(model: Ridge) -> float:
        said = model.predict(vectors[known])
        return sum(measure.pearson(said[:, i], data.axes[known, i]) for i in range(3)) / 3

    return max(models, key=mean_r)


def _own(found: dict[str, Any]) -> dict[str, float]:
    return {name: found[name] for name in FIGURES}


def render(table: dict[str, dict[str, Any]]) -> str:
    """The table for a terminal: with the archetype's train rows and without."""
    lines = [f"{'archetype':20} {'gold':>4} {'train':>6}   mean error    signs        worst axis"]
    for tag, row in table.items():
        pairs = [f"{row['with'][name]:.3f} {row['without'][name]:.3f}" for name in FIGURES]
        lines.append(f"{tag:20} {row['n']:4} {row['rows']:6}   " + "  ".join(pairs))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table; exit code 0, or 2 for usage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--cache", type=Path, help="folder that keeps the frozen vectors")
    parser.add_argument("--json", type=Path, help="also write the table here")
    args = parser.parse_args(argv)
    try:
        data = Prepared.load(args.data)
    except ValueError as error:
        parser.error(str(error))
    rows = np.concatenate([data.rows("train", "llm_label"), data.rows("dev", "llm_label"),
                           data.rows("gold")])  # fmt: skip
    table = left_out(data, frozen_vectors(data, rows, args.cache))
    if args.json:
        args.json.write_text(json.dumps(table, indent=1) + "\n")
    print("each pair: with the archetype's train rows, without them")
    print(render(table))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
