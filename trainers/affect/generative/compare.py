"""``python -m trainers.affect.generative.compare``: the encoder head beside the generative one.

    python -m trainers.affect.generative.compare --set data/affect \\
        --generative models/affect/model-Q8_0.gguf --out compare.json

Every head scores the same gold and test rows one message at a time on one thread, as cahm serves
them. r per axis with a 95 % bootstrap interval over groups of rows that were made together (a
frame, thread or pair; 1,000 draws, seed 0); signs on axes with
|label| ≥ .1; the share of whole answers (scores, tags, reasoning) that are valid JSON of the
contract, on ``--answers`` rows drawn with ``--seed``; milliseconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from brain.errors import LimbicError
from brain.schema import Affect
from sidecars.affect_head import AffectHead, Message, Scores
from sidecars.affect_manifest import AXES
from trainers.affect.errors import DataError
from trainers.affect.generative import examples
from trainers.affect.generative.examples import Row
from trainers.affect.head import measure

ENCODER = Path(__file__).parents[3] / "sidecars" / "weights" / "cahm"
PARTS = ("gold", "test")
CLEAR = 0.1


def interval(
    found: NDArray[np.float32], wanted: NDArray[np.float32], groups: Sequence[str]
) -> tuple[float, float]:
    """95 % bootstrap interval of r [N], whole groups drawn; an empty name is a group of one row."""
    names = [name or f" {i}" for i, name in enumerate(groups)]
    _, member = np.unique(names, return_inverse=True)
    rows = [np.flatnonzero(member == group) for group in range(member.max() + 1)]
    draws = np.random.default_rng(0).integers(0, len(rows), (measure.DRAWS, len(rows)))
    drawn = (np.concatenate([rows[group] for group in draw]) for draw in draws)
    low, high = np.percentile([measure.pearson(found[d], wanted[d]) for d in drawn], [2.5, 97.5])
    return float(low), float(high)


def figures(
    found: NDArray[np.float32], wanted: NDArray[np.float32], groups: Sequence[str]
) -> dict[str, Any]:
    """Per axis: r with its interval over ``groups`` [N], mean error, share of right signs; from
    [N, 3] each."""
    table: dict[str, Any] = {}
    for i, axis in enumerate(AXES):
        p, y = found[:, i], wanted[:, i]
        low, high = interval(p, y, groups)
        clear = np.abs(y) >= CLEAR
        table[axis] = {
            "r": measure.pearson(p, y), "low": low, "high": high,
            "mae": float(np.abs(p - y).mean()), "n": len(y), "n sign": int(clear.sum()),
            "sign": float((np.sign(p[clear]) == np.sign(y[clear])).mean()),
        }  # fmt: skip
    return table


def valid(document: str) -> bool:
    """Whether an answer is a JSON object with the contract's fields in their ranges."""
    try:
        body = json.loads(document)
        Affect.model_validate({**body, "confidence": 0.0})
    except (json.JSONDecodeError, ValidationError, TypeError):
        return False
    return set(body) == {*AXES, "tags", "reasoning"} and bool(body["reasoning"].strip())


def run(head: Any, rows: Sequence[Row]) -> tuple[list[Scores], list[float]]:
    """Scores of each row and the milliseconds each took, one at a time."""
    scores, times = [], []
    for row in rows:
        began = time.perf_counter()
        scores += head.score([Message(row.text, row.context)])
        times.append(1000 * (time.perf_counter() - began))
    return scores, times


