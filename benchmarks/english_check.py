"""``python -m benchmarks.english_check --data FOLDER``: how often ``cahm`` errs on English.

False alarms: the share of real English messages (chitchat, the affect pool, GoEmotions dev) that
are taken for another language; emoji and numbers alone are left out. Found: the share of the short
foreign lines in ``tests/foreign_lines.py``, by language. And what a check costs beside a score.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path

from sidecars.affect_head import AffectHead, Message
from sidecars.cahm import WEIGHTS
from tests.foreign_lines import FOREIGN_LINES

POOL = Path("trainers/affect/pool")


def english(data: Path) -> dict[str, list[str]]:
    """Real messages by where they come from."""
    with gzip.open(data / "corpora/chitchat_byu/docs.jsonl.gz", "rt") as file:
        chitchat = [turn for line in file for turn in json.loads(line)["turns"]]
    pool = _pool("written", "gold", "real_turns")
    rows = (data / "affect/goemotions/dev.tsv").read_text().splitlines()
    found = {
        "chitchat": chitchat,
        "affect pool": pool,
        "its families": _pool("families"),  # written after the check: nothing was tuned on them
        "GoEmotions dev": [r.split("\t")[0] for r in rows],
    }
    return {k: [t for t in v if any(c.isalpha() for c in t)] for k, v in found.items()}


def _pool(*names: str) -> list[str]:
    return [
        json.loads(line)["text"]
        for name in names
        for line in (POOL / f"{name}.jsonl").read_text().splitlines()
    ]


def main() -> None:
    """Print one line a source and one a language."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data")
    parser.add_argument("--show", action="store_true", help="print the false alarms of each source")
    args = parser.parse_args()
    head = AffectHead.load(WEIGHTS)
    for name, texts in english(args.data).items():
        started = time.perf_counter()
        wrong = [text for text in texts if not head._readable(text)]
        micros = 1e6 * (time.perf_counter() - started) / len(texts)
        print(
            f"{name:16} {len(wrong)} of {len(texts)} messages are taken for another language "
            f"({len(wrong) / len(texts):.2%}); {micros:.0f} µs a check"
        )
        if args.show:
            print("".join(f"    {text[:90]!r}\n" for text in wrong), end="")
    found = {k: sum(not head._readable(t) for t in v) for k, v in FOREIGN_LINES.items()}
    for language, count in found.items():
        print(f"{language:22} {count} of {len(FOREIGN_LINES[language])} lines found")
    total = sum(len(lines) for lines in FOREIGN_LINES.values())
    print(f"{'all':22} {sum(found.values())} of {total} ({sum(found.values()) / total:.1%})")
    message = [Message("I do not know why you talk to me like this, it makes me sad")]
    started = time.perf_counter()
    for _ in range(50):
        head.score(message)
    print(f"one score: {1e3 * (time.perf_counter() - started) / 50:.1f} ms")


if __name__ == "__main__":
    main()
