"""The two small types that parts share so that none needs to import another."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class Emit(Protocol):
    """Record one event. Never blocks, never raises; ``brain.telemetry`` is the real one."""

    def __call__(self, event: str, /, **fields: object) -> None: ...


def discard(event: str, /, **fields: object) -> None:
    """An ``Emit`` that forgets; for tools and tests that want no log."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a sidecar listens now. ``token`` is a bearer token, or ``None`` for none."""

    url: str
    token: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that every request to this endpoint carries."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


class EndpointSource(Protocol):
    """Resolve a sidecar's address at the time of asking; it changes when a child restarts.

    Raises:
        SidecarDown: not up now. SidecarFailed: will not come up by itself.
    """

    async def __call__(self) -> Endpoint: ...
