"""What a model says about each item: scores from a file, or a small model of our own.

The built-in model is TF-IDF over words and character n-grams with ridge regression, bagged: the
spread of the bags is its uncertainty, and rows it was trained on are scored only by the bags that
did not see them, so that it cannot agree with a label by remembering it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from trainers.affect.label.items import Item, Label, explain, json_lines
from trainers.affect.rows import AXES, Axis, Rejects, Score, Unit

#: Below this many labelled rows a text model says nothing worth ranking by.
MIN_TRAINING_ROWS = 40
_BAGS = 8
_RIDGE_ALPHA = 3.0


@dataclass(frozen=True, slots=True)
class ModelScore:
    """A model's view of one item: scores by axis, confidence in [0, 1], spread in score units."""

    scores: Mapping[Axis, float]
    confidence: float
    spread: float = 0.0


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str
    valence: Score | None = None
    intimacy: Score | None = None
    tension: Score | None = None
    confidence: Unit = 0.5


def read_scores(path: Path, rejects: Rejects) -> dict[str, ModelScore]:
    """A scores file: ``{"id", "valence", "intimacy", "tension", "confidence"}``, extras ignored."""
    found: dict[str, ModelScore] = {}
    for number, raw, record in json_lines(path, rejects):
        try:
            line = _Line.model_validate(record)
        except ValidationError as error:
            rejects.add(path, number, explain(error), raw)
            continue
        scores = {axis: getattr(line, axis) for axis in AXES if getattr(line, axis) is not None}
        found[line.id] = ModelScore(scores, line.confidence)
    return found


def _training_axes(label: Label | None, item: Item) -> Mapping[Axis, float]:
    if label is None:
        return item.prior
    return dict(zip(AXES, label.scores, strict=True))


def _text(item: Item) -> str:
    return " \n ".join((*item.context, item.text))


def tfidf_scores(
    items: Sequence[Item], labels: Mapping[str, Label], seed: int = 0
) -> dict[str, ModelScore]:
    """Train on `labels` and on priors of items without one; score every item.

    Returns nothing when no axis has `MIN_TRAINING_ROWS` rows. Takes about a second per 1,000 rows.
    """
    targets = [_training_axes(labels.get(item.id), item) for item in items]
    usable = [
        axis for axis in AXES if sum(axis in target for target in targets) >= MIN_TRAINING_ROWS
    ]
    if not usable:
        return {}
    features = _features([_text(item) for item in items])
    means: dict[Axis, NDArray[np.float64]] = {}
    spreads = np.zeros((len(items), len(usable)))
    for column, axis in enumerate(usable):
        known = np.array([axis in target for target in targets])
        values = np.array([target.get(axis, 0.0) for target in targets])
        means[axis], spreads[:, column] = _bagged(features, values, known, seed)
    spread = spreads.mean(axis=1)
    scale = float(np.median(spread)) or 1.0
    return {
        item.id: ModelScore(
            {axis: float(np.clip(means[axis][index], -1, 1)) for axis in usable},
            confidence=float(1 / (1 + spread[index] / scale)),  # .5 at the median spread
            spread=float(spread[index]),
        )
        for index, item in enumerate(items)
    }


def _features(texts: Iterable[str]) -> Any:  # a scipy sparse matrix
    from sklearn.feature_extraction.text import (
        TfidfVectorizer,
    )
    from sklearn.pipeline import make_union

    union = make_union(
        TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\w+|[!?.]+"),
        TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 4), min_df=2),
    )
    return union.fit_transform(list(texts)).tocsr()


def _bagged(
    features: Any, values: NDArray[np.float64], known: NDArray[np.bool_], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(mean, spread) over bags for every row; trained rows count only the bags without them."""
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(known)
    bags = np.full((_BAGS, len(values)), np.nan)
    for bag in range(_BAGS):
        drawn = rng.choice(rows, size=len(rows), replace=True)
        model = Ridge(alpha=_RIDGE_ALPHA, solver="sparse_cg").fit(features[drawn], values[drawn])
        predicted = model.predict(features)
        predicted[np.unique(drawn)] = np.nan
        bags[bag] = predicted
    seen = (~np.isnan(bags)).sum(axis=0)
    mean_label = float(values[rows].mean())
    filled = np.where(np.isnan(bags), 0.0, bags)
    mean = np.where(seen > 0, filled.sum(axis=0) / np.maximum(seen, 1), mean_label)
    squares = np.where(np.isnan(bags), 0.0, (bags - mean) ** 2).sum(axis=0)
    usual = float(np.sqrt(squares.sum() / max(seen.sum(), 1)))
    # A row that every bag drew has no out-of-bag view; say "as unsure as usual", not "certain".
    return mean, np.where(seen > 1, np.sqrt(squares / np.maximum(seen, 1)), usual)
