"""``python -m trainers.affect.head.ceiling --data FOLDER``: what the labels themselves allow.

A model cannot correlate with noisy labels better than √reliability (Spearman 1904). For EmoBank the
reliability of its mean rating is the split-half correlation of single ratings, stepped up by
Spearman and Brown, beside the agreement of the reader and the writer perspective (Buechel and Hahn
2017). Ratings of 1/1/1 are careless and left out, as in the published means, which this gives back.
For gold and minimal pairs it is the agreement of the two readings in ``labels.log.gz``.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trainers.affect.head.arrays import AXES
from trainers.affect.head.measure import MOVED, STILL, axis_moves, pearson

POOL = Path(__file__).parents[1] / "pool"
CARELESS = ("1", "1", "1")
SCALES = {"valence": "V", "arousal": "A"}
HALVINGS = 20


def reliability(ratings: list[NDArray[np.float64]], seed: int = 0) -> float:
    """Of the mean of each item's ratings: split-half r, stepped up to all of them.

    ``2 r / (1 + r)`` (Spearman 1910, Brown 1910), over the mean of 20 random halvings.
    """
    rng = np.random.default_rng(seed)
    found = []
    for turn in range(HALVINGS):
        halves = np.empty((len(ratings), 2))
        for i, values in enumerate(ratings):
            mixed = rng.permutation(values)
            # The middle one of an odd number goes to either half in turn.
            middle = (len(mixed) + turn % 2) // 2
            halves[i] = mixed[:middle].mean(), mixed[middle:].mean()
        found.append(pearson(halves[:, 0], halves[:, 1]))
    r = float(np.mean(found))
    return 2 * r / (1 + r)


def read_ratings(path: Path, scale: str) -> dict[str, list[float]]:
    """Item → its single ratings, without careless ones."""
    found: dict[str, list[float]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if (row["V"], row["A"], row["D"]) != CARELESS:
                found.setdefault(row["id"], []).append(float(row[scale]))
    return found


def emobank(folder: Path) -> dict[str, dict[str, float]]:
    """Scale → reader–writer r, reliability of the mean rating, and the ceiling of any r."""
    found = {}
    for name, scale in SCALES.items():
        reader, writer = (
            read_ratings(folder / f"individual_{who}_ratings.csv", scale)
            for who in ("reader", "writer")
        )
        items = [i for i in reader if len(reader[i]) > 1 and len(writer.get(i, ())) > 1]
        means = np.array([[np.mean(reader[i]), np.mean(writer[i])] for i in items])
        reliable = reliability([np.array(reader[i] + writer[i]) for i in items])
        found[name] = {
            "items": len(items), "reader and writer r": float(np.corrcoef(means.T)[0, 1]),
            "reliability": reliable, "ceiling of r": float(np.sqrt(reliable)),
        }  # fmt: skip
    return found


def readings(pool: Path = POOL) -> dict[str, dict[str, float]]:
    """Row → reader → three scores is compared: r of both on gold; isolated shares of pairs."""
    labels: dict[str, dict[str, list[float]]] = {}
    with gzip.open(pool / "labels.log.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            entry = json.loads(line)
            if entry["what"] == "label":
                scores = [entry["after"][axis] for axis in AXES]
                labels.setdefault(entry["row"], {})[entry["who"]] = scores
    gold = [json.loads(line)["id"] for line in (pool / "gold.jsonl").read_text().splitlines()]
    both = np.array([list(labels[row].values()) for row in gold if len(labels.get(row, ())) == 2])
    found: dict[str, dict[str, float]] = {"gold, r of the two readings": {}, "isolated pairs": {}}
    for i, axis in enumerate(AXES):
        r = pearson(both[:, 0, i], both[:, 1, i])
        found["gold, r of the two readings"][axis] = r
    pairs = [json.loads(x) for x in (pool / "minimal_pairs.jsonl").read_text().splitlines()]
    for who in sorted(labels[f"{pairs[0]['id']}a"]):
        moved = np.array([np.subtract(labels[f"{p['id']}b"][who], labels[f"{p['id']}a"][who])
                          for p in pairs])  # fmt: skip
        wanted = np.array([AXES.index(p["axis"]) for p in pairs])
        found["isolated pairs"][who] = float(isolated(moved, wanted).mean())
    clean = float(np.mean([p["clean"] for p in pairs]))
    found["isolated pairs"]["mean of both"] = clean
    return found


def isolated(moved: NDArray[np.float64], axis: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Of differences [N, 3]: the target axis moved far enough, and alone."""
    target, others = axis_moves(moved, axis)
    # Scores are multiples of .025: rounding must not decide at the edge.
    far: NDArray[np.bool_] = (np.abs(target) >= MOVED - 1e-9) & (others <= STILL + 1e-9)
    return far


def main(argv: list[str] | None = None) -> int:
    """Print all of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `limbic data fetch`")
    args = parser.parse_args(argv)
    folder = args.data / "affect" / "emobank"
    if not folder.is_dir():
        parser.error(f"{folder}: no such folder; `limbic data fetch` makes it")
    print(json.dumps({"EmoBank": emobank(folder), **readings()}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
