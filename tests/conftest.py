"""Fixtures that several test files share."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, settings

from brain.app import Limbic
from brain.settings import Settings, load_settings
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import FakeSide

# Whoever started the tests may ignore hang-ups (nohup, some CI services) and children inherit that;
# the tests send them on purpose.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Hypothesis would fail an example that takes 200 ms, and slow input: a busy machine is no defect.
settings.register_profile("limbic", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("limbic")

OpenLimbic = Callable[..., AbstractAsyncContextManager[Limbic]]


@pytest.fixture
async def llm() -> AsyncIterator[FakeLLM]:
    """A scripted LLM server that also knows prefill and tokenize."""
    async with FakeLLM() as server:
        yield server


@pytest.fixture
async def side() -> AsyncIterator[FakeSide]:
    """A scripted CAHM and LVM."""
    async with FakeSide() as server:
        yield server


@pytest.fixture
def settings_of(tmp_path: Path) -> Callable[..., Settings]:
    """Settings for scripted servers: ``settings_of(llm, side, BLEND__SOFT_DEADLINE_MS=50)``."""

    def make(llm: FakeLLM, side: FakeSide | None = None, **more: Any) -> Settings:
        environ = {
            "LIMBIC__LLM__BASE_URL": llm.url,
            "LIMBIC__LLM__BACKOFF_BASE_MS": "1",
            "LIMBIC__LLM__BACKOFF_MAX_MS": "2",
            "LIMBIC__PATHS__DATA": str(tmp_path / "data"),
        }
        for name in ("CAHM", "LVM"):
            environ[f"LIMBIC__SIDECARS__{name}__MODE"] = "off" if side is None else "remote"
            if side is not None:
                environ[f"LIMBIC__SIDECARS__{name}__URL"] = side.url
        environ |= {f"LIMBIC__{key}": str(value) for key, value in more.items()}
        return load_settings(None, environ=environ)

    return make


@pytest.fixture
def open_limbic(settings_of: Callable[..., Settings]) -> OpenLimbic:
    """An open ``Limbic`` on scripted servers; closed when the block ends."""

    @asynccontextmanager
    async def make(
        llm: FakeLLM, side: FakeSide | None = None, **more: Any
    ) -> AsyncIterator[Limbic]:
        async with Limbic.open(settings_of(llm, side, **more)) as limbic:
            yield limbic

    return make


def log_lines(limbic: Limbic, name: str = "turns.jsonl") -> list[dict[str, Any]]:
    """The parsed lines of one log file; call after ``telemetry.flush()`` or after closing."""
    path = limbic.telemetry.directory / name
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


async def idle(limbic: Limbic) -> None:
    """Wait until the idle work of every session is done."""
    for session in limbic.parts.sessions.open_sessions():
        while session.background or session.kept:
            await asyncio.wait([*session.background, *session.kept])
