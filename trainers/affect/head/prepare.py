"""``python -m trainers.affect.head.prepare --set FOLDER --out FILE.npz``: tokenise a built set.

Reads what ``limbic data build`` wrote, refuses gold among the training rows, and adds unlabelled
texts on which a student may be taught by its teachers: chat (``--chat``), sentences of books and
articles (``--prose``) and variants of the pool's training messages (``--variants``).
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray
from tokenizers import Tokenizer

from sidecars.onnx_text import TOKENIZER_FILE
from trainers.affect.errors import DataError
from trainers.affect.gold import GoldGuard, text_key
from trainers.affect.head.arrays import AXES, MAX_TOKENS, PARTS, SOURCES, TAGS, digest_of
from trainers.affect.head.texts import write_texts
from trainers.affect.head.variants import Neighbours, variants
from trainers.affect.rows import GUIDED_SOURCES
from trainers.affect.shards import load_part

POOL = Path(__file__).parents[1] / "pool"
# The encoder's own tokenizer, as it ships: nothing here needs PyTorch.
TOKENIZER = Path(__file__).parents[3] / "sidecars" / "weights" / "minilm" / TOKENIZER_FILE
POOL_SOURCE = "llm_label"  # of all labelled rows in the arrays
# What ties rows together, the widest tie first (the split's group holds all of them).
TIES = ("group", "pair", "frame", "session_id", "thread", "id", "text")


def label_names(auxiliary: pl.DataFrame, source: str) -> list[str]:
    """The emotion labels that a source's rows use, sorted."""
    rows = auxiliary.filter(pl.col("source") == source)
    names = rows.explode("aux").select(pl.col("aux").struct.field("name")).unique()
    return sorted(name for name in names["name"].to_list() if name)


