"""``python -m trainers.affect.head.reproduce``: the shipped head, from public data to figures.

Stages, each a command that can be run alone: build the set, prepare arrays, train teachers and a
student, let it learn from a larger encoder, average its weights with those before, export, report
(with the baselines). A stage whose output is there is skipped, and every output is written last and
whole, so a chain that was stopped or killed goes on where it was. A stage whose gate failed has its
output, too; the chain goes on and ends with that stage's code, also when it is run again.
``--quick`` trains the heads alone on vectors that the frozen encoder computes once, and on at most
1,000 rows of each source: a look at the whole chain on a CPU, and no figure to compare with.
``--generative`` makes the generative head instead: build, train, export, compare.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.affect.head import runs
from trainers.affect.head.arrays import Prepared

QUICK = (
    "--mode", "frozen", "--teachers", "0", "--steps", "600", "--device", "cpu",
)  # fmt: skip
QUICK_ROWS = 1000
FULL = ("--student-steps", "1600")
VARIANTS = 1
ROUNDS = 4  # of distillation; each starts where the one before ended
# What a further round does differently: more messages that nobody labelled, and no half way back.
AGAIN = (
    "--steps", "540", "--pool", "50", "--emobank", "10", "--xed", "6", "--goemotions", "14",
    "--chat", "34", "--variant", "24", "--prose", "10", "--imitation", "4", "--balance", "0",
)  # fmt: skip
LEXICON = Path("affect") / "vader" / "vader_lexicon.txt"
CHAIN_FILE = "chain.json"
CORPORA = ("chitchat_byu", "topical_chat", "self_dialogue")
PROSE = ("standardebooks", "wikipedia_en_2018")


@dataclass(frozen=True)
class Stage:
    """A command, and the file that says it is done; ``arrays`` is the set that it is made with."""

    name: str
    output: Path
    module: str
    arguments: tuple[str, ...]
    arrays: Path | None = None

    @property
    def failed(self) -> Path:
        """Where the code of a gate that failed is kept, beside the output."""
        return self.output.with_name(f"{self.output.name}.failed")


def ordered(data: Path) -> list[tuple[str, Path]]:
    """The corpora that ``prepare`` is given, each behind its option."""
    return [
        (option, data / "corpora" / name / "docs.jsonl.gz")
        for option, names in (("--chat", CORPORA), ("--prose", PROSE))
        for name in names
    ]


def stages(
    data: Path, out: Path, *, quick: bool, lexicon: Path | None, encoder: str | None = None,
    rounds: int = ROUNDS,
) -> list[Stage]:  # fmt: skip
    """The chain for one folder of public data and one of results."""
    arrays, run, model = out / "affect.npz", out / "run", out / "model"
    texts = [word for option, path in ordered(data) if path.exists() and not quick
             for word in (option, str(path))]  # fmt: skip
    words = ("--lexicon", str(lexicon)) if lexicon else ()
    kept = ("--cache", str(out / "cache"))
    head = first = run / "head.safetensors"
    distilled: list[Stage] = []
    for number in range(0 if quick else rounds):
        tail = "" if number == 0 else str(number + 1)
        folder, start = out / f"distilled{tail}", head
        taught, head = (folder / "head.safetensors", out / f"averaged{tail}" / "head.safetensors")
        again = ("--round", str(number), "--teachers-in", str(out / "distilled"), *AGAIN)
        distilled += [
            Stage(f"distil{tail}", taught, "trainers.affect.head.distil",
                  ("--data", str(arrays), "--head", str(start), "--out", str(folder),
                   *(again if number else ()), *(("--encoder", encoder) if encoder else ())),
                  arrays),
            Stage(f"average{tail}", head, "trainers.affect.head.average",
                  ("--data", str(arrays), "--head", str(taught), "--start", str(start),
                   "--out", str(head), *(("--share", "1") if number else ())), arrays),
        ]  # fmt: skip
    return [
        Stage("build", out / "set" / "README.md", "trainers.affect.cli",
              ("build", "--data", str(data), "--out", str(out / "set"))),
        Stage("prepare", arrays, "trainers.affect.head.prepare",
              ("--set", str(out / "set"), "--out", str(arrays), *texts,
               *(("--most", str(QUICK_ROWS)) if quick else ("--variants", str(VARIANTS))))),
        Stage("train", first, "trainers.affect.head.train",
              ("--data", str(arrays), "--out", str(run), *(QUICK if quick else FULL)), arrays),
        *distilled,
        Stage("export", model / "metrics.txt", "trainers.affect.head.export",
              ("--data", str(arrays), "--head", str(head), "--out", str(model), *kept),
              arrays),
        Stage("report", out / "report" / "affect-report.md", "trainers.affect.head.report",
              ("--data", str(arrays), "--model", str(model), *words, *kept,
               *(() if quick else ("--emotions",)), "--out", str(out / "report")), arrays),
    ]  # fmt: skip


def run_chain(chain: list[Stage]) -> int:
    """Run the stages whose output is not there; the exit code of the one that failed, or of the
    first whose gate did, else 0."""
    gate = 0
    for number, stage in enumerate(chain, 1):
        where = f"[{number}/{len(chain)}] {stage.name}"
        if stage.output.exists():
            if problem := _another_set(stage):
                print(f"{where}: {problem}; delete it and what follows it", file=sys.stderr)
                return 2
            code = int(stage.failed.read_text()) if stage.failed.exists() else 0
            verdict = "" if not code else f"; its gate failed: {code}"
            print(f"{where}: done before ({stage.output}){verdict}", flush=True)
            gate = gate or code
            continue
        stage.failed.unlink(missing_ok=True)
        print(f"{where}: python -m {stage.module} {' '.join(stage.arguments)}", flush=True)
        began, worked = time.monotonic(), _worked()
        # The lock of ``alone`` passes to the stage, so that it holds while the stage lives.
        done = subprocess.run(
            [sys.executable, "-m", stage.module, *stage.arguments], check=False, close_fds=False
        )
        # A gate that fails has written its figures: they are what one wants to see next. Whoever
        # was killed had no verdict yet.
        if not stage.output.exists() or done.returncode < 0:
            print(f"{where}: failed with {done.returncode}; the same command goes on from here",
                  file=sys.stderr)  # fmt: skip
            return done.returncode or 1
        verdict = ""
        if done.returncode:
            stage.failed.write_text(f"{done.returncode}\n")
            verdict, gate = f" (its gate failed: {done.returncode})", gate or done.returncode
        print(
            f"{where}: {time.monotonic() - began:.0f} s, {_worked() - worked:.0f} s of"
            f" processor time{verdict}", flush=True,
        )  # fmt: skip
    return gate


def _another_set(stage: Stage) -> str:
    """Why the output of ``stage`` is not of the set that is there now; empty where it is."""
    try:
        digest = Prepared.load(stage.arrays).digest if stage.arrays else ""
    except ValueError:
        digest = ""  # not there, or no set: the stages that read it say so
    return runs.another_set(stage.output, digest) if digest else ""


def _worked() -> float:
    """Processor seconds of all stages so far: what a busy machine does not change much."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Hold ``out`` for this chain: a stage that outlived a killed chain must not be doubled.

    Raises:
        BlockingIOError: another chain, or a stage of one, is still at work there.
    """
    with (out / "chain.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.set_inheritable(lock.fileno(), True)
        yield


def generative_stages(data: Path, out: Path, *, quick: bool) -> list[Stage]:
    """The chain of the generative head; ``quick`` is a look at it, of a few steps and rows."""
    built, run, models = out / "set", out / "generative" / "run", out / "generative"
    few = {
        "train": ("--steps", "2", "--checkpoint-steps", "1"),
        "export": ("--dev-rows", "4", "--gate-rows", "2"),
        "compare": ("--rows", "4", "--answers", "2"),
    }
    here = "trainers.affect.generative"
    return [
        Stage("build", built / "report.json", "trainers.affect.cli",
              ("build", "--data", str(data), "--out", str(built))),
        Stage("train", run / "curve.png", f"{here}.train",
              ("--set", str(built), "--out", str(run), *(few["train"] if quick else ()))),
        Stage("export", models / "export.json", f"{here}.export",
              ("--run", str(run), "--set", str(built), "--out", str(models),
               *(few["export"] if quick else ()))),
        Stage("compare", models / "compare.json", f"{here}.compare",
              ("--set", str(built), "--generative", str(models / "model-Q8_0.gguf"),
               "--generative", str(models / "model-Q6_K.gguf"),
               "--out", str(models / "compare.json"), *(few["compare"] if quick else ()))),
    ]  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run what is missing; the exit code of the stage that failed, or whose gate did."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `limbic data fetch`")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--quick", action="store_true", help="heads alone, minutes on a CPU")
    parser.add_argument("--generative", action="store_true", help="the generative head instead")
    parser.add_argument("--encoder", help="of the wide teachers: a model folder or a hub's name")
    parser.add_argument("--rounds", type=int, default=ROUNDS,
                        help="of distillation (default: %(default)s)")  # fmt: skip
    parser.add_argument("--lexicon", type=Path, help="vader_lexicon.txt (default: in the data)")
    args = parser.parse_args(argv)
    if not args.data.is_dir():
        parser.error(f"{args.data}: no such folder; `limbic data fetch` makes one")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: at least 1")
    lexicon = args.lexicon
    if lexicon is None and (args.data / LEXICON).exists():
        lexicon = args.data / LEXICON
    args.out.mkdir(parents=True, exist_ok=True)
    kind: dict[str, Any] = {"quick": args.quick, "data": str(args.data.resolve())}
    said = args.out / CHAIN_FILE
    if args.generative:
        chain = generative_stages(args.data, args.out, quick=args.quick)
    else:
        chain = stages(args.data, args.out, quick=args.quick, lexicon=lexicon,
                       encoder=args.encoder, rounds=args.rounds)  # fmt: skip
        for option, path in () if args.quick else ordered(args.data):
            if not path.exists():
                print(f"{path}: not there, the head learns without it ({option})", flush=True)
        kind |= {} if args.quick else {"rounds": args.rounds, "encoder": args.encoder}
    before = json.loads(said.read_text()) if said.exists() else kind
    # Chains from before these were written down hold neither.
    known = {name: kind[name] for name in ("data", "encoder") if name in kind} | before
    if known != kind:
        other = "a quick chain" if before["quick"] else "a full chain"
        if "rounds" in before:
            other += f" of {before['rounds']} rounds"
        if known["data"] != kind["data"]:
            other += f" from {known['data']}"
        if known.get("encoder") != kind.get("encoder"):
            other += f" with {known.get('encoder') or 'the default encoder'}"
        parser.error(f"{args.out}: holds {other}; give another --out")
    said.write_text(json.dumps(kind) + "\n")
    try:
        with alone(args.out):
            return run_chain(chain)
    except BlockingIOError:
        parser.error(f"{args.out}: a stage is still at work there; wait for it or end it")


if __name__ == "__main__":
    # A polite kill ends the stage as well: subprocess.run takes it down when an exception passes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    raise SystemExit(main())
