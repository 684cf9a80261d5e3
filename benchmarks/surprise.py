"""``python -m benchmarks.surprise --data FOLDER``: what the agent's replies are worth to foresight.

Held-out two-person dialogues are replayed through the live state (``brain.foresight_state``) with
the shipped encoder and dialogue model: one speaker is the person, the other stands for the agent.
For each context, the cosine of the person's next message with what was expected of it, and how well
surprise tells the message from one that changes the subject: the AUC of its percentile against that
of a message which the same turn of another dialogue holds. Both speakers are the person once. 95 %
intervals resample whole dialogues; each seed draws other changes of subject.

The contexts: ``person`` alone; ``both``, with every reply; ``before reply``, both but for the last
reply, which is what is left when its vector does not come in time.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # before NumPy reads them
    os.environ.setdefault(name, "1")

import numpy as np  # noqa: E402

from brain.foresight_state import ForesightState, singles  # noqa: E402
from brain.schema import CONTEXT_VECTORS, Foresight, Vector  # noqa: E402
from sidecars.lvm import WEIGHTS  # noqa: E402
from sidecars.lvm_network import LvmNetwork, load_network  # noqa: E402
from sidecars.onnx_text import TextModel  # noqa: E402

CORPUS = Path("corpora/chitchat_byu/docs.jsonl.gz")
CONTEXTS = ("person", "before reply", "both")
RESAMPLES = 1000
ENCODER = "shipped"
States = dict[tuple[int, int], ForesightState]  # by dialogue, and which speaker is the person


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Messages of two speakers who take turns; ``first`` says who begins."""

    texts: tuple[str, ...]
    first: int


@dataclass(frozen=True, slots=True)
class Measured:
    """Of every message of the person that had a surprise: its dialogue, cosine with what was
    expected, surprise, and the surprises of the messages that could have changed the subject."""

    dialogue: np.ndarray
    cosine: np.ndarray
    surprise: np.ndarray
    changed: np.ndarray  # [messages, seeds]


