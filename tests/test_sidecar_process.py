"""A sidecar as a process: the line to its parent, signals, exit codes, no orphans."""

from __future__ import annotations

import os
import platform
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest

from brain.schema import Hello, Progress, parse_wire
from sidecars import process

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-only-the-parent-knows"
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*args: str, module: str = "tests.fakes.echo_sidecar", managed: bool = True):  # type: ignore[no-untyped-def]
        env = {**os.environ, **({"LIMBIC_SIDECAR_TOKEN": TOKEN} if managed else {})}
        child = subprocess.Popen(
            [sys.executable, "-m", module, *args],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(child)
        return child

    yield run
    for child in started:
        child.kill()
        child.communicate()


def hello_of(child: subprocess.Popen[bytes]) -> Hello:
    assert child.stdout is not None
    for line in child.stdout:
        if orjson.loads(line)["event"] == "hello":
            return parse_wire(Hello, line, remote="echo")
        parse_wire(Progress, line, remote="echo")
    pytest.fail("it ended without a hello")


def status_of(hello: Hello, path: str, token: str | None) -> int:
    request = urllib.request.Request(f"http://127.0.0.1:{hello.port}{path}")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_managed_sidecar_announces_itself_and_wants_its_parents_token(start: Start) -> None:
    child = start()
    hello = hello_of(child)
    assert (hello.name, hello.pid, hello.model) == ("echo", child.pid, "echo-1")
    assert status_of(hello, "/ready", TOKEN) == 200
    assert status_of(hello, "/ready", None) == 401
    assert TOKEN.encode() not in Path(f"/proc/{child.pid}/cmdline").read_bytes()


def test_nothing_else_gets_onto_the_line_to_the_parent(start: Start) -> None:
    child = start("--load", "noisy")
    hello_of(child)
    child.terminate()
    out, err = child.communicate(timeout=20)
    assert out == b""
    assert b"a library that prints" in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_exit_0(start: Start, number: signal.Signals) -> None:
    child = start()
    hello_of(child)
    child.send_signal(number)
    _, err = child.communicate(timeout=20)
    assert (child.returncode, err) == (0, b"")


def test_a_signal_while_it_loads_stops_it_too(start: Start) -> None:
    child = start("--load", "forever")
    assert child.stdout is not None and b"half" in child.stdout.readline()
    child.terminate()
    assert child.wait(20) == 0


def test_sigusr1_dumps_every_stack_and_it_lives_on(start: Start) -> None:
    child = start()
    hello = hello_of(child)
    child.send_signal(signal.SIGUSR1)
    assert status_of(hello, "/health", None) == 200
    child.terminate()
    _, err = child.communicate(timeout=20)
    assert b"most recent call first" in err and b"launch.py" in err
    assert child.returncode == 0


def test_a_model_that_cannot_be_used_is_exit_78_and_one_line(start: Start) -> None:
    child = start("--load", "missing")
    out, err = child.communicate(timeout=20)
    assert child.returncode == 78
    assert err == b"echo: model x: does not exist; give another\n"
    assert b"hello" not in out


def test_a_taken_port_is_exit_78_and_one_line(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        child = start("--port", str(taken.getsockname()[1]))
        _, err = child.communicate(timeout=20)
    assert child.returncode == 78
    assert err.count(b"\n") == 1 and b"is in use" in err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--port", "70000"], 78, b"0 to 65535"),
        (["--host", "0.0.0.0"], 78, b"needs a token"),
        (["--token-env", "NOT_SET_ANYWHERE"], 78, b"NOT_SET_ANYWHERE"),
        (["--colour"], 2, b"unrecognized"),
    ],
)
def test_bad_options_say_what_is_wrong(
    start: Start, args: list[str], code: int, words: bytes
) -> None:
    child = start(*args, managed=False)
    _, err = child.communicate(timeout=20)
    assert child.returncode == code
    assert words in err and b"Traceback" not in err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--model", "/nowhere/model.gguf"], b"does not exist"),
        (["--model", __file__], b"none of GGUF"),
        (["--threads", "0"], b"--threads must be 1 to 256"),
    ],
)
def test_the_chat_sidecar_ends_with_78_on_what_a_restart_cannot_mend(
    start: Start, args: list[str], words: bytes
) -> None:
    child = start(*args, "--port", "0", module="sidecars.llm")
    _, err = child.communicate(timeout=20)
    assert child.returncode == 78
    assert words in err and err.count(b"\n") == 1


