"""A TCP proxy that delays, slices, cuts, resets or stalls what the server sends.

    async with TcpProxy(server_port, Fault(slice_bytes=1, cut_after=500)) as proxy:
        connect to 127.0.0.1:proxy.port

``fault`` may be changed between connections; each connection keeps the one it began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import Self


@dataclass(frozen=True)
class Fault:
    """What happens to the bytes from server to client.

    ``delay_s`` before each piece; pieces of ``slice_bytes``; after ``cut_after`` bytes the
    connection is closed (``reset``: with RST), after ``stall_after`` bytes nothing more is sent.
    ``refuse``: connections are closed as soon as they are made.
    """

    delay_s: float = 0.0
    slice_bytes: int | None = None
    cut_after: int | None = None
    reset: bool = False
    stall_after: int | None = None
    refuse: bool = False


class TcpProxy:
    """Listens on a free loopback port and passes connections on to ``target_port``."""

    def __init__(self, target_port: int, fault: Fault | None = None) -> None:
        self.fault = fault or Fault()
        self.connections = 0
        self.port = 0
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Base address of the proxied HTTP server."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        fault = self.fault
        try:
            if fault.refuse:
                return
            upstream_reader, upstream_writer = await asyncio.open_connection(
                "127.0.0.1", self._target_port
            )
            forward = asyncio.create_task(_copy(reader, upstream_writer))
            back = asyncio.create_task(_impair(upstream_reader, writer, fault))
            try:
                await asyncio.wait((forward, back), return_when=asyncio.FIRST_COMPLETED)
            finally:
                for half in (forward, back):
                    half.cancel()
                await asyncio.gather(forward, back, return_exceptions=True)
                upstream_writer.close()
        finally:
            self._tasks.discard(task)
            if fault.reset:
                sock = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
            else:
                writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def _impair(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: Fault) -> None:
    sent = 0
    while data := await reader.read(65536):
        size = fault.slice_bytes or len(data)
        for start in range(0, len(data), size):
            piece = data[start : start + size]
            if fault.stall_after is not None and sent + len(piece) > fault.stall_after:
                writer.write(piece[: fault.stall_after - sent])
                await asyncio.Event().wait()
            last = fault.cut_after is not None and sent + len(piece) >= fault.cut_after
            if last and fault.cut_after is not None:
                piece = piece[: fault.cut_after - sent]
            # Without a delay, still one turn of the loop, so that slices are separate reads.
            await asyncio.sleep(fault.delay_s)
            writer.write(piece)
            sent += len(piece)
            await writer.drain()
            if last:
                if fault.reset:
                    await asyncio.sleep(0.01)  # RST discards what is still in socket buffers
                return
