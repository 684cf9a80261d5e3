"""What turns and the work around them need, put together once by ``brain.app``."""

from __future__ import annotations

from dataclasses import dataclass

from brain.affect_classifier import AffectClassifier
from brain.blend import Blend
from brain.clock import Clock
from brain.events import Emit
from brain.foresight import ForesightClient
from brain.llm import LLMClient
from brain.memory import Memory
from brain.renewal import Renewal
from brain.sessions import Sessions
from brain.settings import Settings
from brain.store import Store
from brain.telemetry import Telemetry

PREFILL_DEADLINE_MS = 30_000


@dataclass(slots=True)
class Parts:
    """What a turn needs; chat is complete without ``classifier`` and ``foresight``."""

    settings: Settings
    clock: Clock
    emit: Emit
    telemetry: Telemetry
    store: Store
    sessions: Sessions
    memory: Memory
    blend: Blend
    llm: LLMClient
    classifier: AffectClassifier | None = None
    foresight: ForesightClient | None = None
    renewal: Renewal | None = None
