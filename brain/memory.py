"""Long-term recall: salient things that the person said, found again when they matter.

Only the person's own words are kept. What the agent said is never recalled as fact: feeding replies
back makes them collapse into repetition; for the same reason a memory that the prompt says already,
in whosever words, is left out. Recall ranks by similarity, recency and emotional weight; similarity
is the cosine of sentence vectors where the encoder in use made both (``sqlite-vec``), and BM25 over
words (SQLite FTS5) where not.
"""

from __future__ import annotations

import importlib.util
import math
import re
import sqlite3
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from operator import mul
from pathlib import Path
from typing import Literal

from brain.foresight_state import usable
from brain.prompt import quote
from brain.schema import Affect, Foresight, Vector
from brain.settings import MemorySettings
from brain.store import Store
from brain.store_sql import NewMemory

MIN_WORDS = 4
KEEP_FROM_WEIGHT = 0.25
CANDIDATES = 24
MIN_CONTENT = 3
# Of 100 pairs of unrelated messages 95 have a cosine below this (counted once, over 400 real turns
# of the affect pool): it is no likeness, however strongly one of them was felt.
MIN_COSINE = 0.25
SIMILARITY_SHARE, RECENCY_SHARE, WEIGHT_SHARE = 0.6, 0.15, 0.25
DAY_S = 86_400.0

_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_SELF = re.compile(r"\b(i|i'm|im|i've|i'll|i'd|me|my|mine|we|our|us)\b", re.IGNORECASE)
_COMMON = frozenset(
    """a about after again all also am an and any are as at be because been before being but by can
    could did do does doing don't down for from get go got had has have he her here him his how i
    i'm if in into is it it's its just know like me more my no not now of on one or our out really
    she should so some that that's the their them then there they think this to too up us very was
    we well were what when where which who why will with would yes you your""".split()  # noqa: SIM905
)


@dataclass(frozen=True, slots=True)
class Recalled:
    """A memory and why it came up: ``score`` in [0, 1] and the kind of similarity used."""

    seq: int
    text: str
    score: float
    by: Literal["vector", "words"]


def salience(text: str, affect: Affect | None) -> float:
    """How much a message is worth keeping, in [0, 1].

    Emotional strength (the largest axis times confidence) where affect was measured; otherwise
    whether people speak of themselves, which is what later turns refer to.
    """
    words = _WORD.findall(text)
    if len(words) < MIN_WORDS:
        return 0.0
    weight = 0.3 if _SELF.search(text) else 0.1
    if text.rstrip().endswith("?"):
        weight -= 0.1
    if affect is not None:
        strength = max(abs(affect.valence), abs(affect.intimacy), abs(affect.tension))
        weight = max(weight, strength * affect.confidence)
    return min(1.0, max(0.0, weight))


def to_keep(
    text: str,
    affect: Affect | None,
    foresight: Foresight | None,
    replies: Sequence[str] = (),
) -> NewMemory | None:
    """The memory that a message leaves, or ``None`` when it is not worth keeping: too weak, or
    copied from one of the agent's ``replies``."""
    weight = salience(text, affect)
    if weight < KEEP_FROM_WEIGHT:
        return None
    words = f" {_plain(text)} "
    if any(words in f" {_plain(reply)} " for reply in replies):
        return None
    vector = foresight.vector if foresight is not None else None
    if foresight is None or vector is None:
        return NewMemory(text=text, weight=weight)
    return NewMemory(text=text, weight=weight, encoder=foresight.encoder, vector=pack(vector))


def pack(vector: Vector) -> bytes:
    """Float32 little-endian, the form that ``sqlite-vec`` reads.

    Raises:
        ValueError: zero, or not finite: such a vector is near to nothing.
    """
    if not usable(vector):
        raise ValueError("a vector for memory must be finite and not zero")
    return struct.pack(f"<{len(vector)}f", *vector)