def test_in_the_foreground_it_needs_no_token_and_speaks_to_people(start: Start) -> None:
    child = start("--port", "0", managed=False)
    hello = hello_of(child)
    assert status_of(hello, "/ready", None) == 200
    child.terminate()
    _, err = child.communicate(timeout=20)
    assert f"echo-1 is ready at http://127.0.0.1:{hello.port}".encode() in err


@pytest.mark.skipif(sys.platform != "linux", reason="PDEATHSIG is Linux's")
def test_a_sidecar_dies_with_its_parent() -> None:
    # The middle process starts a sidecar and is killed. The sidecar holds the write end of a pipe
    # as standard error; end of file there means that it has gone.
    middle = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-m', 'tests.fakes.echo_sidecar'],\n"
        "                         stdout=subprocess.PIPE)\n"
        "for line in child.stdout:\n"
        "    print(line.decode(), end='', flush=True)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", middle],
        cwd=ROOT,
        env={**os.environ, "LIMBIC_SIDECAR_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    hello = hello_of(parent)
    os.kill(hello.pid, 0)
    parent.kill()
    parent.communicate(timeout=20)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", hello.port), timeout=5)


# What the allocator keeps of 40 pieces of 1 MB once all are freed, after one of 30 MB was;
# and how many heaps it has once six threads have allocated at the same time.
KEPT = """
import ctypes, os, sys, threading
from sidecars.process import bound_free_memory
if sys.argv[1] == "bounded":
    bound_free_memory()
libc, size, MIB = ctypes.CDLL(None), ctypes.c_size_t(), 1 << 20
libc.malloc.restype = libc.open_memstream.restype = ctypes.c_void_p
pieces, text = (ctypes.c_void_p * 40)(), ctypes.c_char_p()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
libc.free(ctypes.c_void_p(libc.malloc(30 * MIB)))
before = resident()
for i in range(40):
    pieces[i] = libc.malloc(MIB)
    ctypes.memset(pieces[i], 1, MIB)
for i in range(40):
    libc.free(ctypes.c_void_p(pieces[i]))
kept = resident() - before
together = threading.Barrier(6)
def allocate():
    together.wait()
    piece = libc.malloc(100_000)
    together.wait()
    libc.free(ctypes.c_void_p(piece))
threads = [threading.Thread(target=allocate) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
file = ctypes.c_void_p(libc.open_memstream(ctypes.byref(text), ctypes.byref(size)))
libc.malloc_info(0, file)
libc.fclose(file)
print(kept // MIB, text.value.count(b"<heap nr="))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_goes_back_and_threads_share_one_heap() -> None:
    def kept(how: str) -> tuple[int, int]:
        env = {k: v for k, v in os.environ.items() if k not in ("GLIBC_TUNABLES",)
               and not k.startswith("MALLOC_")}  # fmt: skip
        out = subprocess.run(
            [sys.executable, "-c", KEPT, how], cwd=ROOT, env=env, capture_output=True, check=True
        ).stdout
        mib, heaps = map(int, out.split())
        return mib, heaps

    (mib, heaps), (mib_unbounded, heaps_unbounded) = kept("bounded"), kept("as it is")
    assert mib <= 17 and heaps == 1
    assert mib_unbounded >= 35 and heaps_unbounded > 1, "what it is there for"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's affinity and quota")
@pytest.mark.parametrize(
    ("said", "cores"),
    [("max 100000\n", 8), ("200000 100000\n", 2), ("250000 100000\n", 2), ("50000 100000\n", 1),
     ("1600000 100000\n", 8), ("nonsense", 8), (None, 8)],
)  # fmt: skip
def test_a_containers_quota_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setattr(process, "_CGROUP_QUOTA", tmp_path / "cpu.max")
    if said is not None:
        (tmp_path / "cpu.max").write_text(said)
    assert process.available_cores() == cores


def test_the_parents_token_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMBIC_SIDECAR_TOKEN", TOKEN)
    assert process.take_managed_token() == TOKEN
    assert process.take_managed_token() is None
    assert "LIMBIC_SIDECAR_TOKEN" not in os.environ
