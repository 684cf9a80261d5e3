"""``limbic data fetch`` and the readers of the public sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from trainers.affect.cli import data_folder, emit
from trainers.affect.config import load_build, load_mapping, load_sources
from trainers.affect.fetch import Mode, wanted
from trainers.affect.fetch import fetch as fetch_files
from trainers.affect.frame import write_frame
from trainers.affect.rows import Rejects

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("fetch")
@click.argument("sources", nargs=-1)
@click.option(
    "--to",
    type=_FOLDER,
    default=Path("data/public"),
    show_default=True,
    help="Data folder to fill.",
)
@click.option(
    "--from",
    "origin",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Take the files from this folder instead of downloading.",
)
@click.option("--link", is_flag=True, help="With --from: link the files instead of copying.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
def fetch(
    sources: tuple[str, ...], to: Path, origin: Path | None, link: bool, as_json: bool
) -> None:
    """Get SOURCES (all when none is named), each file checked against its SHA-256.

    An interrupted download goes on where it stopped. Files already there and right are left alone.

    \b
    Example:
      limbic data fetch goemotions emobank --to data/public
      limbic data fetch --from FOLDER --link
    """
    if link and origin is None:
        raise click.UsageError("--link needs --from")
    known = load_sources()
    mode: Mode = "link" if link else "copy"
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        tasks: dict[str, TaskID] = {
            file.path: bar.add_task(file.path, total=file.bytes) for file in wanted(known, sources)
        }
        results = fetch_files(
            known,
            sources,
            to,
            origin=origin,
            mode=mode,
            progress=lambda name, done, total: bar.update(tasks[name], completed=done, total=total),
        )
    if as_json:
        emit([asdict(result) for result in results])
        return
    for result in results:
        click.echo(f"{result.how:<10} {to / result.path}")


def _reader(name: str) -> click.Command:
    source = load_sources().sources[name]

    @click.option("--data", "folder", type=_FOLDER, help="Data folder (or LIMBIC_DATA).")
    @click.option("--out", type=_FILE, required=True, help="JSONL file to write.")
    @click.option("--map", "mapping", type=_FILE, help="Another archetypes.toml.")
    @click.option("--config", type=_FILE, help="Another build.toml.")
    @click.option("--rejects", "rejects_file", type=_FILE, help="Default: OUT.rejects.jsonl.")
    @click.option("--max-rejects", type=click.FloatRange(0, 1), help="Allowed share of bad lines.")
    @click.option("--cap-per-label", type=click.IntRange(1), help="Rows a label gets scores for.")
    @click.option("--json", "as_json", is_flag=True, help="Print counts as JSON.")
    def run(
        folder: Path | None,
        out: Path,
        mapping: Path | None,
        config: Path | None,
        rejects_file: Path | None,
        max_rejects: float | None,
        cap_per_label: int | None,
        as_json: bool,
    ) -> None:
        from trainers.affect.readers import READERS

        build = load_build(config)
        if cap_per_label is not None:
            caps = {"goemotions_cap_per_label": cap_per_label, "xed_cap_per_label": cap_per_label}
            build = build.model_copy(update=caps)
        rejects = Rejects()
        rows = READERS[name](data_folder(folder), load_mapping(mapping), build, rejects)
        write_frame(out, rows)
        place = rejects_file or out.with_suffix(".rejects.jsonl")
        rejects.write(place)
        scored = {axis: rows[axis].count() for axis in ("valence", "intimacy", "tension")}
        if as_json:
            emit({"rows": rows.height, "rejected": len(rejects.items), "scored": scored})
        else:
            counts = ", ".join(f"{axis} {count}" for axis, count in scored.items())
            click.echo(f"{out}: {rows.height} rows ({counts}); {len(rejects.items)} rejected")
        for item in rejects.items[:3]:
            click.echo(f"rejected {item}", err=True)
        rejects.check(build.max_rejects if max_rejects is None else max_rejects)

    run.__doc__ = f"""Read {source.title} as affect rows. Measures {source.measures}.

    Licence {source.licence}. {source.cite}

    \b
    Example:
      limbic data {name} --data data/public --out data/{name}.jsonl
    """
    return click.command(name)(run)


goemotions = _reader("goemotions")
xed = _reader("xed")
emobank = _reader("emobank")
intimacy = _reader("intimacy")
semeval = _reader("semeval")
