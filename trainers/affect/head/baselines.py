"""What an affect head must beat, on the same rows; needs no PyTorch.

VADER's valence (Hutto and Gilbert 2014), with "tension = −valence"; word-piece TF-IDF + ridge and
frozen sentence vectors + ridge, fitted on the train rows of one source and axis at a time, so that
each sees its own scale, with the penalty that is best on that source's dev rows; and "tension =
−valence" on top of the frozen vectors. Gold and pairs are predicted by what the labelled pool
taught.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import Ridge
from tokenizers import Tokenizer

from sidecars.onnx_text import TOKENIZER_FILE, TextModel
from trainers.affect.head import measure
from trainers.affect.head.arrays import PARTS, Prepared
from trainers.affect.head.measure import Outputs
from trainers.affect.head.served import run_onnx
from trainers.affect.head.vader import read_lexicon, valence

VOCABULARY = 30522
PENALTIES = (0.3, 1.0, 3.0, 10.0)
EMOTION_PENALTY = 1.0
Array = NDArray[np.float32]
Rows = NDArray[np.int64]
Features = Callable[[Rows], Any]
ENCODER = Path(__file__).parents[3] / "sidecars" / "weights" / "minilm"
# What is measured, and the source that teaches it.
PLACES = (
    ("test", "emobank", "emobank"), ("dev", "emobank", "emobank"),
    ("test", "intimacy", "intimacy"),
    ("test", "llm_label", "llm_label"), ("gold", None, "llm_label"),
    ("pair_a", None, "llm_label"), ("pair_b", None, "llm_label"),
)  # fmt: skip


def counts(data: Prepared, rows: Rows) -> csr_matrix:
    """Word pieces of the message itself, [N, vocabulary]."""
    where, what = [], []
    for i, row in enumerate(rows):
        own = _own(data, row)
        what.append(own)
        where.append(np.full(len(own), i))
    ones = np.ones(sum(map(len, what)), np.float32)
    return csr_matrix((ones, (np.concatenate(where), np.concatenate(what))),
                      shape=(len(rows), VOCABULARY))  # fmt: skip


def _own(data: Prepared, row: np.int64) -> NDArray[np.uint16]:
    part = slice(data.starts[row], data.starts[row + 1])
    return data.ids[part][data.kinds[part] == 0]


def ridge_axes(data: Prepared, features: Features) -> Array:
    """Axes [N, 3] of every place measured, NaN elsewhere and where a source measures no such axis
    (0 there, for a source that measures some)."""
    found = np.full((len(data.part), 3), np.nan, np.float32)
    for source in dict.fromkeys(source for _, _, source in PLACES):
        places = [data.rows(part, own) for part, own, by in PLACES if by == source]
        rows = np.concatenate(places)
        found[rows] = 0.0
        for axis in range(3):
            train, dev = (
                part[~np.isnan(data.axes[part, axis])]
                for part in (data.rows("train", source), data.rows("dev", source))
            )
            if len(train) and len(rows):
                model = _best_ridge(data, features, axis, train, dev)
                found[rows, axis] = model.predict(features(rows))
    return found


def _best_ridge(data: Prepared, features: Features, axis: int, train: Rows, dev: Rows) -> Ridge:
    x, y = features(train), data.axes[train, axis]
    models = [Ridge(alpha=penalty).fit(x, y) for penalty in PENALTIES]
    if len(dev) < 3:
        return models[len(models) // 2]
    seen, wanted = features(dev), data.axes[dev, axis]
    scores = [measure.pearson(model.predict(seen), wanted) for model in models]
    return models[int(np.argmax(scores))]


def ridge_emotions(data: Prepared, features: Features) -> Array:
    """The 28 labels of GoEmotions dev and test by one ridge a label, NaN elsewhere."""
    train = data.rows("train", "goemotions")
    train = train[~np.isnan(data.emotions[train]).any(1)]
    rows = np.concatenate([data.rows("dev", "goemotions"), data.rows("test", "goemotions")])
    found = np.full(data.emotions.shape, np.nan, np.float32)
    model = Ridge(alpha=EMOTION_PENALTY).fit(features(train), data.emotions[train])
    found[rows] = model.predict(features(rows))
    return found


def vader_axes(data: Prepared, lexicon: Path) -> Array:
    """VADER's valence, and its negation as tension, of every place measured."""
    words = read_lexicon(lexicon)
    tokenizer = Tokenizer.from_file(str(ENCODER / TOKENIZER_FILE))
    found = np.full((len(data.part), 3), np.nan, np.float32)
    for row in measure.rows_measured(data, emotions=False):
        score = valence(tokenizer.decode(_own(data, row).tolist()), words)
        found[row] = (score, 0.0, -score)
    return found


def frozen_vectors(data: Prepared, rows: Rows, folder: Path | None) -> Array:
    """Unit vectors [N, 384] of the encoder that ships, NaN where not run; kept in ``folder``."""
    model = TextModel.load(ENCODER, threads=2)
    return run_onnx(model, data, rows, names=("embedding",), folder=folder)["embedding"]


def predictions(
    data: Prepared,
    *,
    lexicon: Path | None = None,
    folder: Path | None = None,
    emotions: bool = False,
) -> dict[str, Outputs]:
    """Name of the baseline → its ``axes`` (and ``emotions``) over all N rows."""
    sources = dict.fromkeys(source for _, _, source in PLACES)
    wanted = [data.rows(part, s) for part in ("train", "dev") for s in sources]
    wanted.append(measure.rows_measured(data, emotions=False))
    if emotions:
        wanted += [data.rows(part, "goemotions") for part in ("train", "dev", "test")]
    rows = np.unique(np.concatenate(wanted))
    found: dict[str, Outputs] = {}
    if lexicon:
        found["VADER"] = {"axes": vader_axes(data, lexicon)}
    weighed = np.full(len(data.part), -1)
    weighed[rows] = np.arange(len(rows))
    occurring = counts(data, rows)
    trained = np.isin(rows, np.flatnonzero(data.part == PARTS.index("train")))
    matrix = TfidfTransformer(sublinear_tf=True).fit(occurring[trained]).transform(occurring)
    vectors = frozen_vectors(data, rows, folder)
    for name, features in (("TF-IDF + ridge", lambda part: matrix[weighed[part]]),
                           ("frozen vectors + ridge", lambda part: vectors[part])):  # fmt: skip
        found[name] = {"axes": ridge_axes(data, features)}
        if emotions:
            found[name]["emotions"] = ridge_emotions(data, features)
    mirrored = found["frozen vectors + ridge"]["axes"].copy()
    mirrored[:, 2] = -mirrored[:, 0]
    found["frozen, tension = −valence"] = {"axes": mirrored}
    return found


def compare(
    data: Prepared, own: dict[str, Array], lexicon: Path | None = None, folder: Path | None = None
) -> dict[str, dict[str, float]]:
    """Every figure of all baselines, and of models by their axes [N, 3], on the same rows."""
    models = {k: v["axes"] for k, v in predictions(data, lexicon=lexicon, folder=folder).items()}
    return {
        name: {k: v for k, v, _ in measure.summary(measure.everything(data, axes))}
        for name, axes in {**models, **own}.items()
    }


def render(table: dict[str, dict[str, float]]) -> str:
    """The table for a terminal: a line a figure, a column a model."""
    lines = [f"{'':36}" + "".join(f"{name:>24}" for name in table)]
    for figure in next(iter(table.values())):
        values = [row[figure] for row in table.values()]
        if not all(np.isnan(values)):
            lines.append(f"{figure:36}" + "".join(f"{value:24.3f}" for value in values))
    return "\n".join(lines)