def measured(head: Any, parts: dict[str, list[Row]], answers: int, seed: int) -> dict[str, Any]:
    """The whole column of one head."""
    table: dict[str, Any] = {}
    spent: list[float] = []
    for name, rows in parts.items():
        scores, times = run(head, rows)
        spent += times
        found = np.asarray([[s.valence, s.intimacy, s.tension] for s in scores], np.float32)
        wanted = np.asarray([row.axes for row in rows], np.float32)
        table[name] = figures(found, wanted, [row.group for row in rows])
        confidence = np.asarray([s.confidence for s in scores])
        close = np.abs(found - wanted).mean(1) <= 0.25
        table[name]["confidence said"] = float(confidence.mean())
        table[name]["confidence seen"] = float(close.mean())
        table[name]["tags right"] = float(
            np.mean([set(s.tags) == set(r.tags) for s, r in zip(scores, rows, strict=True)])
        )
    table["ms"] = {"p50": float(np.median(spent)), "p95": float(np.quantile(spent, 0.95))}
    if hasattr(head, "write"):
        everything = [row for rows in parts.values() for row in rows]
        picked = np.random.default_rng(seed).permutation(len(everything))[:answers]
        written, spent = [], []
        for i in picked:
            message = Message(everything[i].text, everything[i].context)
            head.answer(message)  # the scores: timed above, and not again
            began = time.perf_counter()
            written.append(head.write(message))
            spent.append(1000 * (time.perf_counter() - began))
        table["answers"] = {
            "n": len(written), "valid": float(np.mean([valid(text) for text in written])),
            "distinct reasonings": len({json.loads(t)["reasoning"] for t in written if valid(t)}),
            "ms": float(np.median(spent)),
            "examples": [[everything[i].text, text]
                         for i, text in list(zip(picked, written, strict=True))[:5]],
        }  # fmt: skip
    return table


def page(table: dict[str, Any]) -> str:
    """The table in Markdown."""
    heads = table["heads"]
    lines = ["| | " + " | ".join(heads) + " |", "|" + "---|" * (1 + len(heads))]

    def line(name: str, cells: Sequence[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(cells) + " |")

    for part in PARTS:
        for axis in AXES:
            found = [head[part][axis] for head in heads.values()]
            line(f"{part} {axis} r (n = {found[0]['n']})",
                 [f"{f['r']:.3f} ({f['low']:.3f} to {f['high']:.3f})" for f in found])  # fmt: skip
        for axis in AXES:
            found = [head[part][axis] for head in heads.values()]
            line(f"{part} {axis} signs (n = {found[0]['n sign']})",
                 [f"{f['sign']:.3f}" for f in found])  # fmt: skip
        line(
            f"{part} tags all right", [f"{head[part]['tags right']:.3f}" for head in heads.values()]
        )
        line(f"{part} confidence said / seen",
             [f"{head[part]['confidence said']:.2f} / {head[part]['confidence seen']:.2f}"
              for head in heads.values()])  # fmt: skip
    written = [head.get("answers") for head in heads.values()]
    line(
        "answers that are valid JSON",
        [f"{w['valid']:.3f} of {w['n']}" if w else "–" for w in written],
    )
    line(
        "scores, ms p50 / p95",
        [f"{h['ms']['p50']:.0f} / {h['ms']['p95']:.0f}" for h in heads.values()],
    )
    line("reasoning after them, ms", [f"{w['ms']:.0f}" if w else "–" for w in written])
    line("file, MB", [f"{head['bytes'] / 1e6:.0f}" for head in heads.values()])
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    """Measure, print the page, write the JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m trainers.affect.generative.compare", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--set", dest="folder", type=Path, required=True)
    parser.add_argument("--generative", type=Path, action="append", default=[], metavar="GGUF")
    parser.add_argument("--encoder", type=Path, default=ENCODER, help="folder of an encoder head")
    parser.add_argument("--answers", type=int, default=100, help="whole answers to check")
    parser.add_argument("--rows", type=int, help="at most so many rows of each part, by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON")
    args = parser.parse_args(argv)
    try:
        table = _compare(args)
    except (DataError, LimbicError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(page(table))
    return 0


def _compare(args: argparse.Namespace) -> dict[str, Any]:
    from sidecars.affect_generative import GenerativeHead

    rng = np.random.default_rng(args.seed)
    parts = {}
    for name in PARTS:
        rows = examples.load_rows(args.folder, name)
        parts[name] = [rows[i] for i in sorted(rng.permutation(len(rows))[: args.rows])]
    heads: dict[str, Any] = {}
    encoder = AffectHead.load(args.encoder, threads=1)
    heads["encoder"] = measured(encoder, parts, args.answers, args.seed)
    heads["encoder"]["bytes"] = (args.encoder / "model.onnx").stat().st_size
    for path in args.generative:
        print(f"{path} …", file=sys.stderr, flush=True)
        head = GenerativeHead.load(path, threads=1)
        heads[path.stem] = measured(head, parts, args.answers, args.seed)
        heads[path.stem] |= {"bytes": path.stat().st_size, "sha256": head.sha256}
        head.close()
    return {"heads": heads, "seed": args.seed, "rows": {k: len(v) for k, v in parts.items()}}


if __name__ == "__main__":
    raise SystemExit(main())
