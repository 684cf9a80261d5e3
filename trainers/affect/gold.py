"""The gold set: frozen, hashed, and refused wherever something trains.

``gold.jsonl`` lies beside ``gold.sha256`` (the format of ``sha256sum``). A changed gold file is an
error, because figures measured on it would no longer compare. Files of minimal pairs (``a`` and
``b`` differ in one axis) measure too: their texts are guarded like gold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import polars as pl

from trainers.affect import frame as frames
from trainers.affect.copies import ascii_form, bare_form
from trainers.affect.errors import DataError, GoldRefused
from trainers.affect.rows import AffectRow

GOLD_FILE, HASH_FILE = "gold.jsonl", "gold.sha256"


def text_key(texts: pl.Series) -> pl.Series:
    """What makes two messages the same one for the gold guard: their bare form."""
    return bare_form(ascii_form(texts))


@dataclass(frozen=True)
class GoldGuard:
    """Knows the ids and texts that must never be trained on."""

    ids: frozenset[str] = frozenset()
    texts: frozenset[str] = frozenset()
    rows: pl.DataFrame = field(default_factory=frames.empty, compare=False)

    @classmethod
    def load(cls, folder: str | Path) -> GoldGuard:
        """The gold set and minimal pairs of a pool folder; an empty guard when it has none.

        Raises :class:`DataError` when the gold file is not the frozen one.
        """
        path = Path(folder) / GOLD_FILE
        parts = []
        if path.exists():
            check_frozen(path)
            parts.append(frames.read_frame(path))
        parts += [pair_rows(found) for found in pool_files(folder)[1]]
        return cls.of(pl.concat(parts)) if parts else cls()

    @classmethod
    def of(cls, rows: pl.DataFrame) -> GoldGuard:
        """A guard for these gold rows."""
        return cls(
            frozenset(rows["id"]),
            frozenset(text_key(rows["text"])),
            rows.with_columns(pl.lit("gold").alias("split")),
        )

    def matches(self, rows: pl.DataFrame) -> pl.Series:
        """True for each row that is gold by quality, split, id or text."""
        return (
            rows["id"].is_in(list(self.ids))
            | text_key(rows["text"]).is_in(list(self.texts))
            | (rows["quality"] == "gold")
            | (rows["split"] == "gold").fill_null(False)
        )

    def refuse(self, rows: pl.DataFrame | Iterable[AffectRow], where: str = "training set") -> None:
        """Raise :class:`GoldRefused` if any row is a gold row; call it before every training."""
        table = rows if isinstance(rows, pl.DataFrame) else frames.to_frame(rows)
        hits = table.filter(self.matches(table))
        if hits.height:
            raise GoldRefused(
                f"{where}: {hits.height} gold rows, first {hits['id'][0]!r}; gold is for measuring "
                "only, take them out"
            )


def pool_files(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Files of a pool folder by name: those of training rows, and those of minimal pairs.

    A file is one of pairs when its first object has the keys ``a`` and ``b``. The gold file is in
    neither list.
    """
    rows: list[Path] = []
    pairs: list[Path] = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        if path.name == GOLD_FILE:
            continue
        with path.open("rb") as handle:
            first = next((line for line in handle if line.strip()), b"{}")
        try:
            head = orjson.loads(first)
        except orjson.JSONDecodeError:
            head = {}
        keys = head.keys() if isinstance(head, dict) else ()
        (pairs if {"a", "b"} <= set(keys) else rows).append(path)
    return rows, pairs


def pair_rows(path: Path) -> pl.DataFrame:
    """Both texts of every minimal pair as unscored gold rows, for guarding only."""
    texts: list[dict[str, object]] = []
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                pair = orjson.loads(line)
                texts += [
                    {"id": f"pair/{pair['id']}/{side}", "text": str(pair[side])} for side in "ab"
                ]
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number}: not a minimal pair ({error}); needs id, a and b"
                ) from error
    table = pl.DataFrame(texts, schema={"id": pl.String, "text": pl.String})
    return frames.complete(
        table.with_columns(
            pl.lit("gold").alias("quality"),
            pl.lit("minimal_pair").alias("source"),
            pl.lit("Apache-2.0").alias("licence"),
        )
    )


def digest(path: Path) -> str:
    """SHA-256 of a file as hex."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_frozen(path: Path) -> None:
    """Raise :class:`DataError` unless ``path`` has the hash written beside it."""
    beside = path.with_name(HASH_FILE)
    if not beside.exists():
        raise DataError(f"{beside}: missing; freeze the gold set with `limbic data gold --freeze`")
    wanted = beside.read_text("utf-8").split()
    found = digest(path)
    if not wanted or wanted[0] != found:
        raise DataError(
            f"{path}: sha256 is {found[:12]}…, {beside.name} says "
            f"{(wanted or ['nothing'])[0][:12]}…; restore the frozen file "
            "(changed gold makes earlier figures incomparable)"
        )


def freeze(path: Path) -> str:
    """Write the hash file beside a gold set and return the digest; refuses to change one."""
    rows = frames.read_frame(path)
    wrong = rows.filter(pl.col("quality") != "gold")
    if wrong.height:
        raise DataError(f"{path}: row {wrong['id'][0]!r} has quality {wrong['quality'][0]!r}")
    beside = path.with_name(HASH_FILE)
    if beside.exists():
        check_frozen(path)
    found = digest(path)
    beside.write_text(f"{found}  {path.name}\n", "utf-8")
    return found