def main(argv: list[str] | None = None) -> int:
    """Write the array file and the names of its label columns beside it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--set", dest="folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chat", type=Path, action="append", default=[], help="docs.jsonl.gz")
    parser.add_argument("--chat-rows", type=int, default=60_000)
    parser.add_argument("--prose", type=Path, action="append", default=[],
                        help="docs.jsonl.gz of sentences")  # fmt: skip
    parser.add_argument("--prose-rows", type=int, default=12_000, help="of all files together")
    parser.add_argument("--variants", type=int, default=0, help="of each message of the pool")
    parser.add_argument("--most", type=int, default=0,
                        help="train rows of a source, and a quarter of it in dev and test for"
                        " sources of emotions alone (0: all)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for path in (args.folder, *args.chat, *args.prose):
        if not path.exists():
            parser.error(f"{path}: not found")
    try:
        auxiliary = load_part(args.folder, "auxiliary")
        table = _rows(args.folder, auxiliary)
        if args.most:
            table = _some(table, args.most, args.seed)
        training = table.filter(pl.col("part") == "train")
        GoldGuard.load(POOL).refuse(training, f"{args.folder}: training rows")
        if not training.height:
            raise DataError(
                f"{args.folder}: no training rows; make the set with `limbic data build`"
            )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if unknown := sorted(set(table["source"]) - set(SOURCES)):
        parser.error(
            f"{args.folder}: the head learns nothing from rows of source {unknown[0]!r}; build the"
            " set without them, or label them (limbic label)"
        )
    names = {
        "emotions": label_names(auxiliary, "goemotions"),
        "film": label_names(auxiliary, "xed"),
        "intensity": label_names(auxiliary, "semeval"),
    }
    records = table.to_dicts() + _pairs()
    try:
        measured = {r["text"] for r in records if r["part"] != "train"}
        records += _chat(args.chat, args.chat_rows, args.seed, measured)
        records += _prose(args.prose, args.prose_rows, args.seed, {r["text"] for r in records})
    except ValueError as error:
        parser.error(str(error))
    if args.variants:
        records += variants(records, _neighbours(), args.variants, args.seed)
    arrays = _arrays(records, names)
    arrays["digest"] = np.array(digest_of(arrays))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.with_suffix(".json").write_text(json.dumps(names, indent=1) + "\n")
    write_texts(args.out, str(arrays["digest"]), records)
    # The array file comes last and whole: where it is, the stage is done.
    part = args.out.with_name(f"{args.out.name}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, **arrays)
    part.replace(args.out)
    counts = {part: int((arrays["part"] == i).sum()) for i, part in enumerate(PARTS)}
    print(f"{args.out}: {counts}")
    return 0


def _some(table: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """At most ``most`` train rows a source, and a quarter of that where only emotions are known."""
    emotions = pl.col("source").is_in(["goemotions", "xed", "semeval"])
    cap = (
        pl.when(pl.col("part") == "train").then(most)
        .when(emotions).then(most // 4)
        .otherwise(table.height)
    )  # fmt: skip
    order = pl.Series("place", np.random.default_rng(seed).permutation(table.height))
    place = pl.col("place").rank("ordinal").over("part", "source")
    return table.with_columns(order).filter(place <= cap).drop("place")


def _rows(folder: Path, auxiliary: pl.DataFrame) -> pl.DataFrame:
    """Scored and auxiliary rows of train, dev and test, and gold; who labelled a row of the pool,
    a person or not, makes no difference to what is learnt from it."""
    parts = [load_part(folder, p).with_columns(part=pl.lit(p)) for p in ("train", "dev", "test")]
    # Published dev rows of documents that are in train are left out: they would flatter.
    parts.append(auxiliary.with_columns(part=pl.col("split")))
    parts.append(load_part(folder, "gold").with_columns(part=pl.lit("gold")))
    guided = pl.col("source").is_in(sorted(GUIDED_SOURCES))
    return pl.concat(parts).filter(pl.col("part").is_in(PARTS)).with_columns(
        source=pl.when(guided).then(pl.lit(POOL_SOURCE)).otherwise("source")
    )  # fmt: skip


def _pairs() -> list[dict[str, Any]]:
    """Both sides of every minimal pair, ``a`` and ``b`` adjacent and in file order."""
    found = []
    for line in (POOL / "minimal_pairs.jsonl").read_text().splitlines():
        pair = json.loads(line)
        for side in "ab":
            scores = dict(zip(AXES, pair[f"scores_{side}"], strict=True))
            found.append(
                {"text": pair[side], "context": pair.get("context", []), "source": "pair",
                 "frame": pair["frame"],
                 "part": f"pair_{side}", "clean": pair["clean"], "axis": pair["axis"], **scores}
            )  # fmt: skip
    return found


def _training_documents(path: Path) -> Iterator[dict[str, Any]]:
    """The documents of a ``docs.jsonl.gz`` that are not held out.

    Raises:
        ValueError: it is none; the message names the file.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                doc = json.loads(line)
                if doc.get("split", "train") == "train":
                    yield doc
    except (OSError, EOFError, ValueError, AttributeError, zlib.error) as error:
        raise ValueError(f"{path}: not gzipped JSON lines of documents ({error})") from error


def _chat(files: list[Path], limit: int, seed: int, measured: set[str]) -> list[dict[str, Any]]:
    """Unlabelled messages with up to two earlier turns, from the training dialogues only, and none
    whose text is among the ``measured`` ones: a teacher would say what a student is measured on.
    Texts are the same in the gold guard's sense."""
    found = []
    for path in files:
        for doc in _training_documents(path):
            turns = doc.get("turns") or []
            for i, text in enumerate(turns):
                if 2 <= len(text.split()) <= 60:
                    context = turns[max(0, i - 2) : i] if i % 2 else []
                    found.append({"text": text, "context": context, "source": "chat",
                                  "part": "unlabelled"})  # fmt: skip
    known = text_key(pl.Series([r["text"] for r in found], dtype=pl.String)).is_in(
        text_key(pl.Series(sorted(measured), dtype=pl.String)).to_list()
    )
    found = [record for record, is_known in zip(found, known, strict=True) if not is_known]
    picked = np.random.default_rng(seed).permutation(len(found))[:limit]
    return [found[i] for i in picked]


