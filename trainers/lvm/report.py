"""The table of a run: means, cluster-bootstrap intervals, paired gains over the best baseline."""

from __future__ import annotations

from typing import Any

from trainers.lvm.measure import Measured, interval

METRICS = ("cosine", "margin", "mrr", "hit10")
_ARRAYS = {"cosine": "cosine", "margin": "margin", "mrr": "rr", "hit10": "hit"}


def report(table: dict[str, Measured]) -> dict[str, Any]:
    """Means with 95 % intervals, and our paired gains over the best baseline of each metric."""
    rows: dict[str, Any] = {}
    for name, found in table.items():
        means = found.means()
        rows[name] = {
            m: {"mean": means[m], "interval": interval(getattr(found, a), found.document)}
            for m, a in _ARRAYS.items()
        }
    ours, gains = table["ours"], {}
    for metric in ("cosine", "mrr", "hit10"):
        rivals = {n: f.means()[metric] for n, f in table.items() if not n.startswith("ours")}
        rival = max(rivals, key=lambda n: rivals[n])
        mine, theirs = (getattr(t, _ARRAYS[metric]) for t in (ours, table[rival]))
        gains[metric] = {
            "over": rival,
            "ratio": float(mine.mean() / theirs.mean()),
            "interval": interval(mine, ours.document, theirs),
        }
    return {"table": rows, "gains": gains}


def print_report(metrics: dict[str, Any]) -> None:
    """The table and the gains, on stdout."""
    print(f"\n{'':26}" + "".join(f"{m:>26}" for m in METRICS))
    for name, row in metrics["table"].items():
        cells = (
            f"{row[m]['mean']:.4f} [{row[m]['interval'][0]:.3f}, {row[m]['interval'][1]:.3f}]"
            for m in METRICS
        )
        print(f"{name:26}" + "".join(f"{cell:>26}" for cell in cells))
    for metric, gain in metrics["gains"].items():
        low, high = gain["interval"]
        print(f"{metric}: {gain['ratio']:.3f} x {gain['over']} [{low:.3f}, {high:.3f}]")
    print(f"{metrics['parameters']} parameters, {metrics['bytes']} bytes", flush=True)
