"""A ``limbic serve`` of which only the snapshot answers, as a test scripts it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


class SnapshotServer:
    """Answers with ``status`` and ``body``, both of which may be changed at any time."""

    def __init__(self, body: Any, *, port: int = 0) -> None:
        self.body = body
        self.status = 200
        self.hold = threading.Event()  # cleared: no answer comes
        self.hold.set()
        self.in_pieces = False
        self.tokens: list[str] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                scripted.tokens.append(self.headers.get("Authorization", ""))
                scripted.hold.wait()
                body = scripted.body
                sent = body if isinstance(body, bytes) else orjson.dumps(body)
                self.send_response(scripted.status)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                cut = 40 if scripted.in_pieces else len(sent)
                self.wfile.write(sent[:cut])
                self.wfile.flush()
                if scripted.in_pieces:
                    threading.Event().wait(0.05)  # the rest comes in another packet
                self.wfile.write(sent[cut:])

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, *_: Any) -> None:
                pass  # the client left

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Nobody answers any more."""
        self.hold.set()
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def answering(body: Any, *, status: int = 200, port: int = 0) -> Iterator[SnapshotServer]:
    """A server that is closed at the end."""
    server = SnapshotServer(body, port=port)
    server.status = status
    try:
        yield server
    finally:
        server.close()
