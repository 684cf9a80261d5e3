"""``python -m trainers.affect.head.average``: the weights of a run, averaged with where it started.

    python -m trainers.affect.head.average --data FILE.npz --head RUN/head.safetensors \
        --start BEFORE/head.safetensors --out AVERAGED/head.safetensors

A head that went on learning and the head it started from lie in one basin, so that weights between
them are a head, too, often better than both (Wortsman et al. 2022, WiSE-FT; half and half is their
default). With ``--choose`` the share of the run is the one whose mean r over the three axes is
highest on the pool's dev rows. The arousal head is the run's: it was fitted last, and what the run
started from may have been fitted on dev.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from torch import Tensor

from trainers.affect.head import measure, runs, train
from trainers.affect.head.arrays import AXES, Prepared
from trainers.affect.head.distil import start_head
from trainers.affect.head.network import AffectNet

KEPT = "arousal."
HALF = 0.5
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
State = dict[str, Tensor]


def between(head: State, start: State, share: float) -> State:
    """``share`` of ``head`` and the rest of ``start``, weight by weight; arousal is ``head``'s."""
    return {
        name: value if name.startswith(KEPT) else share * value + (1 - share) * start[name]
        for name, value in head.items()
    }


def dev_figures(net: AffectNet, data: Prepared) -> dict[str, float]:
    """r of each axis, its mean over the axes, and the mean error, on the pool's dev rows."""
    rows = data.rows("dev", "llm_label")
    said = train.predict(net.eval(), data, rows, "cpu", batch=128)["axes"]
    r = {axis: measure.pearson(said[rows, i], data.axes[rows, i]) for i, axis in enumerate(AXES)}
    error = float(measure.error_of(data, said, rows).mean())
    return {**r, "mean r": float(np.mean(list(r.values()))), "mean error": error}


def choose(
    net: AffectNet, data: Prepared, head: State, start: State
) -> tuple[float, dict[float, dict[str, float]]]:
    """The best share of ``head``, and the figures of each."""
    found = {}
    for share in SHARES:
        net.load_state_dict(between(head, start, share))
        found[share] = dev_figures(net, data)
        told = " ".join(f"{name} {value:.4f}" for name, value in found[share].items())
        print(f"share {share:.2f}: {told}", flush=True)
    return max(found, key=lambda share: found[share]["mean r"]), found


def main(argv: list[str] | None = None) -> int:
    """Write the head, and ``average.json`` beside it with the share and what dev said."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="what prepare wrote")
    parser.add_argument("--head", type=Path, required=True, help="the run's head.safetensors")
    parser.add_argument("--start", type=Path, required=True, help="the head that it started from")
    parser.add_argument("--out", type=Path, required=True, help="the head.safetensors to write")
    parser.add_argument("--share", type=float, default=HALF, help="of --head (%(default)s)")
    parser.add_argument("--choose", action="store_true", help="let dev choose the share")
    args = parser.parse_args(argv)
    for path in (args.data, args.head, args.start):
        if not path.exists():
            parser.error(f"{path}: not found")
    if not 0 <= args.share <= 1:
        parser.error(f"--share {args.share}: from 0 to 1")
    try:
        data = Prepared.load(args.data)
        if problem := runs.another_set(args.head, data.digest):
            parser.error(problem)
        heads = [start_head(path, data) for path in (args.head, args.start)]
    except (ValueError, OSError) as error:
        parser.error(str(error).partition("\n")[0])
    head, start = ({k: v.clone() for k, v in net.state_dict().items()} for net in heads)
    share, found = args.share, dict[float, dict[str, float]]()
    if args.choose:
        share, found = choose(heads[0], data, head, start)
    print(f"share of {args.head}: {share:g}", flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs.save_head(args.out, between(head, start, share))
    told = {"share": share, "data": data.digest, "dev": {f"{k:g}": v for k, v in found.items()}}
    (args.out.parent / "average.json").write_text(json.dumps(told, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