def score(similarity: float, age_s: float, weight: float, *, half_life_s: float) -> float:
    """How much a memory matters now, in [0, 1]: a fixed share each of similarity and emotional
    weight, both in [0, 1], and of recency, which halves every ``half_life_s`` seconds."""
    recency = math.exp2(-max(0.0, age_s) / half_life_s)
    return SIMILARITY_SHARE * similarity + RECENCY_SHARE * recency + WEIGHT_SHARE * weight


def says(text: str, memory: str) -> bool:
    """Whether ``text`` says already what a recalled ``memory`` would say: every content word of
    the part that the prompt would quote. Where that is fewer than three, the same words in a row.
    """
    shown = quote(memory)
    if shown.endswith("…"):  # the last word may be half of one
        shown = shown.rstrip("…").rpartition(" ")[0] or shown
    wanted = set(_content(shown))
    if len(wanted) < MIN_CONTENT:
        return f" {_plain(shown)} " in f" {_plain(text)} "
    return wanted <= set(_content(text))


class Memory:
    """Recall over one store."""

    def __init__(self, settings: MemorySettings, store: Store) -> None:
        self._settings = settings
        self._store = store

    def to_keep(
        self,
        text: str,
        affect: Affect | None,
        foresight: Foresight | None,
        replies: Sequence[str] = (),
    ) -> NewMemory | None:
        """As the function of this name; nothing where memory is switched off."""
        return to_keep(text, affect, foresight, replies) if self._settings.enabled else None

    async def recall(
        self,
        session_id: str,
        text: str,
        *,
        before_seq: int,
        at: float,
        vector: Vector | None = None,
        encoder: str = "",
        spoken: Sequence[str] = (),
    ) -> list[Recalled]:
        """Memories near ``text`` (or ``vector``) among turns before ``before_seq``, best first.

        Turns from ``before_seq`` on are in the prompt already, and so are the ``spoken`` texts: a
        memory that one of them says is left out, as is one that another memory says. A vector is
        compared with those of the same ``encoder`` alone; others are found by their words. Empty
        when disabled.
        """
        s = self._settings
        if not s.enabled or s.max_recalled == 0 or before_seq <= 1:
            return []
        if vector is not None and not usable(vector):
            vector = None
        found = await self._store.run(_candidates, session_id, text, vector, encoder, before_seq)
        half_life_s = s.recency_half_life_days * DAY_S
        ranked = [
            Recalled(
                seq, words, score(similarity, at - created, weight, half_life_s=half_life_s), by
            )
            for seq, words, similarity, weight, created, by in found
        ]
        ranked.sort(key=lambda item: (-item.score, -item.seq))
        chosen: list[Recalled] = []
        for item in ranked:
            if len(chosen) == s.max_recalled or item.score < s.min_score:
                break
            already = (*spoken, *(one.text for one in chosen))
            if not any(says(other, item.text) for other in already):
                chosen.append(item)
        return chosen

    async def listing(self, session_id: str, limit: int = 20) -> list[tuple[int, float, str]]:
        """(turn, weight, text) of the strongest memories of a session."""
        return await self._store.run(_listing, session_id, limit)

    async def forget(self, session_id: str, seq: int) -> bool:
        """Remove the memory of one turn; whether there was one."""
        return await self._store.run(_forget, session_id, seq)


Candidate = tuple[int, str, float, float, float, Literal["vector", "words"]]


def query_words(text: str, limit: int = 12) -> list[str]:
    """Content words of a message, longest first: what a word search asks for."""
    return sorted(set(_content(text)), key=lambda w: (-len(w), w))[:limit]


def _content(text: str) -> list[str]:
    return [word for w in _WORD.findall(text) if (word := w.lower()) not in _COMMON]


def _plain(text: str) -> str:
    """The words alone, in lower case: what is left when quotation marks and stops are gone."""
    return " ".join(_WORD.findall(text)).lower()


