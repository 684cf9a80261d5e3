"""The affect sidecar: its contract, bad input, reasons, and the shipped head's plain sense."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest

from brain.errors import EXIT_CONFIG, ConfigError
from brain.schema import Affect, parse_wire
from sidecars.affect_head import AffectHead, Message
from sidecars.cahm import WEIGHTS, CahmService
from sidecars.serve import ServeOptions, SidecarServer

TAGS = ("warm", "cold")


class ScriptedModel:
    """Scores by words: "hate" is unpleasant and tense, "love" pleasant and close."""

    outputs = ("axes", "spread", "tags")
    sha256 = "ab" * 32

    def __init__(self) -> None:
        self.manifest: dict[str, Any] = {
            "name": "scripted", "version": "1", "kind": "affect-encoder", "max_tokens": 16,
            "tags": list(TAGS), "tag_thresholds": [0.5, 0.5], "confidence": {"a": 2.0, "b": 1.0},
        }  # fmt: skip
        self.value = 0.5
        self.seen: list[tuple[str, str | None]] = []

    def count_tokens(self, text: str) -> int:
        return min(16, len(text.split()) + 2)

    def run(self, texts: list[str], pairs: list[str | None]) -> dict[str, np.ndarray]:
        self.seen += list(zip(texts, pairs, strict=True))
        love = np.array(["love" in t for t in texts], np.float32)
        hate = np.array(["hate" in t for t in texts], np.float32)
        axes = np.stack([self.value * (love - hate), self.value * love, self.value * hate], 1)
        return {"axes": axes, "spread": np.full(len(texts), 0.1, np.float32),
                "tags": np.stack([love, hate], 1)}  # fmt: skip


def head(model: ScriptedModel | None = None) -> AffectHead:
    return AffectHead(model or ScriptedModel())  # type: ignore[arg-type]


@asynccontextmanager
async def served(model: ScriptedModel) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    args = argparse.Namespace(model=Path("unused"), threads=1, max_queue=512)
    service = CahmService(args)
    service.load = lambda progress, stopping: _loaded(service, model)  # type: ignore[method-assign]
    async with (
        SidecarServer(service, ServeOptions(port=0)) as server,
        aiohttp.ClientSession() as http,
    ):
        yield http, server.url


def _loaded(service: CahmService, model: ScriptedModel) -> Any:
    from sidecars.service import ModelInfo

    service._head = head(model)
    return ModelInfo(service._head.name, service._head.sha256)


async def test_an_answer_keeps_the_brains_contract() -> None:
    model = ScriptedModel()
    async with served(model) as (http, url):
        body = {"text": "I love this", "context": ["before", "and now"], "turn_id": "t1"}
        async with http.post(f"{url}/v1/affect", json=body) as answer:
            affect = parse_wire(Affect, await answer.read(), remote="cahm")
    assert affect.valence == pytest.approx(0.5)
    assert affect.tags == ("warm",)
    assert affect.model == "scripted-1"
    assert ("I love this", "before\nand now") in model.seen


async def test_a_batch_is_answered_in_order() -> None:
    async with served(ScriptedModel()) as (http, url):
        items = [{"text": "I hate it"}, {"text": "plain"}, {"text": "love"}]
        async with http.post(f"{url}/v1/affect/batch", json={"items": items}) as answer:
            found = (await answer.json())["items"]
    assert [round(item["valence"], 2) for item in found] == [-0.5, 0.0, 0.5]


async def test_reasons_come_after_the_scores_and_name_the_word() -> None:
    async with served(ScriptedModel()) as (http, url):
        body = {"text": "well I hate it", "turn_id": "t7"}
        async with http.post(f"{url}/v1/affect", json=body) as answer:
            assert (await answer.json())["reasoning"] == ""
        async with http.post(f"{url}/v1/affect/reasoning", json={"turn_id": "t7"}) as answer:
            reasoning = (await answer.json())["reasoning"]
        async with http.post(f"{url}/v1/affect/reasoning", json={"turn_id": "x"}) as answer:
            assert answer.status == 404
    assert "valence: “hate” -0.50" in reasoning
    assert "intimacy" not in reasoning


@pytest.mark.parametrize(
    "body",
    [
        {"text": ""},
        {"text": "   "},
        {"text": "bell \x07"},
        {"text": "x" * 40_000},
        {"text": "a", "context": ["1", "2", "3"]},
        {"text": 3},
        {},
    ],
)
async def test_bad_input_is_a_400_with_a_reason(body: dict[str, Any]) -> None:
    async with served(ScriptedModel()) as (http, url):
        async with http.post(f"{url}/v1/affect", json=body) as answer:
            assert answer.status in (400, 413)
            assert (await answer.json())["error"]["message"]
        async with http.post(f"{url}/v1/affect", json={"text": "still there"}) as answer:
            assert answer.status == 200


async def test_a_value_that_is_not_finite_never_leaves() -> None:
    model = ScriptedModel()
    async with served(model) as (http, url):
        model.value = float("nan")
        for path, body in (("", {"text": "love"}), ("/batch", {"items": [{"text": "love"}] * 2})):
            async with http.post(f"{url}/v1/affect{path}", json=body) as answer:
                assert answer.status == 500
                assert (await answer.json())["error"]["code"] == "not_finite"


async def test_a_message_whose_deadline_passed_is_shed() -> None:
    async with served(ScriptedModel()) as (http, url):
        body = {"text": "love", "deadline_ms": 0}
        async with http.post(f"{url}/v1/affect", json=body) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "deadline_passed"


def test_text_the_head_cannot_read_is_scored_with_low_confidence() -> None:
    plain, emoji, foreign, cut = head().score(
        [Message("love it"), Message("🙂🙂"), Message("я тебя люблю"), Message("love " * 40)]
    )
    assert emoji.confidence < 0.5 * plain.confidence
    assert foreign.confidence < 0.5 * plain.confidence
    assert cut.confidence < 0.6 * plain.confidence


def test_a_model_of_another_kind_is_refused() -> None:
    model = ScriptedModel()
    model.manifest["kind"] = "encoder"
    with pytest.raises(ConfigError, match="not an affect head") as caught:
        head(model)
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.model
def test_an_altered_weights_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cahm"
    shutil.copytree(WEIGHTS, folder)
    path = folder / "model.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="altered") as caught:
        AffectHead.load(folder)
    assert caught.value.exit_code == EXIT_CONFIG
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    manifest["files"]["../other"] = {"size": 1, "sha256": "0"}
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(ConfigError):
        AffectHead.load(folder)


@pytest.mark.model
def test_the_shipped_head_reads_three_lines_as_a_person_would() -> None:
    hostile, numb, playful, empty_chat = AffectHead.load(WEIGHTS).score(
        [
            Message("You promised me you'd stop seeing her and you lied to my face again!"),
            Message("I don't feel anything anymore. I just lie there and the days go by."),
            Message("oh look who finally learned to load the dishwasher, call the press :)"),
            Message("ok. what time does the shop close"),
        ]
    )
    assert hostile.valence < -0.2
    assert hostile.intimacy > 0.2
    assert hostile.tension > 0.2
    assert numb.valence < -0.2
    assert numb.tension < 0
    assert playful.valence > 0
    assert playful.tension < hostile.tension - 0.3
    assert abs(empty_chat.valence) < 0.35


@pytest.mark.model
def test_the_shipped_heads_scores_do_not_depend_on_company() -> None:
    shipped = AffectHead.load(WEIGHTS)
    message = Message("I missed you today", ("how was work?",))
    alone = shipped.score([message])[0]
    among = shipped.score([Message("word " * 60), message, Message("no")])[1]
    assert alone.valence == pytest.approx(among.valence, abs=0.03)
