"""Commands as a script sees them: exit codes, one-line errors, signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from brain.app import Limbic
from brain.cli import main
from brain.settings import SidecarSettings, load_settings
from tests.fakes.llm_server import FakeLLM, refuse

ROOT = Path(__file__).parent.parent


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    base = {k: v for k, v in os.environ.items() if not k.startswith("LIMBIC")}
    return {
        **base, "LIMBIC_CONFIG": str(config(tmp_path)), "PYTHONPATH": str(ROOT), "NO_COLOR": "1",
        **more,
    }  # fmt: skip


def config(tmp_path: Path) -> Path:
    file = tmp_path / "limbic.toml"
    if not file.exists():
        file.write_text(f'[paths]\ndata = "{tmp_path}/data"\n')
    return file


def limbic(tmp_path: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "brain", *arguments], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, env=environment(tmp_path, **environ), check=False,
    )  # fmt: skip


@pytest.mark.parametrize("command", ["chat", "serve", "diagnostics", "data", "label", "sidecar"])
def test_every_command_explains_itself(tmp_path: Path, command: str) -> None:
    done = limbic(tmp_path, command, "--help")
    assert done.returncode == 0 and "Usage: limbic" in done.stdout
    assert "limbic" in done.stdout.split("Usage:")[1]


def test_an_unknown_command_is_a_usage_error(tmp_path: Path) -> None:
    done = limbic(tmp_path, "sing")
    assert done.returncode == 2 and "sing" in done.stderr


@pytest.mark.parametrize("command", [["train", "affect"], ["export", "affect-report"]])
def test_training_where_its_libraries_are_not_installed_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    monkeypatch.setattr("brain.cli.forward.importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        main([*command, "--data", "x"])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 78 and "limbic-runtime[train]" in line


@pytest.mark.parametrize("command", ["serve", "diagnostics", "chat"])
def test_every_configuration_mistake_is_said_at_once(tmp_path: Path, command: str) -> None:
    config(tmp_path).write_text('[blend]\nsoft_deadline_ms = "x"\n[llm]\nbogus = 1\n')
    done = limbic(tmp_path, command)
    assert done.returncode == 78 and done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("limbic: ") for line in lines)


def test_a_port_in_use_is_exit_78_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = limbic(
            tmp_path, "serve", "--port", port, LIMBIC__LLM__BASE_URL="http://127.0.0.1:9/v1"
        )
    assert done.returncode == 78 and "choose another --port" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_bind_beyond_loopback_without_a_token_is_refused(tmp_path: Path) -> None:
    done = limbic(
        tmp_path, "serve", "--host", "0.0.0.0", "--port", "0",
        LIMBIC__LLM__BASE_URL="http://127.0.0.1:9/v1",
    )  # fmt: skip
    assert done.returncode == 78 and "token" in done.stderr


def test_serve_announces_its_address_and_ends_cleanly_on_sigterm(tmp_path: Path) -> None:
    server = subprocess.Popen(
        [sys.executable, "-m", "brain", "serve", "--port", "0"], cwd=tmp_path,
        env=environment(tmp_path, LIMBIC__LLM__BASE_URL="http://127.0.0.1:9/v1"),
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert server.stderr is not None
    line = server.stderr.readline()
    second = limbic(tmp_path, "serve", "--port", "0", LIMBIC__LLM__BASE_URL="http://127.0.0.1:9/v1")
    server.send_signal(signal.SIGTERM)
    _, rest = server.communicate(timeout=30)
    assert "http://127.0.0.1:" in line and server.returncode == 0 and rest == ""
    assert second.returncode == 78 and f"pid {server.pid}" in second.stderr


def test_a_file_in_the_users_folder_is_not_taken_for_a_library(tmp_path: Path) -> None:
    (tmp_path / "queue.py").write_text('raise SystemExit("this is not a library")')
    (tmp_path / "sidecars").mkdir()
    (tmp_path / "sidecars" / "__init__.py").touch()
    for arguments in (["data"], ["sidecar", "run", "llm"]):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "brain", *arguments, "--help"], cwd=tmp_path,
            env=environment(tmp_path), capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr
    # And what a chat starts, also where nothing is installed.
    spec = Limbic(load_settings(environ={}))._spec("llm", SidecarSettings(mode="managed"))
    argv, env = spec.argv[: spec.argv.index("--context-tokens")], {"PATH": os.environ["PATH"]}
    done = subprocess.run(
        [*argv, "--help"], cwd=tmp_path, env=env | dict(spec.env), capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and "usage" in done.stdout.lower(), done.stderr


async def test_diagnostics_pass_on_a_model_that_answers(llm: FakeLLM, tmp_path: Path) -> None:
    found = await _diagnose(tmp_path, llm)
    levels = {check["name"]: check["level"] for check in found["checks"]}
    assert found["ok"] is True
    assert levels["llm"] == "ok" and levels["store"] == "ok" and levels["cahm"] == "skipped"
    assert not (tmp_path / "data" / "limbic.db").exists(), "conversations are not touched"


async def test_diagnostics_name_a_model_that_refuses_and_the_fix(
    llm: FakeLLM, tmp_path: Path
) -> None:
    llm.default = refuse(401, "bad key")
    found = await _diagnose(tmp_path, llm, code=1)
    (check,) = [check for check in found["checks"] if check["name"] == "llm"]
    assert check["level"] == "failed" and check["fix"]


async def test_diagnostics_fail_in_ci_on_a_warning(llm: FakeLLM, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        found = await _diagnose(tmp_path, llm, "--ci", code=1, LIMBIC__WEB__PORT=port)
    levels = {check["name"]: check["level"] for check in found["checks"]}
    assert levels["port"] == "warning" and levels["llm"] == "ok"


async def _diagnose(
    tmp_path: Path, llm: FakeLLM, *arguments: str, code: int = 0, **environ: str
) -> dict:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "brain", "diagnostics", "--json", *arguments, cwd=tmp_path,
        env=environment(
            tmp_path, LIMBIC__LLM__BASE_URL=llm.url, LIMBIC__WEB__PORT=environ.pop(
                "LIMBIC__WEB__PORT", "0"), **environ,
        ),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == code, err
    return json.loads(out)
