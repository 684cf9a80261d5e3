"""``limbic data`` commands on finished sets: card, gold, and the whole build."""

from __future__ import annotations

from pathlib import Path

import click

from trainers.affect.cli import Steps, data_folder, emit
from trainers.affect.config import load_mapping, load_sources
from trainers.affect.errors import DataError
from trainers.affect.frame import read_frame
from trainers.affect.gold import GOLD_FILE, GoldGuard, check_frozen, freeze
from trainers.affect.options import (
    FOLDER,
    IN,
    OUT,
    config_option,
    json_option,
    licence_option,
    max_option,
    pool_folder,
    pool_option,
    seed_option,
    settings,
)


@click.command("card")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False, exists=True))
@licence_option
@click.option("--out", type=OUT, help="Default: standard output.")
@json_option
def card(folder: Path, licence: str, out: Path | None, as_json: bool) -> None:
    """The dataset card of a set that `limbic data build` wrote.

    With --licence permissive it describes the permissive files alone, and names the others.

    \b
    Example:
      limbic data card data/affect --licence permissive --out CARD.md
    """
    from trainers.affect.card import card as describe
    from trainers.affect.card import command_of, render_card

    found = describe(folder, load_sources(), permissive_only=licence == "permissive")
    if as_json:
        emit(found)
        return
    text = render_card(found, command_of(found["report"], folder))
    if out is None:
        click.echo(text)
    else:
        out.write_text(text, "utf-8")


@click.command("gold")
@pool_option
@click.option("--freeze", "write", is_flag=True, help="Write the hash file beside the gold set.")
@click.option("--refuse", type=IN, help="Fail if this file of rows holds gold.")
def gold(pool: Path | None, write: bool, refuse: Path | None) -> None:
    """Check that the gold set is the frozen one, freeze a new one, or refuse gold in a file.

    \b
    Example:
      limbic data gold --refuse data/affect/train.jsonl
    """
    folder = pool_folder(pool)
    path = folder / GOLD_FILE
    if not path.exists():
        raise DataError(f"{path}: there is no gold set; give its folder with --pool")
    if write:
        click.echo(f"{freeze(path)}  {path}")
    check_frozen(path)
    guard = GoldGuard.load(folder)
    if refuse is not None:
        guard.refuse(read_frame(refuse), str(refuse))
    click.echo(f"{path}: {len(guard.ids)} guarded rows, frozen")


@click.command("build")
@click.option("--data", "folder", type=FOLDER, help="Data folder (or LIMBIC_DATA).")
@click.option(
    "--out", type=FOLDER, default=Path("data/affect"), show_default=True, help="Folder to write."
)
@click.option("--source", "names", multiple=True, help="Only these public sources.")
@pool_option
@config_option
@seed_option
@max_option
@licence_option
@click.option("--picture/--no-picture", default=True, help="Draw joint.png.")
@click.option("--ci", is_flag=True, help="Exit code 1 when the gate fails.")
@json_option
def build(
    folder: Path | None,
    out: Path,
    names: tuple[str, ...],
    pool: Path | None,
    config: Path | None,
    seed: int | None,
    max_rejects: float | None,
    licence: str,
    picture: bool,
    ci: bool,
    as_json: bool,
) -> None:
    """Everything, from the public files and the shipped pool to a training set with its card.

    \b
    Example:
      limbic data build --data data/public --out data/affect --ci
    """
    from trainers.affect.build import build_set
    from trainers.affect.readers import READERS

    unknown = [name for name in names if name not in READERS]
    if unknown:
        raise click.BadParameter(
            f"{unknown[0]!r} is none of {', '.join(READERS)}", param_hint="--source"
        )
    build_settings = settings(config, seed, max_rejects)
    options = "".join(f" --source {name}" for name in names)
    options += " --licence permissive" if licence == "permissive" else ""
    options += f" --seed {seed}" if seed is not None else ""
    with Steps(quiet=as_json) as steps:
        result = build_set(
            data_folder(folder),
            out,
            build_settings,
            load_mapping(),
            load_sources(),
            pool=pool_folder(pool),
            names=names,
            permissive_only=licence == "permissive",
            picture=picture,
            command=f"limbic data build --data FOLDER --out FOLDER{options}",
            say=steps,
        )
    if bad := len(result.rejects.items):
        click.echo(f"{bad} lines rejected, see {out / 'rejects.jsonl'}", err=True)
    if as_json:
        emit(result.report)
    else:
        counts = ", ".join(f"{name} {n}" for name, n in result.report["split"]["counts"].items())
        click.echo(f"{out}: {counts}; gate {'passed' if result.passed else 'FAILED'}")
    if ci and not result.passed:
        raise SystemExit(1)
