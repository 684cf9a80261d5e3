"""Exact and near copies of messages, within and across sources.

Two forms of a text matter here. The **ASCII form** writes typographic quotes, accents and emoji in
ASCII (an emoji becomes ``:name:``) and collapses white space; it keeps case and punctuation, which
carry affect. The **bare form** keeps lower-case letters, digits and apostrophes only; it is what
near copies are measured on.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

import numpy as np
import polars as pl
from anyascii import anyascii
from datasketch import MinHash, MinHashLSH
from rapidfuzz.fuzz import ratio
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_SHINGLE_CHARS = 5
_PERMUTATIONS = 64
#: Below this many characters one edit changes the message; only equal bare forms are copies.
_MIN_NEAR_CHARS = 15
_SPACES = re.compile(r"\s+")


def ascii_form(texts: pl.Series) -> pl.Series:
    """ASCII form of each text; only texts that are not ASCII already cost anything."""
    collapsed = texts.str.replace_all(r"\s+", " ").str.strip_chars()
    foreign = collapsed.filter(collapsed.str.contains(r"[^\x00-\x7F]")).unique(maintain_order=True)
    table = {text: _SPACES.sub(" ", anyascii(text)).strip() for text in foreign}
    return collapsed.replace(table) if table else collapsed


def bare_form(ascii_texts: pl.Series) -> pl.Series:
    """Bare form of ASCII texts; a text of signs only ("?!") stays as it is."""
    bare = ascii_texts.str.to_lowercase().str.replace_all(r"[^a-z0-9']+", " ").str.strip_chars()
    return (
        pl.DataFrame({"bare": bare, "ascii": ascii_texts})
        .select(pl.when(pl.col("bare") == "").then("ascii").otherwise("bare"))
        .to_series()
    )


def _shingles(text: str) -> list[int]:
    stop = max(1, len(text) - _SHINGLE_CHARS + 1)
    return [zlib.crc32(text[i : i + _SHINGLE_CHARS].encode()) for i in range(stop)]


def near_pairs(texts: Sequence[str], jaccard: float, min_ratio: float) -> np.ndarray:
    """Index pairs (i < j) of near copies among distinct bare forms, shape [pairs, 2], sorted.

    Candidates share MinHash bands at the given Jaccard similarity of 5-character shingles; the
    normalised edit ratio (0..100) decides.
    """
    lsh = MinHashLSH(threshold=jaccard, num_perm=_PERMUTATIONS)
    base = MinHash(num_perm=_PERMUTATIONS, seed=1, hashfunc=int)
    found: list[tuple[int, int]] = []
    for index, text in enumerate(texts):
        if len(text) < _MIN_NEAR_CHARS:
            continue
        sketch = base.copy()
        sketch.update_batch(_shingles(text))
        found += [
            (other, index)
            for other in lsh.query(sketch)
            if ratio(texts[other], text, score_cutoff=min_ratio) >= min_ratio
        ]
        lsh.insert(index, sketch, check_duplication=False)
    return np.array(sorted(found), dtype=np.int64).reshape(-1, 2)


def components(count: int, pairs: np.ndarray) -> np.ndarray:
    """Component number of each of ``count`` nodes joined by ``pairs`` [n, 2], in node order."""
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return np.asarray(connected_components(graph, directed=False)[1])


def group_names(ids: pl.Series, component: np.ndarray) -> pl.Series:
    """Name each component after its smallest id, so that the name survives reordering."""
    table = pl.DataFrame({"id": ids, "component": component})
    return table.select(pl.col("id").min().over("component")).to_series().alias("group")
