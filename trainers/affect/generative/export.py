"""``limbic export affect-generative``: a trained adapter → files that llama.cpp and cahm load.

    limbic export affect-generative --run runs/generative --set data/affect --out models/affect
    limbic export affect-generative --quantise models/affect/model-F16.gguf --type Q6_K --out FILE

The first form merges the adapter and writes ``hf/`` (transformers' format), ``model-F16.gguf``,
``model-Q8_0.gguf``, ``model-Q6_K.gguf`` and ``adapter.gguf`` with a lock file each, and
``export.json``. Confidence is fitted on the set's dev rows. The gate: on ``--gate-rows`` of them no
score of the F16 file is further than ``GATE_WORST`` from PyTorch's with the merged weights.
The second form quantises one file; an adapter alone is refused (exit code 78).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brain.errors import LimbicError
from sidecars.hashing import hash_file
from trainers.affect.errors import DataConfigError, DataError
from trainers.affect.generative import examples, gguf_files, model
from trainers.affect.generative.examples import Row
from trainers.affect.generative.quantise import TYPES, quantise
from trainers.affect.generative.train import ADAPTER, BASE, RECIPE

NAME = "limbic-affect-generative"
GATE_WORST = 0.02
#: On the quantised base the adapter meets other weights than it was trained with: only reported.
CLOSE = 0.25
Axes = NDArray[np.float64]


def torch_axes(net: Any, tokeniser: Any, rows: Sequence[Row]) -> Axes:
    """Scores [N, 3] as the sidecar reads them (``sidecars.affect_generative``), by PyTorch."""
    import torch

    from sidecars import affect_prompt as prompt

    def encode(text: str) -> list[int]:
        return list(tokeniser.encode(text, add_special_tokens=False))

    digit = [encode(str(d))[0] for d in range(10)]
    minus, point = encode("-")[0], encode(".")[0]
    found = np.zeros((len(rows), 3))
    with torch.inference_mode():
        for i, row in enumerate(rows):
            ids = examples.prompt_ids(tokeniser, row.text, row.context)
            for axis, opening in enumerate(prompt.OPENINGS):
                ids = [*ids, *encode(opening)]
                up = [*ids, digit[0], point]
                down = [*ids, minus, digit[0], point]
                a, b = (
                    net(torch.tensor([x])).logits[0, len(ids) - 1 :].double() for x in (up, down)
                )
                first = a[0, [minus, digit[0], digit[1]]].softmax(0).numpy()
                after = b[1, [digit[0], digit[1]]].softmax(0).numpy()
                ups = a[2, digit].softmax(0).numpy()
                downs = b[3, digit[1:]].softmax(0).numpy()
                tenths = np.arange(10) / 10
                found[i, axis] = (
                    first[1] * ups @ tenths + first[2]
                    - first[0] * (after[0] * downs @ tenths[1:] + after[1])
                )  # fmt: skip
                ids = [*ids, *encode(prompt.number(found[i, axis]))]
    return found


def gaps(found: Axes, wanted: Axes) -> dict[str, float]:
    """Largest and mean absolute difference of two sets of scores."""
    gap = np.abs(found - wanted)
    return {"worst": float(gap.max()), "mean": float(gap.mean())}


def fit_confidence(
    masses: NDArray[np.float64], axes: Axes, labels: Axes
) -> dict[str, float] | None:
    """The curve ``{"a", "b"}`` from the mean mass of an answer to the chance that its mean error is
    at most ``CLOSE``; none when the rows show one outcome only."""
    from sklearn.linear_model import LogisticRegression

    close = np.abs(axes - labels).mean(1) <= CLOSE
    if close.all() or not close.any():
        return None
    fitted = LogisticRegression(C=10.0).fit(masses.mean(1)[:, None], close)
    return {"a": float(fitted.intercept_[0]), "b": float(fitted.coef_[0, 0])}


def served_axes(
    file: Path, rows: Sequence[Row], *, adapter: Path | None = None, threads: int = 1
) -> tuple[Axes, NDArray[np.float64]]:
    """Scores and masses [N, 3] of a file as cahm reads it."""
    from sidecars.affect_generative import GenerativeHead
    from sidecars.affect_head import Message

    head = GenerativeHead.load(file, adapter=adapter, threads=threads)
    try:
        answers = [head.answer(Message(row.text, row.context)) for row in rows]
    finally:
        head.close()
    return np.stack([a.axes for a in answers]), np.stack([a.masses for a in answers])


def export(
    net: Any, tokeniser: Any, base: Path, rows: Sequence[Row], out: Path, *, alpha: float,
    gate_rows: int, threads: int = 1, told: dict[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """All files of one peft network; returns what ``export.json`` says."""
    from sidecars.artifacts import record

    out.mkdir(parents=True, exist_ok=True)
    more = told or {}
    adapter, whole = out / "adapter.gguf", out / "model-F16.gguf"
    draft = gguf_files.manifest(NAME, None, **more)
    maps = gguf_files.lora_maps(net)
    merged = net.merge_and_unload().eval()
    gguf_files.write_model(base, merged, whole, name=NAME, described=draft)
    print(f"{len(rows)} dev rows through the F16 file, for the confidence", flush=True)
    axes, masses = served_axes(whole, rows, threads=threads)
    curve = fit_confidence(masses, axes, np.asarray([row.axes for row in rows]))
    final = gguf_files.manifest(NAME, curve, **more)
    gguf_files.write_model(base, merged, whole, name=NAME, described=final)
    gguf_files.write_adapter(base, maps, adapter, name=NAME, alpha=alpha, described=final)
    merged.save_pretrained(out / "hf")
    tokeniser.save_pretrained(out / "hf")
    files = {"model-F16": whole, "adapter": adapter}
    for kind in TYPES:
        files[f"model-{kind}"] = out / f"model-{kind}.gguf"
        quantise(whole, files[f"model-{kind}"], kind, threads=threads)
    probe = rows[:gate_rows]
    print(f"gate: {len(probe)} rows through PyTorch and every file", flush=True)
    wanted = torch_axes(merged, tokeniser, probe)
    agreement = {"model-F16": gaps(axes[: len(probe)], wanted)}
    for kind in TYPES:
        found, _ = served_axes(files[f"model-{kind}"], probe, threads=threads)
        agreement[f"model-{kind}"] = gaps(found, wanted)
    found, _ = served_axes(base, probe, adapter=adapter, threads=threads)
    agreement["adapter"] = gaps(found, wanted)
    report = {
        "files": {name: {"file": path.name, "bytes": path.stat().st_size,
                         "matrices": gguf_files.tensor_types(path),
                         "against PyTorch": agreement[name]} for name, path in files.items()},
        "confidence": curve, "dev rows": len(rows), "gate rows": len(probe), **more,
        "gate": {"worst": GATE_WORST, "passed": agreement["model-F16"]["worst"] <= GATE_WORST},
    }  # fmt: skip
    for path in files.values():
        record(path)
    (out / "export.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def render(report: dict[str, Any]) -> str:
    """The files as a table for a terminal."""
    lines = [f"{'file':20} {'MB':>6}  {'worst':>6} {'mean':>6}  matrices"]
    for one in report["files"].values():
        gap = one["against PyTorch"]
        held = ", ".join(f"{count} {kind}" for kind, count in one["matrices"].items())
        lines.append(f"{one['file']:20} {one['bytes'] / 1e6:6.1f}  {gap['worst']:6.3f} "
                     f"{gap['mean']:6.3f}  {held}")  # fmt: skip
    passed = "passed" if report["gate"]["passed"] else "FAILED"
    lines.append(f"gate (F16, worst ≤ {report['gate']['worst']}): {passed}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """0 done, 1 the gate failed, 2 usage, 78 a file that cannot be used."""
    parser = argparse.ArgumentParser(
        prog="limbic export affect-generative", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--run", type=Path, help="folder of limbic train affect-generative")
    parser.add_argument("--set", dest="folder", type=Path, help="the built set, for its dev rows")
    parser.add_argument("--out", type=Path, required=True, help="folder, or file with --quantise")
    parser.add_argument("--base", default=model.BASE, help="GGUF of the chat model (%(default)s)")
    parser.add_argument("--gate-rows", type=int, default=32)
    parser.add_argument("--dev-rows", type=int, help="at most so many for the confidence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quantise", type=Path, metavar="FILE", help="only make FILE smaller")
    parser.add_argument("--type", choices=sorted(TYPES), default="Q8_0")
    args = parser.parse_args(argv)
    if args.quantise is None and (args.run is None or args.folder is None):
        parser.error("give --run and --set, or --quantise FILE")
    try:
        if args.quantise is not None:
            quantise(args.quantise, args.out, args.type, threads=args.threads)
            print(f"{args.out}: {gguf_files.tensor_types(args.out)}")
            return 0
        report = _run(args)
    except (DataError, LimbicError) as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(render(report))
    return 0 if report["gate"]["passed"] else 1


def alpha_of(adapter: Path) -> float:
    """The alpha that a peft adapter was trained with: from the adapter itself, since a file beside
    it may be of another run.

    Raises:
        DataConfigError: there is no adapter.
    """
    if not (adapter / "adapter_config.json").is_file():
        raise DataConfigError(f"{adapter}: no adapter; limbic train affect-generative writes one")
    return float(_json(adapter / "adapter_config.json")["lora_alpha"])


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise DataConfigError(
            f"{path}: cannot be read; repeat limbic train affect-generative ({error})"
        ) from error
    return found


def _run(args: argparse.Namespace) -> dict[str, Any]:
    adapter = args.run / ADAPTER
    alpha = alpha_of(adapter)
    recipe = _json(args.run / RECIPE)
    rows = examples.load_rows(args.folder, "dev")
    order = np.random.default_rng(0).permutation(len(rows))  # the file is sorted by source and id
    rows = [rows[i] for i in order[: args.dev_rows]]
    base = model.base_file(args.base)
    if base.name != recipe["base"]:
        raise DataConfigError(f"{base.name}: the run was trained on {recipe['base']}")
    # Recipes from before the hash was kept have the name alone.
    if recipe.get("base_sha256") not in (None, found := hash_file(base)):
        raise DataConfigError(
            f"{base}: has sha256 {found[:12]}…, the run was trained on another file of that name "
            f"({recipe['base_sha256'][:12]}…)"
        )
    from peft import PeftModel

    net, tokeniser = model.load_base(base, args.run / BASE)
    net = PeftModel.from_pretrained(net, str(adapter))
    return export(
        net, tokeniser, base, rows, args.out, alpha=alpha,
        gate_rows=args.gate_rows, threads=args.threads, told={"rows": recipe["rows"]},
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(main())
