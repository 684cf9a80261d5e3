"""A scripted sidecar process: ``python tests/fakes/child.py MODE[,MODE…]``. Standard library only.

Without a mode (``ok``) it keeps the whole protocol: hello on standard output, ``/health``,
``/ready``, ``/metrics`` behind the bearer token, SIGUSR1 dumps stacks, SIGTERM ends it. Modes bend
one thing each and combine. ``name=NAME`` sets the name it announces (``fake``).

Before the hello
    exit=N crash-signal config      end at once, with a last word on standard error
    config-once=FILE crash-once=FILE  exit 78 or 3, but only once: it makes FILE
    crash-until=FILE                exit 3 as long as FILE does not exist
    progress=N interval=MS          N progress lines, MS apart, then go on
    stall                           say nothing more, stay alive
    endless-progress                progress for ever, never a hello
    garbage oversized binary        junk lines first
    flood                           many long lines on standard error
    bad-hello wrong-name wrong-pid  a handshake that cannot be right
    truncated                       half a hello, then standard output closes
    port=N                          listen on that port; exit 78 if it is in use
    grandchild escaped              start a process that keeps our pipes and socket open; in our
                                    process group, or in a session of its own. Its pid: GET /info
    quit-with-grandchild            the same, in our group, then end

Once it listens
    not-ready=N                     /ready says no N times     never-ready  always
    ready-progress=N                N progress lines after the hello, then ready
    ignore-term                     SIGTERM is ignored
    deaf                            /health is never answered  drip  one byte at a time
    sick[=N]                        /health answers 500, always or the first N times
    queue=N                         /health reports that queue
    leak=MB                         hold that much memory
    unready-after-start             as ok, but dies (exit 5) as soon as it has said it is ready

Requests for tests (they need the token too): GET /info (pid, ppid, environment names, the
grandchild's pid, how often /health was asked), GET /work (answers only when /finish is asked),
GET /finish, GET /exit?N, GET /deaf, GET /leak?MB.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time

FOREVER_S = 3600


class Script:
    """The modes, parsed."""

    def __init__(self, text: str) -> None:
        self.modes = dict(part.partition("=")[::2] for part in text.split(",") if part)

    def __contains__(self, mode: str) -> bool:
        return mode in self.modes

    def number(self, mode: str, default: int = 0) -> int:
        return int(self.modes.get(mode) or default)


class Fake:
    """One scripted sidecar."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.name = script.modes.get("name", "fake")
        self.token = os.environ.get("LIMBIC_SIDECAR_TOKEN", "")
        self.grandchild = 0
        self.asked_ready = 0
        self.asked_health = 0
        self.deaf = "deaf" in script
        self.finished = threading.Event()
        self.hoard = bytearray(0)

    def run(self) -> None:
        self.install_signals()
        self.maybe_end()
        self.chatter()
        listener = self.listen()
        self.start_grandchild()
        self.hoard_memory(self.script.number("leak"))
        self.progress()
        self.say_hello(listener.getsockname()[1])
        for number in range(self.script.number("ready-progress")):
            time.sleep(self.script.number("interval", 20) / 1000)
            say({"event": "progress", "detail": f"warming {number + 1}"})
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def install_signals(self) -> None:
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        ignore = "ignore-term" in self.script
        signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else lambda *_: os._exit(0))

    def maybe_end(self) -> None:
        modes = self.script.modes
        for mode, code in (("config-once", 78), ("crash-once", 3)):
            if mode in modes:
                with contextlib.suppress(FileExistsError):
                    os.open(modes[mode], os.O_CREAT | os.O_EXCL)
                    die(code, f"scripted {mode}")
        if "crash-until" in modes and not os.access(modes["crash-until"], os.F_OK):
            die(3, "scripted crash")
        if "exit" in modes:
            die(self.script.number("exit"), "scripted exit")
        if "config" in modes:
            die(78, "model file is altered: sha256 differs")
        if "crash-signal" in modes:
            os.kill(os.getpid(), signal.SIGSEGV)

    def chatter(self) -> None:
        if "garbage" in self.script:
            for junk in (b"loading...", b"{broken", b"[1, 2]", b'{"event": 7}', b"null", b"{}"):
                os.write(1, junk + b"\n")
        if "binary" in self.script:
            os.write(1, bytes(range(256)) + b"\n")
        if "oversized" in self.script:
            for _ in range(30):
                os.write(1, b"x" * 10_000)
            os.write(1, b"\n")
        if "flood" in self.script:
            for number in range(3_000):
                os.write(2, f"noise {number} {'y' * 50}\n".encode())

    def listen(self) -> socket.socket:
        listener = socket.socket()
        try:
            listener.bind(("127.0.0.1", self.script.number("port")))
        except OSError as error:
            die(78, f"port {self.script.number('port')} is in use: {error.strerror}")
        listener.listen(64)
        return listener

    def start_grandchild(self) -> None:
        modes = {"grandchild", "escaped", "quit-with-grandchild"} & set(self.script.modes)
        if not modes:
            return
        self.grandchild = os.fork()
        if self.grandchild == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if "escaped" in modes:
                os.setsid()
            time.sleep(FOREVER_S)
            os._exit(0)
        if "quit-with-grandchild" in modes:
            die(4, "left a grandchild behind")

    def hoard_memory(self, megabytes: int) -> None:
        self.hoard += b"\1" * (megabytes * 1024 * 1024)

    def progress(self) -> None:
        interval_s = self.script.number("interval", 20) / 1000
        endless = "endless-progress" in self.script
        count = FOREVER_S * 1000 if endless else self.script.number("progress")
        for number in range(count):
            say({"event": "progress", "detail": f"loading {number + 1}"})
            time.sleep(interval_s)
        if "stall" in self.script:
            time.sleep(FOREVER_S)

    def say_hello(self, port: int) -> None:
        hello = {
            "event": "hello",
            "name": "other" if "wrong-name" in self.script else self.name,
            "port": 99_999 if "bad-hello" in self.script else port,
            "pid": os.getpid() + ("wrong-pid" in self.script),
            "model": "fake-model",
            "sha256": "f" * 64,
            "version": "1",
        }
        if "truncated" in self.script:
            os.write(1, json.dumps(hello).encode()[:40])
            os.close(1)
            time.sleep(FOREVER_S)
        say(hello)

    # -- HTTP, as little of it as the supervisor needs

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as reader:
            while self.answer(connection, reader):
                pass

    def answer(self, connection: socket.socket, reader) -> bool:
        request = reader.readline().split()
        if len(request) < 2:
            return False
        authorization = ""
        while (line := reader.readline().strip()) != b"":
            key, _, value = line.decode().partition(":")
            if key.lower() == "authorization":
                authorization = value.strip()
        path, _, query = request[1].decode().partition("?")
        status, body = self.route(path, query)
        if self.token and authorization != f"Bearer {self.token}":
            status, body = 401, {"error": "token"}
        payload = json.dumps(body).encode()
        head = (
            f"HTTP/1.1 {status} Scripted\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(payload)}\r\n\r\n"
        ).encode()
        if path == "/health" and "drip" in self.script:
            for byte in head + payload:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
        connection.sendall(head + payload)
        if path == "/ready" and "unready-after-start" in self.script and body.get("ready"):
            time.sleep(0.01)
            os._exit(5)
        return True

    def route(self, path: str, query: str) -> tuple[int, dict]:
        if path == "/health":
            if self.deaf:
                time.sleep(FOREVER_S)
            self.asked_health += 1
            sick = "sick" in self.script
            limit = self.script.number("sick", sys.maxsize)
            status = 500 if sick and self.asked_health <= limit else 200
            body = {"ok": True}
            if "queue" in self.script:
                body["queue"] = self.script.number("queue")
            return status, body
        if path == "/ready":
            self.asked_ready += 1
            no = self.asked_ready <= self.script.number("not-ready")
            if no or "never-ready" in self.script:
                return 503, {"ready": False}
            return 200, {"ready": True, "model": "fake-model", "sha256": "f" * 64, "version": "1"}
        if path == "/info":
            return 200, {
                "pid": os.getpid(),
                "ppid": os.getppid(),
                "grandchild": self.grandchild,
                "healths": self.asked_health,
                "env": sorted(os.environ),
                "argv": sys.argv,
            }
        if path == "/work":
            self.finished.wait(FOREVER_S)
        elif path == "/finish":
            self.finished.set()
        elif path == "/exit":
            os._exit(int(query or 0))
        elif path == "/deaf":
            self.deaf = True
        elif path == "/leak":
            self.hoard_memory(int(query))
        return 200, {}


def say(frame: dict) -> None:
    os.write(1, json.dumps(frame).encode() + b"\n")


def die(code: int, last_word: str) -> None:
    os.write(2, last_word.encode() + b"\n")
    os._exit(code)


if __name__ == "__main__":
    Fake(Script(sys.argv[1] if len(sys.argv) > 1 else "ok")).run()
