"""The labelling page: one rater, one browser, loopback only.

The page needs no network and no build step. A request is answered only when its Host is this
server's own, its Origin (if any) too, and it carries the token from the link that `serve` prints;
another site in the same browser can therefore neither read rows nor write labels. What the rater
reads is put on the page as text, never as markup.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from trainers.affect.label.form import ENDS, FIELDS, TAG_KEYS, low_of
from trainers.affect.label.items import Label, explain
from trainers.affect.label.log import LabelError
from trainers.affect.label.session import Conflict, LabelSession

_PAGE_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
MAX_BODY_BYTES = 64 * 1024
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at: int
    note: str = ""
    label: Label | None = None


class LabelServer:
    """Routes over one session. `token` is what the page must send; a fresh one unless given."""

    def __init__(self, session: LabelSession, guidelines: str, token: str | None = None) -> None:
        self.token = token or secrets.token_urlsafe(24)
        self._session = session
        self._guidelines = guidelines
        self._writing = asyncio.Lock()  # answers come one at a time, as the log does

    def app(self) -> web.Application:
        """The aiohttp application, ready for a runner."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        for route in _PAGE_FILES:
            app.router.add_get(route, self._file)
        app.router.add_get("/api/state", self._state)
        app.router.add_get("/api/guidelines", self._read_guidelines)
        for action in ("save", "skip", "drop", "undo", "redo"):
            app.router.add_post(f"/api/{action}", self._act)
        return app

    # ------------------------------------------------------------------ who may ask

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        refusal = self._refusal(request)
        if refusal:
            response: web.StreamResponse = _problem(403, refusal)
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                response = _problem(error.status, error.reason)
            except Conflict as error:
                response = _problem(409, str(error))
            except LabelError as error:
                response = _problem(400, str(error))
        response.headers.update(_HEADERS)
        return response

    def _refusal(self, request: web.Request) -> str:
        port = request.transport.get_extra_info("sockname")[1] if request.transport else 0
        hosts = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
        if request.headers.get("Host") not in hosts:
            return "this page is served on loopback only; open the printed link"
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            return "requests from other sites are refused"
        if request.path.startswith("/api/"):
            sent = request.headers.get("Authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(sent.encode(), self.token.encode()):
                return "wrong or missing token; open the printed link again"
        return ""

    # ------------------------------------------------------------------ routes

    async def _file(self, request: web.Request) -> web.Response:
        path = Path(__file__).with_name(_PAGE_FILES[request.path])
        body = await asyncio.to_thread(path.read_bytes)
        return web.Response(body=body, content_type=_TYPES[path.suffix], charset="utf-8")

    async def _state(self, request: web.Request) -> web.Response:
        return _json(self._view())

    async def _read_guidelines(self, request: web.Request) -> web.Response:
        return _json({"text": self._guidelines})

    async def _act(self, request: web.Request) -> web.Response:
        try:
            answer = _Answer.model_validate_json(await request.read())
        except ValidationError as error:
            return _problem(400, explain(error))
        action = request.path.rpartition("/")[2]
        session = self._session

        def act() -> None:
            if action == "save":
                if answer.label is None:
                    raise LabelError("missing column 'label'")
                session.save(answer.label, at=answer.at)
            elif action == "skip":
                session.skip(answer.note, at=answer.at)
            elif action == "drop":
                session.drop(answer.note, at=answer.at)
            elif action == "undo":
                session.undo()
            else:
                session.redo()

        async with self._writing:
            await asyncio.to_thread(act)  # an fsync must not hold up the loop
        return _json(self._view())

    def _view(self) -> dict[str, Any]:
        task = self._session.current()
        view: dict[str, Any] = {
            "progress": self._session.progress(),
            "fields": [{"name": name, "low": low_of(name), "ends": ENDS[name]} for name in FIELDS],
            "tags": [{"key": key, "name": name} for key, name in TAG_KEYS.items()],
            "task": None,
        }
        if task is not None:
            view["task"] = {
                "text": task.text,
                "context": task.context,
                "at": task.at,
                "resolving": task.slot == "resolution",
                "label": task.label.record() if task.label else None,
                "others": {who: label.record() for who, label in (task.others or {}).items()},
            }
        return view


def _json(data: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=orjson.dumps(data), status=status, content_type="application/json", charset="utf-8"
    )


def _problem(status: int, message: str) -> web.Response:
    return _json({"error": message}, status)


async def serve(
    server: LabelServer, port: int, announce: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Listen on 127.0.0.1 until `stop`. `announce` gets the link with the token, once it works."""
    runner = web.AppRunner(server.app(), access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            raise LabelError(
                f"port {port}: {error.strerror or error}; choose another with --port"
            ) from error
        bound = runner.addresses[0][1]
        announce(f"http://127.0.0.1:{bound}/#{server.token}")
        await stop.wait()
    finally:
        await runner.cleanup()
