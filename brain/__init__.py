"""Limbic: an embedded chat agent that feels the conversation.

``from brain import Limbic`` is the whole API for programs; see ``brain.app``. It is loaded when
first used, so that ``limbic --help`` and the side models do not pay for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brain.app import Limbic as Limbic
    from brain.turn import Turn as Turn

__version__ = "0.1.0"
__all__ = ["Limbic", "Turn", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Limbic":
        from brain.app import Limbic

        return Limbic
    if name == "Turn":
        from brain.turn import Turn

        return Turn
    raise AttributeError(f"module 'brain' has no attribute {name!r}")
