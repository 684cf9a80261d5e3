"""What the texts behind a store's vectors say: features that no vector of a message holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from brain.errors import ConfigError
from trainers.lvm.corpora import load_corpora, read_documents
from trainers.lvm.store import CONTEXT, VectorStore

WORD_FEATURES = [
    "words shared with the last",
    "words shared with the writer's last",
    "words shared with all five",
    *(
        f"{trait} of the {whose}"
        for trait in ("length", "capital", "full stop", "question")
        for whose in ("candidate", "last", "writer's last")
    ),
]


class Words:
    """TF-IDF overlaps, and length, capitals and punctuation, of windows and candidates.

    A row whose document does not have as many texts as vectors (near copies were left out of the
    store) is unknown, and its features are NaN, which trees can take.
    """

    def __init__(self, texts: dict[int, list[str | None]], fitted_on: list[str]) -> None:
        """``texts``: of each store, by ``id``, one a row."""
        try:
            from sklearn.feature_extraction.text import TfidfVectorizer
        except ImportError as error:
            raise ConfigError(f"reading words needs the 'train' extra: {error}") from error
        vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=2)
        try:
            vectorizer.fit(fitted_on)
        except ValueError as error:
            raise ConfigError(f"the texts cannot be compared by words: {error}") from error
        self._tfidf: dict[int, Any] = {}
        self._traits: dict[int, np.ndarray] = {}
        for key, rows in texts.items():
            self._tfidf[key] = vectorizer.transform([row or "" for row in rows])
            self._traits[key] = np.array([_traits(row) for row in rows], np.float32)

    @classmethod
    def read(cls, data: Path, targets: np.ndarray, *stores: VectorStore) -> Words:
        """The texts of these stores' corpora below ``data``; word weights from ``targets`` of the
        first. Raises CorpusError, and ConfigError for a store of no known corpus."""
        corpora = load_corpora()
        texts: dict[int, list[str | None]] = {}
        for store in stores:
            name = str(store.manifest.get("corpus"))
            if name not in corpora:
                raise ConfigError(f"{store.folder} was made from no known corpus: {name}")
            rows: list[str | None] = [None] * len(store.vectors)
            places = {d.id: d for d in store.documents}
            for document in read_documents(corpora[name], data):
                place = places.get(document.id)
                if place is not None and len(document.texts) == place.stop - place.start:
                    rows[place.start : place.stop] = document.texts
            texts[id(store)] = rows
        first = texts[id(stores[0])]
        return cls(texts, [text for row in targets if (text := first[int(row)]) is not None])

    def features(
        self, store: VectorStore, targets: np.ndarray, rows: np.ndarray
    ) -> list[np.ndarray]:
        """``WORD_FEATURES`` of windows and candidates, each ``[b, N]``."""
        tfidf, traits = self._tfidf[id(store)], self._traits[id(store)]
        candidates = tfidf[rows].T.tocsc()
        last, own = tfidf[targets - 1], tfidf[targets - 2]
        every = sum(tfidf[targets - back] for back in range(1, CONTEXT + 1))
        shape = (len(targets), len(rows))
        out = [(side @ candidates).toarray() for side in (last, own, every)]
        for trait in range(traits.shape[1]):
            out.append(np.broadcast_to(traits[rows, trait][None], shape))
            for back in (1, 2):
                out.append(np.broadcast_to(traits[targets - back, trait][:, None], shape))
        unknown = np.isnan(traits[rows, 0])[None] | np.isnan(traits[targets, 0])[:, None]
        return [np.where(unknown, np.nan, part) for part in out]


def _traits(text: str | None) -> list[float]:
    """Length in words, a capital first, a full stop or the like last, a question mark."""
    if text is None:
        return [np.nan] * 4
    length = float(len(text.split()))
    return [length, float(text[:1].isupper()), float(text[-1:] in ".!?"), float("?" in text)]
