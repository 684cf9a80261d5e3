"""A chat shows surprise rising when its person changes the subject."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import orjson
import pytest

from brain.app import Limbic
from brain.cli.slash import Commands
from brain.settings import load_settings
from tests.conftest import OpenLimbic, idle, log_lines
from tests.fakes.llm_server import FakeLLM
from tests.fakes.side_server import FakeSide, embedding

MINILM = Path(__file__).parent.parent / "sidecars" / "weights" / "minilm"
GARDEN = (
    "I planted tomatoes in my garden this spring.",
    "The tomato seedlings are growing well in the garden bed.",
    "I water the tomatoes every evening after work.",
    "Some of the tomato leaves are turning yellow, maybe the soil is too wet.",
    "I added compost to the garden soil last weekend.",
    "The first green tomatoes appeared on the vines yesterday.",
    "Do you think I should prune the tomato plants?",
    "I tied the tomato vines to wooden stakes in the garden.",
    "My neighbour's garden has basil growing next to the tomatoes.",
    "The ripe tomatoes from the garden taste much sweeter.",
)
BANK = "My bank charged me twice for the mortgage payment this month."


def by_subject(text: str, dim: int) -> list[float]:
    """A fake encoder: a direction for the subject, and a little that is the message's own. What
    the agent says is of a subject of its own."""
    subject = 1 if text == "Hello there!" else dim - 1 if "bank" in text else 0
    row = [0.2 * x for x in embedding(text, dim)]
    row[subject] += 1.0
    norm = math.sqrt(sum(x * x for x in row))
    return [x / norm for x in row]


async def surprises(limbic: Limbic, *texts: str) -> list[float | None]:
    found = []
    for text in texts:
        turn = limbic.session().say(text)
        await turn
        await idle(limbic)
        assert turn.foresight is not None
        found.append(turn.foresight.surprise)
    return found


async def test_surprise_rises_with_another_subject_and_falls_as_one_stays_with_it(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.embed = by_subject
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=5_000) as limbic:
        same = await surprises(limbic, *GARDEN)
        dopamine = (await limbic.session().state()).levels["dopamine"]
        (changed,) = await surprises(limbic, BANK)
        after = (await limbic.session().state()).levels["dopamine"]
        shown = await Commands(limbic, limbic.session()).run("/memory")
        snapshot = await limbic.snapshot()
        staying = await surprises(limbic, *[f"{n}: the bank again" for n in range(5)])
    assert same[:6] == [None] * 6 and None not in same[6:]
    assert changed == 1.0 > max(s for s in same if s is not None)
    assert staying[-1] is not None and staying[-1] < 0.7
    assert after > dopamine, "the mood notices"
    assert shown[-1].startswith("surprise: 1.00 (your last message was further")
    assert snapshot["foresight"]["surprise"] == 1.0
    assert [row["surprise"] for row in log_lines(limbic)][:11] == [*same, 1.0]


async def test_memory_says_why_surprise_is_not_known_yet(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=5_000) as limbic:
        await surprises(limbic, *GARDEN[:3])
        lines = await Commands(limbic, limbic.session()).run("/memory")
        assert lines[-1] == "surprise: not known yet (2 measured, 5 needed before it)"
    async with open_limbic(llm, None) as limbic:
        lines = await Commands(limbic, limbic.session()).run("/memory")
    assert not any("surprise" in line for line in lines), "without an LVM there is none"


@pytest.mark.model
@pytest.mark.timeout(300)
async def test_the_shipped_models_are_surprised_by_another_subject(
    llm: FakeLLM, tmp_path: Path
) -> None:
    environ: dict[str, Any] = {
        "LIMBIC__PATHS__DATA": str(tmp_path),
        "LIMBIC__LLM__BASE_URL": llm.url,
        "LIMBIC__SIDECARS__CAHM__MODE": "off",
        "LIMBIC__SIDECARS__LVM__MODE": "managed",
        "LIMBIC__BLEND__SOFT_DEADLINE_MS": "10000",
        "LIMBIC__BLEND__HARD_DEADLINE_MS": "30000",
    }
    async with Limbic.open(load_settings(None, environ=environ)) as limbic:
        await limbic.supervisor.wait_ready("lvm", 120)
        *same, changed = await surprises(limbic, *GARDEN, BANK)
        session = await limbic.session().open()
        shipped = orjson.loads((MINILM / "manifest.json").read_bytes())
        sha = shipped["files"]["model.onnx"]["sha256"]
        name = f"{shipped['name']}-{shipped['version']}"
        assert session.foresight.encoder == f"{name}:{sha}:{shipped['dim']}"
        assert session.foresight.heard, "the agent's replies are in the context"
    assert changed == 1.0
    assert sum(s for s in same if s is not None) / 4 < 0.6
