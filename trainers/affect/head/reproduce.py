"""``python -m trainers.affect.head.reproduce``: the shipped head, from public data to figures.

Stages, each a command that can be run alone: build the set, prepare arrays, train teachers and a
student, export, baselines, report. A stage whose output is there is skipped, so a stopped run goes
on where it was; ``--quick`` trains the heads alone, for a look at the whole chain on a CPU.
``--generative`` makes the generative head instead: build, train, export, compare.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

QUICK = ("--mode", "frozen", "--teachers", "0", "--steps", "300", "--device", "cpu")
CORPORA = ("chitchat_byu", "topical_chat", "self_dialogue")


@dataclass(frozen=True)
class Stage:
    """A command, and the file that says it is done."""

    name: str
    output: Path
    module: str
    arguments: tuple[str, ...]


def stages(data: Path, out: Path, *, quick: bool, lexicon: Path | None) -> list[Stage]:
    """The chain for one folder of public data and one of results."""
    arrays, run, model = out / "affect.npz", out / "run", out / "model"
    chats = [data / "corpora" / name / "docs.jsonl.gz" for name in CORPORA]
    chat = [text for path in chats if path.exists() and not quick for text in ("--chat", str(path))]
    words = ("--lexicon", str(lexicon)) if lexicon else ()
    head = run / "head.safetensors"
    return [
        Stage("build", out / "set" / "report.json", "trainers.affect.cli",
              ("build", "--data", str(data), "--out", str(out / "set"))),
        Stage("prepare", arrays, "trainers.affect.head.prepare",
              ("--set", str(out / "set"), "--out", str(arrays), *chat)),
        Stage("train", head, "trainers.affect.head.train",
              ("--data", str(arrays), "--out", str(run), *(QUICK if quick else ()))),
        Stage("export", model / "metrics.txt", "trainers.affect.head.export",
              ("--data", str(arrays), "--head", str(head), "--out", str(model))),
        Stage("baselines", out / "baselines.json", "trainers.affect.head.baselines",
              ("--data", str(arrays), "--model", str(model), *words,
               "--out", str(out / "baselines.json"))),
        Stage("report", out / "report" / "affect-report.md", "trainers.affect.head.report",
              ("--data", str(arrays), "--model", str(model), "--out", str(out / "report"))),
    ]  # fmt: skip


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
    """Run what is missing; the exit code of the stage that failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of `limbic data fetch`")
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--quick", action="store_true", help="heads alone, minutes on a CPU")
    parser.add_argument("--generative", action="store_true", help="the generative head instead")
    parser.add_argument("--lexicon", type=Path, help="vader_lexicon.txt, for that baseline")
    args = parser.parse_args(argv)
    if not args.data.is_dir():
        parser.error(f"{args.data}: no such folder; `limbic data fetch` makes one")
    args.out.mkdir(parents=True, exist_ok=True)
    if args.generative:
        chain = generative_stages(args.data, args.out, quick=args.quick)
    else:
        chain = stages(args.data, args.out, quick=args.quick, lexicon=args.lexicon)
    for number, stage in enumerate(chain, 1):
        where = f"[{number}/{len(chain)}] {stage.name}"
        if stage.output.exists():
            print(f"{where}: done before ({stage.output})", flush=True)
            continue
        print(f"{where}: python -m {stage.module} {' '.join(stage.arguments)}", flush=True)
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", stage.module, *stage.arguments], check=False)
        # A gate that fails has written its figures: they are what one wants to see next.
        if done.returncode and not stage.output.exists():
            print(f"{where}: failed with {done.returncode}; the same command goes on from here",
                  file=sys.stderr)  # fmt: skip
            return done.returncode
        verdict = "" if not done.returncode else f" (its gate failed: {done.returncode})"
        print(f"{where}: {time.monotonic() - began:.0f} s{verdict}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
