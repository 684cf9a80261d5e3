"""``limbic diagnostics``: everything that must work, checked, each failure with its fix.

A brain of its own is started on a data directory of its own with the configured models, and one
real turn is made: every side model must become ready and answer plausibly. Conversations are not
touched. Exit codes: 0 ok · 1 a check failed (with ``--ci`` a warning too) · 78 bad configuration.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from brain.app import Limbic
from brain.cli.common import config_option, settings_for
from brain.errors import ConfigError, LimbicError
from brain.persona import list_personas, load_persona
from brain.settings import Settings, SideName
from probes.checks import (
    Check,
    check_directory,
    check_libraries,
    check_model,
    check_port,
    check_python,
    check_store,
    check_telemetry,
)

READY_S = 180.0
TURN_S = 120.0
SIDE_NAMES: tuple[SideName, ...] = ("cahm", "lvm")
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "skipped": "dim"}


@click.command(epilog="Example: limbic diagnostics --ci")
@config_option
@click.option("--ci", is_flag=True, help="Warnings fail too.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def diagnostics(config: Path | None, ci: bool, as_json: bool) -> None:
    """Check everything that must work; each failure says what to do."""
    settings = settings_for(config)
    progress = Console(stderr=True, quiet=as_json or not sys.stderr.isatty())
    checks: list[Check] = []
    with progress.status("checking …") as status:
        for check in run_checks(settings, lambda text: status.update(text)):
            checks.append(check)
    bad = [c for c in checks if c.level == "failed" or (ci and c.level == "warning")]
    if as_json:
        body = {"ok": not bad, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(body, indent=2))
    else:
        show(checks)
    raise SystemExit(1 if bad else 0)


def run_checks(settings: Settings, say: Callable[[str], None]) -> Iterator[Check]:
    """All checks, cheap ones first."""
    yield check_python()
    yield check_libraries()
    yield from check_personas(settings)
    yield check_directory("data", settings.data_dir)
    yield check_directory("logs", settings.logs_dir)
    yield check_store(settings.data_dir / "limbic.db")
    yield check_telemetry(settings)
    yield check_port(settings.web.host, settings.web.port)
    say("checking model files …")
    names: tuple[SideName, ...] = ("llm", *SIDE_NAMES)
    for name in names:
        side = settings.sidecar(name)
        if side.mode == "managed" and side.model and side.command is None:
            yield check_model(name, side.model)
    say("starting the side models and making one turn …")
    yield from asyncio.run(live_checks(settings))
    yield Check("probes", "skipped", "no probe has been run on this installation")


def check_personas(settings: Settings) -> Iterator[Check]:
    """Every persona file can be loaded."""
    for name in list_personas(settings):
        try:
            load_persona(name, settings)
        except ConfigError as error:
            yield Check("personas", "failed", error.problems[0], "mend the file")
            return
    yield Check("personas", "ok", ", ".join(list_personas(settings)))


async def live_checks(settings: Settings) -> list[Check]:
    """Start everything beside the real data, wait until ready, and make one real turn."""
    with tempfile.TemporaryDirectory(prefix="limbic-diagnostics-") as folder:
        paths = settings.paths.model_copy(update={"data": Path(folder), "logs": Path(folder)})
        own = settings.model_copy(update={"paths": paths})
        try:
            async with Limbic.open(own) as limbic:
                return [await check_llm(limbic), *await check_sides(limbic)]
        except (LimbicError, TimeoutError) as error:
            fix = "look at the checks above and at the log"
            return [Check("start", "failed", str(error) or "no answer in time", fix)]


async def check_llm(limbic: Limbic) -> Check:
    """The chat model becomes ready and says something; first-token time is reported."""
    try:
        async with asyncio.timeout(READY_S):
            await limbic.wait_ready()
        turn = limbic.session("diagnostics").say("Hello! Please say hello back to me.")
        async with asyncio.timeout(TURN_S):
            reply = await turn
    except (LimbicError, TimeoutError) as error:
        status = limbic.supervisor.status().get("llm")
        reason = str(error) or "no answer in time"
        if status is not None and status.reason and status.reason not in reason:
            reason += f" ({status.reason})"
        return Check("llm", "failed", reason, "check llm.model, or llm.base_url and its server")
    letters = sum(ch.isalpha() for ch in reply)
    seen = f"first token after {turn.timings['first_token_ms']:.0f} ms: {reply.strip()[:50]!r}"
    if letters < 2 or "\ufffd" in reply:
        return Check("llm", "failed", seen, "the reply is not text: is this a chat model?")
    return Check("llm", "ok", seen)


async def check_sides(limbic: Limbic) -> list[Check]:
    """Each optional side model that is configured answers one real question."""
    checks = []
    probe = "I am so happy that you are here with me!"
    for name in SIDE_NAMES:
        side = limbic.settings.sidecar(name)
        if side.mode == "off":
            checks.append(Check(name, "skipped", "switched off in the configuration"))
            continue
        try:
            async with asyncio.timeout(READY_S):
                if side.mode == "managed":
                    await limbic.supervisor.ensure(name)
                    await limbic.supervisor.wait_ready(name, READY_S)
                checks.append(await _round_trip(limbic, name, probe))
        except (LimbicError, TimeoutError) as error:
            fix = f"check sidecars.{name} in the configuration"
            checks.append(Check(name, "failed", str(error) or "no answer in time", fix))
    return checks


async def _round_trip(limbic: Limbic, name: str, text: str) -> Check:
    parts = limbic.parts
    if name == "cahm" and parts.classifier is not None:
        affect = await parts.classifier.score(
            text, session_id="diagnostics", turn_id="diagnostics", deadline_ms=10_000
        )
        seen = f"valence {affect.valence:+.2f} for {text!r} in {affect.latency_ms:.0f} ms"
        if affect.valence <= 0:
            return Check(name, "failed", seen, "a happy line must be pleasant: check the model")
        return Check(name, "ok", seen)
    if name == "lvm" and parts.foresight is not None:
        session = await limbic.session("diagnostics").open()
        seen_now = await parts.foresight.observe(
            session.foresight, text, turn_id="diagnostics", deadline_ms=10_000
        )
        size = len(seen_now.vector or ())
        return Check(name, "ok", f"{size} dimensions in {seen_now.latency_ms:.0f} ms")
    return Check(name, "ok", "ready")


def show(checks: list[Check]) -> None:
    """A table for people; colours respect NO_COLOR and pipes."""
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("check", "result", "seen"):
        table.add_column(column)
    for check in checks:
        colour = COLOURS[check.level]
        fix = f"\n→ {check.fix}" if check.fix and check.level != "ok" else ""
        table.add_row(check.name, f"[{colour}]{check.level}[/]", _plain(check.seen + fix))
    console.print(table)


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


if __name__ == "__main__":
    from brain.cli import run_command

    run_command(diagnostics, "limbic diagnostics")
