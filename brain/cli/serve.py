"""``limbic serve``: one brain behind HTTP, until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from brain.cli.common import config_option, settings_for
from brain.settings import Settings

DRAIN_S = 10.0


@click.command(epilog="Example: limbic serve --port 8765")
@config_option
@click.option("--host", help="Address to bind. Default: web.host, 127.0.0.1.")
@click.option("--port", type=click.IntRange(0, 65535), help="Port. Default: web.port, 8765.")
def serve(config: Path | None, host: str | None, port: int | None) -> None:
    """Telemetry and health over HTTP; users' words stay out of the log unless configured."""
    from brain.errors import ConfigError

    settings = settings_for(config, log_text=False)
    try:
        asyncio.run(
            _serve(
                settings,
                host or settings.web.host,
                settings.web.port if port is None else port,
            )
        )
    except OSError as error:
        raise ConfigError(
            f"cannot listen: {error.strerror or error}; choose another --port"
        ) from error


async def _serve(settings: Settings, host: str, port: int) -> None:
    from aiohttp import web

    from brain.app import Limbic
    from brain.web import make_app, token_from

    token = token_from(settings.web.token_env)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with Limbic.open(settings) as limbic:
        app = make_app(limbic, host=host, token=token)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=DRAIN_S)
        await runner.setup()
        try:
            site = web.TCPSite(runner, host, port, backlog=128)
            await site.start()
            address = runner.addresses[0]
            click.echo(f"limbic serves on http://{address[0]}:{address[1]}", err=True)
            await stop.wait()
        finally:
            await runner.cleanup()