def _prose(files: list[Path], limit: int, seed: int, known: set[str]) -> list[dict[str, Any]]:
    """Unlabelled sentences out of context, as EmoBank's are, an equal number of each file; only of
    its training documents, and none that is among ``known``: a measured text is not read twice."""
    rng = np.random.default_rng((seed, SOURCES.index("prose")))
    picked: list[dict[str, Any]] = []
    for path in files:
        found: set[str] = set()
        for doc in _training_documents(path):
            found |= {s for s in doc.get("sents") or () if 5 <= len(s.split()) <= 45}
        texts = sorted(found - known)
        for i in rng.permutation(len(texts))[: limit // len(files)]:
            picked.append({"text": texts[i], "context": [], "source": "prose",
                           "part": "unlabelled"})  # fmt: skip
        known = known | found
    return picked


def _neighbours() -> Neighbours:
    # Imported here: only variants need PyTorch, for the encoder's word table.
    from safetensors.numpy import load_file

    from trainers.encoder.minilm import package_folder

    weights = load_file(package_folder() / "model.safetensors")
    table = weights["embeddings.word_embeddings.weight"].astype(np.float32)
    return Neighbours(json.loads(TOKENIZER.read_text())["model"]["vocab"], table)


def _arrays(records: list[dict[str, Any]], names: dict[str, list[str]]) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(str(TOKENIZER))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    encoded = tokenizer.encode_batch(
        [(r["text"], "\n".join(r["context"])) if r.get("context") else r["text"] for r in records]
    )
    count = len(records)
    nan = float("nan")

    def column(name: str) -> list[float]:
        return [nan if r.get(name) is None else float(r[name]) for r in records]

    shares = np.ones((count, 3), np.float32)
    widths = {"tags": TAGS, **names}
    targets = {
        key: np.full((count, len(labels)), nan, np.float32) for key, labels in widths.items()
    }
    column_of = {"goemotions": "emotions", "xed": "film", "semeval": "intensity"}
    for i, record in enumerate(records):
        for share in record.get("share") or []:
            shares[i, AXES.index(share["name"])] = share["value"]
        if record["source"] == "llm_label":
            targets["tags"][i] = [tag in record["tags"] for tag in TAGS]
        key = column_of.get(record["source"])
        if key:
            targets[key][i] = 0.0
            for label in record.get("aux") or []:
                if label["name"] in names[key]:
                    targets[key][i, names[key].index(label["name"])] = label["value"]
    lengths = [len(e.ids) for e in encoded]
    return {
        "ids": np.concatenate([np.asarray(e.ids, np.uint16) for e in encoded]),
        "kinds": np.concatenate([np.asarray(e.type_ids, np.uint8) for e in encoded]),
        "starts": np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        "axes": np.asarray([column(a) for a in AXES], np.float32).T.copy(),
        "shares": shares,
        **targets,
        "weight": np.nan_to_num(np.asarray(column("weight"), np.float32), nan=1.0),
        "part": np.asarray([PARTS.index(r["part"]) for r in records], np.uint8),
        "source": np.asarray([SOURCES.index(r["source"]) for r in records], np.uint8),
        "weak": np.asarray(
            [(r["source"] in column_of and r.get("valence") is not None)
             or (r["source"] in column_of and r.get("tension") is not None)
             or (r["source"] in column_of and r.get("intimacy") is not None) for r in records]
        ),
        "clean_pair": np.asarray([bool(r.get("clean")) for r in records]),
        "groups": _groups(records),
        "pair_axis": np.asarray([AXES.index(r["axis"]) if "axis" in r else -1 for r in records],
                                np.int8),
    }  # fmt: skip


def _groups(records: list[dict[str, Any]]) -> NDArray[np.int32]:
    """A number for each row; rows that share their widest tie share it."""
    seen: dict[tuple[str, str], int] = {}
    return np.asarray(
        [seen.setdefault(next((tie, r[tie]) for tie in TIES if r.get(tie)), len(seen))
         for r in records], np.int32
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
