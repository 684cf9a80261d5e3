"""What the snapshot keeps of single turns: scores whenever they came, and what went wrong."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest

from brain.errors import RemoteRejected
from brain.sidecar import SidecarStatus, State
from tests.conftest import OpenLimbic, idle
from tests.fakes.llm_server import DONE, ROLE, FakeLLM, Hold, Script, chunk, refuse
from tests.fakes.side_server import Answer, FakeSide

HELD = Script((ROLE, chunk("It"), Hold(), chunk(" holds."), chunk(finish="stop"), DONE))


async def test_a_failed_and_a_left_turn_are_kept_with_their_reason(
    llm: FakeLLM, open_limbic: OpenLimbic
) -> None:
    llm.enqueue(refuse(400, "token=abcdefgh12345678 is bad"), HELD)
    async with open_limbic(llm) as limbic:
        with pytest.raises(RemoteRejected):
            await limbic.session("a").say("hello")
        async with aclosing(aiter(limbic.session("a").say("hello?"))) as tokens:
            assert await anext(tokens) == "It"
        snap = await limbic.snapshot()
    failed, left = snap["recent"]
    assert failed["status"] == "failed" and failed["error"]["code"] == "RemoteRejected"
    assert "400" in failed["error"]["message"] and "abcdefgh" not in failed["error"]["message"]
    assert left["status"] == "cancelled" and left["error"] is None
    assert left["timings"]["total_ms"] > 0


async def test_scores_that_come_before_their_turn_ends_are_kept_though_late(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", Answer(hold=True))
    llm.enqueue(HELD)
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=60) as limbic:
        async for token in limbic.session("a").say("hello"):
            if token == "It":
                side.release()
                await limbic.parts.blend.settle()
                llm.release()
        await idle(limbic)
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["affect"]["valence"] == 0.2 and turn["affect"]["late"] is True
    assert turn["affect"]["latency_ms"] == 3.0
    assert turn["sides"]["affect"]["outcome"] == "late"


async def test_what_is_missed_after_its_turn_is_told_of_that_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", Answer(hold=True))
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=40, BLEND__HARD_DEADLINE_MS=90) as (
        limbic
    ):
        await limbic.session("a").say("hello")
        await limbic.parts.blend.settle()
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["sides"]["affect"]["outcome"] == "missed"


async def test_what_is_missed_while_its_turn_is_stored_is_told_of_that_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, monkeypatch: pytest.MonkeyPatch
) -> None:
    side.enqueue("/v1/affect", Answer(hold=True))
    async with open_limbic(llm, side, BLEND__SOFT_DEADLINE_MS=40, BLEND__HARD_DEADLINE_MS=90) as (
        limbic
    ):
        finish = limbic.parts.store.finish_turn

        async def slow(*args: Any, **fields: Any) -> None:
            await limbic.parts.blend.settle()
            await finish(*args, **fields)

        monkeypatch.setattr(limbic.parts.store, "finish_turn", slow)
        await limbic.session("a").say("hello")
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["sides"]["affect"]["outcome"] == "missed"


async def test_a_side_model_that_is_down_is_told_of_its_turn(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic
) -> None:
    side.enqueue("/v1/affect", Answer(status=500))
    async with open_limbic(llm, side) as limbic:
        await limbic.session("a").say("hello")
        (turn,) = (await limbic.snapshot())["recent"]
    assert turn["sides"]["affect"]["outcome"] == "down" and turn["sides"]["affect"]["reason"]


@pytest.mark.parametrize(("required", "word"), [("false", "degraded"), ("true", "unready")])
async def test_a_side_model_elsewhere_that_does_not_answer_is_told(
    llm: FakeLLM, side: FakeSide, open_limbic: OpenLimbic, required: str, word: str
) -> None:
    side.enqueue("/ready", *[Answer(status=500)] * 99)
    async with open_limbic(llm, side, SIDECARS__CAHM__REQUIRED=required) as limbic:
        watched = limbic.supervisor.status
        assert set(watched()) == {"cahm", "lvm"}, "not the chat model: it is anybody's server"
        while any(status.state == "remote" for status in watched().values()):  # noqa: ASYNC110
            await asyncio.sleep(0)
        snap = await limbic.snapshot()
    assert snap["status"] == word
    assert [problem.partition(":")[0] for problem in snap["problems"]] == ["cahm", "lvm"]
    assert "500" in snap["sidecars"]["cahm"]["reason"]


@pytest.mark.parametrize(
    ("needed", "optional", "word"),
    [("ready", "ready", "ok"), ("ready", "off", "ok"), ("ready", "failed", "degraded"),
     ("remote", "ready", "ok"), ("starting", "ready", "unready"), ("failed", "ready", "unready")],
)  # fmt: skip
async def test_only_a_required_part_makes_the_whole_unready(
    llm: FakeLLM, open_limbic: OpenLimbic, needed: State, optional: State, word: str
) -> None:
    async with open_limbic(llm) as limbic:
        snap = limbic.telemetry.snapshot(
            sidecars={
                "cahm": SidecarStatus(needed, required=True, reason="altered"),
                "lvm": SidecarStatus(optional),
            },
            hormones={}, breaker="closed",
        )  # fmt: skip
        broken = limbic.telemetry.snapshot(sidecars={}, hormones={}, breaker="open")
    assert broken["status"] == "unready" and "failed repeatedly" in broken["problems"][0]
    assert snap["status"] == word
    assert snap["problems"] == [
        f"{name}: {state} {reason}".rstrip()
        for name, state, reason in (("cahm", needed, "altered"), ("lvm", optional, ""))
        if state in ("starting", "failed")
    ]