def _candidates(
    connection: sqlite3.Connection,
    session_id: str,
    text: str,
    vector: Vector | None,
    encoder: str,
    before_seq: int,
) -> list[Candidate]:
    found: dict[int, Candidate] = {}
    if vector:
        load_vec(connection)
        rows = connection.execute(
            "SELECT seq, text, 1.0 - vec_distance_cosine(vector, ?), weight, created_at"
            " FROM memories WHERE session_id=? AND seq<? AND length(vector)=? AND encoder=?"
            " ORDER BY 3 DESC LIMIT ?",
            (pack(vector), session_id, before_seq, 4 * len(vector), encoder, CANDIDATES),
        )
        found = {
            seq: (seq, words, min(1.0, max(0.0, cosine)), weight, at, "vector")
            for seq, words, cosine, weight, at in rows
            # None: a damaged vector; SQLite's NULL for what is not a number
            if cosine is not None and cosine >= MIN_COSINE
        }
    if words_asked := query_words(text):
        found = {**_by_words(connection, session_id, words_asked, before_seq), **found}
    return list(found.values())


def _by_words(
    connection: sqlite3.Connection, session_id: str, asked: Sequence[str], before_seq: int
) -> dict[int, Candidate]:
    match = " OR ".join('"' + word.replace('"', "") + '"' for word in asked)
    rows = connection.execute(
        "SELECT m.seq, m.text, -bm25(memories_fts), m.weight, m.created_at FROM memories_fts"
        " JOIN memories m ON m.id = memories_fts.rowid"
        " WHERE memories_fts MATCH ? AND m.session_id=? AND m.seq<? ORDER BY 3 DESC LIMIT ?",
        (match, session_id, before_seq, CANDIDATES),
    )
    wanted = set(asked)
    result: dict[int, Candidate] = {}
    for seq, text, _, weight, at in rows:
        # BM25 is unbounded and tiny in small sets; the share of asked words found is in [0, 1].
        shared = len(wanted & {w.lower() for w in _WORD.findall(text)})
        similarity = max(shared, 1) / math.sqrt(len(wanted) * max(1, len(set(query_words(text)))))
        result[seq] = (seq, text, min(1.0, similarity), weight, at, "words")
    return result


def load_vec(connection: sqlite3.Connection) -> Literal["sqlite-vec", "python"]:
    """Give the connection ``vec_distance_cosine``: from ``sqlite-vec``, or, where Python was
    built without loadable extensions, a function of ours (about 20 µs a row of 384 numbers)."""
    try:
        connection.execute("SELECT vec_distance_cosine(x'0000803f', x'0000803f')")
    except sqlite3.OperationalError:
        try:
            connection.enable_load_extension(True)
            connection.load_extension(_extension())
            connection.enable_load_extension(False)
        except (AttributeError, sqlite3.OperationalError):
            connection.create_function("vec_distance_cosine", 2, cosine_distance)
            return "python"
    return "sqlite-vec"


def _extension() -> str:
    """Path of the loadable file inside ``sqlite_vec``; importing that package would load numpy."""
    found = importlib.util.find_spec("sqlite_vec")
    if found is None or found.origin is None:
        raise sqlite3.OperationalError("sqlite-vec is not installed")
    return str(Path(found.origin).with_name("vec0"))


def cosine_distance(a: bytes, b: bytes) -> float:
    """1 - cosine of two packed vectors of the same length; 1 when either is zero."""
    x, y = array("f", a), array("f", b)
    norm = math.sqrt(sum(map(mul, x, x)) * sum(map(mul, y, y)))
    return 1.0 - sum(map(mul, x, y)) / norm if norm else 1.0


def _listing(
    connection: sqlite3.Connection, session_id: str, limit: int
) -> list[tuple[int, float, str]]:
    return connection.execute(
        "SELECT seq, weight, text FROM memories WHERE session_id=? ORDER BY weight DESC, seq DESC"
        " LIMIT ?",
        (session_id, limit),
    ).fetchall()


def _forget(connection: sqlite3.Connection, session_id: str, seq: int) -> bool:
    cursor = connection.execute(
        "DELETE FROM memories WHERE session_id=? AND seq=?", (session_id, seq)
    )
    return cursor.rowcount > 0