def dialogues(data: Path, limit: int) -> list[Dialogue]:
    """The first dialogues of the valid split; what one says in a row is one message."""
    found = []
    with gzip.open(data / CORPUS, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if row["split"] != "valid" or not row["turns"]:
                continue
            said = zip(row["speakers"], row["turns"], strict=True)
            runs = [
                (speaker, " ".join(text for _, text in run).strip())
                for speaker, run in itertools.groupby(said, key=lambda one: one[0])
            ]
            found.append(Dialogue(tuple(text or "." for _, text in runs), runs[0][0]))
            if len(found) == limit:
                break
    return found


def strangers(rows: Sequence[Sequence[Vector]], seeds: int) -> dict[tuple[int, int], list[Vector]]:
    """For each message of each dialogue, one a seed that was said about as late in another."""
    found: dict[tuple[int, int], list[Vector]] = {}
    for seed in range(seeds):
        draw = np.random.default_rng(seed)
        for number, one in enumerate(rows):
            for place in range(len(one)):
                other = int(draw.integers(len(rows) - 1))
                there = rows[other + (other >= number)]
                vector = there[min(place, len(there) - 1)]
                found.setdefault((number, place), []).append(vector)
    return found


def measure(
    network: LvmNetwork,
    rows: Sequence[Sequence[Vector]],
    changes: dict[tuple[int, int], list[Vector]],
    kind: str,
) -> Measured:
    """Every message that had a surprise, either speaker as the person, all dialogues in step."""
    found: list[tuple[int, float, float, list[float]]] = []
    states = {(n, person): ForesightState() for n in range(len(rows)) for person in (0, 1)}
    for step in itertools.count():
        talking = [one for one in states if one[1] + 2 * step < len(rows[one[0]])]
        if not talking:
            return Measured(*(np.asarray(column) for column in zip(*found, strict=True)))
        for number, person in talking:
            said, place = rows[number], person + 2 * step
            state = states[number, person]
            distance, surprise = state.measure(said[place], ENCODER)
            if distance is not None and surprise is not None:
                others = [state.measure(v, ENCODER)[1] or 0.0 for v in changes[number, place]]
                found.append((number, 1.0 - distance, surprise, others))
            seen = Foresight(vector=said[place], distance=distance, encoder=ENCODER)
            states[number, person] = state.after(place, seen)
        replies = {
            one: {place: rows[one[0]][place + 1]}
            for one in talking
            if (place := one[1] + 2 * step) + 1 < len(rows[one[0]]) and kind != "person"
        }
        if kind == "both":
            join(states, replies)
        expect(network, states, talking, kind)
        if kind == "before reply":  # too late for this message, there for those after it
            join(states, replies)
    raise AssertionError("unreachable")


def join(states: States, replies: dict[tuple[int, int], dict[int, Vector]]) -> None:
    """The agent's replies to what was said last."""
    for one, reply in replies.items():
        states[one] = states[one].with_replies(reply, ENCODER)


def expect(
    network: LvmNetwork, states: States, talking: Sequence[tuple[int, int]], kind: str
) -> None:
    """What is said next in each session, as ``ForesightClient.anticipate`` has it, without HTTP."""
    said = [states[one].context for one in talking]
    padded = [(one[0],) * (CONTEXT_VECTORS - len(one)) + one for one in said]
    predicted = network.predict(np.asarray(padded, np.float32)).tolist()
    for one, row in zip(talking, predicted, strict=True):
        states[one] = states[one].expecting(singles(row), kind)


def auc(ordered: np.ndarray, change: np.ndarray) -> float:
    """P(change > stay) over the sorted surprises of what stayed, ties half."""
    below = np.searchsorted(ordered, change, "left") + np.searchsorted(ordered, change, "right")
    return float(below.mean() / (2 * len(ordered)))


def figures(found: Measured, take: np.ndarray) -> tuple[float, float]:
    """Cosine and AUC (mean over seeds) of the messages in ``take``."""
    ordered = np.sort(found.surprise[take])
    each = [auc(ordered, seed[take]) for seed in found.changed.T]
    return float(found.cosine[take].mean()), float(np.mean(each))


def intervals(found: dict[str, Measured]) -> dict[str, dict[str, list[float]]]:
    """Mean and 95 % of each figure by context, and of what each has over ``person``; the same
    dialogues are drawn for all."""
    of = next(iter(found.values())).dialogue
    members = [np.flatnonzero(of == number) for number in np.unique(of)]
    draw = np.random.default_rng(0)
    drawn = [
        np.concatenate([members[i] for i in draw.integers(len(members), size=len(members))])
        for _ in range(RESAMPLES)
    ]
    whole = {kind: figures(one, np.arange(len(of))) for kind, one in found.items()}
    again = {k: np.array([figures(one, take) for take in drawn]) for k, one in found.items()}
    table: dict[str, dict[str, list[float]]] = {}
    for kind in found:
        table[kind] = {}
        for column, what in enumerate(("cosine", "auc")):
            for suffix, base in (("", 0.0), (" over person", 1.0)):
                mean = whole[kind][column] - base * whole["person"][column]
                values = again[kind][:, column] - base * again["person"][:, column]
                low, high = np.quantile(values, [0.025, 0.975])
                table[kind][what + suffix] = [round(float(x), 4) for x in (mean, low, high)]
    return table


def main() -> None:
    """Print one JSON line a context."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("LIMBIC_DATA"))
    parser.add_argument("--dialogues", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=3, help="draws of changes of subject")
    args = parser.parse_args()
    if args.data is None or not (args.data / CORPUS).is_file():
        sys.exit(f"{CORPUS} is missing: give the data folder with --data or LIMBIC_DATA")
    encoder = TextModel.load(WEIGHTS / "minilm")
    network = load_network(WEIGHTS / "lvm_dialogue")
    assert isinstance(network, LvmNetwork)
    found = dialogues(args.data, args.dialogues)
    flat = encoder.run([text for one in found for text in one.texts])["embedding"]
    vectors = iter([singles(row) for row in flat.tolist()])
    rows = [[next(vectors) for _ in one.texts] for one in found]
    changes = strangers(rows, args.seeds)
    measured = {kind: measure(network, rows, changes, kind) for kind in CONTEXTS}
    for kind, row in intervals(measured).items():
        print(json.dumps({"context": kind, "dialogues": len(found),
                          "messages": len(measured[kind].cosine), **row}))  # fmt: skip


if __name__ == "__main__":
    main()
