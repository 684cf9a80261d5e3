"""A picture of the joint distributions before and after balancing."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from trainers.affect.balance import pair_weights
from trainers.affect.dependence import PAIRS, weighted_r
from trainers.affect.frame import matrix, shares
from trainers.affect.rows import AXES

_BINS = 21


def draw_joint(before: pl.DataFrame, after: pl.DataFrame, path: str | Path) -> None:
    """Write a PNG of two rows of three panels: each pair of axes, before and after.

    *Before* counts every scored row once; *after* uses the training weights. Shade is the share of
    the weight in a bin on a logarithmic scale, the same for all panels. The file depends only on
    the rows and the version of the plotting library.
    """
    # Imported here because drawing is the only step that needs it and it starts slowly.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 7.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(PAIRS))
    edges = np.linspace(-1.0, 1.0, _BINS + 1)
    mesh = None
    for row, (title, rows) in enumerate((("before", before), ("after", after))):
        scores, share = matrix(rows), shares(rows)
        weight = np.ones(rows.height) if row == 0 else rows["weight"].fill_null(1.0).to_numpy()
        for column, pair in enumerate(PAIRS):
            panel = axes[row][column]
            x, y = scores[:, pair[0]], scores[:, pair[1]]
            w = weight if row == 0 else pair_weights(weight, share, pair)
            use = ~np.isnan(x) & ~np.isnan(y) & (w > 0)
            x, y, w = x[use], y[use], w[use]
            panel.set(xlim=(-1, 1), ylim=(-1, 1), aspect="equal")
            panel.set_xlabel(AXES[pair[0]])
            panel.set_ylabel(AXES[pair[1]])
            if not len(x):
                panel.set_title(f"{title}: no row measures both", fontsize=9)
                continue
            counts, _, _ = np.histogram2d(x, y, bins=(edges, edges), weights=w / w.sum())
            mesh = panel.pcolormesh(
                edges,
                edges,
                np.ma.masked_less_equal(counts.T, 0.0),
                norm=LogNorm(1e-4, 0.1, clip=True),
                cmap="viridis",
            )
            r = weighted_r(x, y, w)
            panel.set_title(f"{title}: r = {r:+.2f}, {len(x)} rows", fontsize=9)
    if mesh is not None:
        figure.colorbar(mesh, ax=axes, label="share of the weight in a bin", shrink=0.7)
    buffer = io.BytesIO()
    canvas.print_png(buffer, metadata={"Software": None})
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())
