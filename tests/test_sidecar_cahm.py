"""The affect sidecar: its contract, bad input, reasons, and the shipped head's plain sense."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from brain.errors import EXIT_CONFIG, ConfigError
from brain.schema import Affect, parse_wire
from sidecars.affect_head import AffectHead, Message
from sidecars.cahm import KEPT_REASONS, WEIGHTS, CahmService
from sidecars.onnx_text import TextModel
from sidecars.serve import ServeOptions, SidecarServer

TAGS = ("warm", "cold")


class ScriptedModel:
    """Scores by words: "hate" is unpleasant and tense, "love" pleasant and close."""

    outputs = ("axes", "spread", "tags")
    sha256 = "ab" * 32
    products = "int8"

    def __init__(self) -> None:
        self.manifest: dict[str, Any] = {
            "name": "scripted", "version": "1", "kind": "affect-encoder", "max_tokens": 16,
            "axes": ["valence", "intimacy", "tension"], "tags": list(TAGS),
            "tag_thresholds": [0.5, 0.5], "confidence": {"a": 2.0, "b": 1.0},
        }  # fmt: skip
        self.value = 0.5
        self.seen: list[tuple[str, str | None]] = []

    def count_tokens(self, text: str) -> int:
        return min(16, len(text.split()) + 2)

    def is_cut(self, text: str) -> bool:
        return len(text.split()) + 2 > 16

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
        {"text": "a", "context": ["bell \x07"]},
        {"text": 3},
        {"text": "a", "deadline_ms": True},
        {"text": "a", "deadline_ms": "5"},
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


async def test_an_axis_out_of_range_never_leaves() -> None:
    model = ScriptedModel()
    async with served(model) as (http, url):
        model.value = 3.0
        async with http.post(f"{url}/v1/affect", json={"text": "love"}) as answer:
            assert answer.status == 500
            assert "outside [-1, 1]" in (await answer.json())["error"]["message"]


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


def test_a_model_with_other_outputs_is_refused_by_their_names() -> None:
    model = ScriptedModel()
    model.outputs = ("axes", "embedding", "tags")
    with pytest.raises(ConfigError, match="lacks the outputs spread"):
        head(model)


def test_a_model_that_gives_more_tags_than_its_manifest_names_is_refused() -> None:
    model = ScriptedModel()
    model.manifest |= {"tags": ["warm"], "tag_thresholds": [0.5]}
    with pytest.raises(ConfigError, match="outputs of shapes"):
        head(model).warm()


async def test_who_asks_why_waits_no_longer_than_its_deadline() -> None:
    async with served(ScriptedModel()) as (http, url):
        await http.post(f"{url}/v1/affect", json={"text": "well I hate it", "turn_id": "t1"})
        why = f"{url}/v1/affect/reasoning"
        # No reason is begun within QUIET_S of a message.
        async with http.post(why, json={"turn_id": "t1", "deadline_ms": 1}) as answer:
            assert answer.status == 503
            error = (await answer.json())["error"]
        assert error["code"] == "deadline_passed"
        assert "before it was worked out" in error["message"]
        async with http.post(why, json={"turn_id": "t1", "deadline_ms": 60_000}) as answer:
            assert "“hate”" in (await answer.json())["reasoning"]
        async with http.post(why, json={"turn_id": "t1", "deadline_ms": 0}) as answer:
            assert answer.status == 200  # it waits for nothing


async def test_a_reason_asked_for_without_a_turn_is_a_400() -> None:
    async with (
        served(ScriptedModel()) as (http, url),
        http.post(f"{url}/v1/affect/reasoning", json={}) as answer,
    ):
        assert answer.status == 400


async def test_a_turn_sent_again_while_its_reason_waits_leaves_nobody_unanswered() -> None:
    async with served(ScriptedModel()) as (http, url):
        body = {"text": "well I hate it", "turn_id": "t7"}

        async def reasoning() -> str:
            async with http.post(f"{url}/v1/affect/reasoning", json={"turn_id": "t7"}) as answer:
                return str((await answer.json())["reasoning"])

        await http.post(f"{url}/v1/affect", json=body)
        first = asyncio.create_task(reasoning())
        await http.post(f"{url}/v1/affect", json=body)
        assert await first == await reasoning()


async def test_a_reason_dropped_for_newer_ones_is_a_404_to_who_waits() -> None:
    service = CahmService(argparse.Namespace(model=Path("unused"), threads=1, max_queue=512))
    for number in range(KEPT_REASONS):
        service._want_reason(f"t{number}", Message("text"))
    oldest = service._reasons["t0"]
    service._wanted.get_nowait()  # room for one more
    service._want_reason("newest", Message("text"))
    assert oldest.result() is None
    assert "t0" not in service._reasons


async def test_a_message_is_scored_before_the_reasons_that_wait() -> None:
    """Every word of a reason is one piece of work; a message waits for one of them at most."""
    model = ScriptedModel()
    async with served(model) as (http, url):
        await http.post(f"{url}/v1/affect", json={"text": "a b c d e f", "turn_id": "t1"})
        async with http.post(f"{url}/v1/affect", json={"text": "love"}) as answer:
            assert answer.status == 200
        order = [text for text, _ in model.seen]
        async with http.post(f"{url}/v1/affect/reasoning", json={"turn_id": "t1"}) as answer:
            assert answer.status == 200
    assert "love" in order
    assert "a b c d e" not in order  # the last word left out: not before the message


@pytest.mark.model
def test_a_long_context_never_cuts_the_message() -> None:
    shipped = AffectHead.load(WEIGHTS)
    text = "You promised me you would stop, and you lied to my face again! " * 4
    alone, crowded = shipped.score([Message(text), Message(text, ("word " * 400, "and " * 400))])
    assert crowded.confidence > 0.5 * alone.confidence
    hostile = "I hate you for what you did to me last night"
    filler = "The shop opens at nine. " * 60
    end = shipped.score([Message(hostile, (filler, "You lied to me again, you always do."))])[0]
    short = shipped.score([Message(hostile, ("You lied to me again, you always do.",))])[0]
    assert end.valence < -0.3
    assert short.valence < -0.3


@pytest.mark.model
def test_a_message_of_exactly_the_limit_is_not_cut() -> None:
    shipped = AffectHead.load(WEIGHTS)
    whole, longer = ("I love you " * 42)[:-1], ("I love you " * 42) + "so"
    assert shipped._model.count_tokens(whole) == 128
    assert not shipped._model.is_cut(whole)
    assert shipped._model.is_cut(longer)
    full, cut, crowded = shipped.score(
        [Message(whole), Message(longer), Message(whole, ("you hate me",))]
    )
    assert cut.confidence < 0.6 * full.confidence
    assert crowded.confidence == pytest.approx(full.confidence, abs=0.02)


@pytest.mark.model
def test_a_message_without_spaces_is_counted_in_tokens_not_in_characters() -> None:
    model = TextModel.load(WEIGHTS)
    assert not model.is_cut("!" * 126)
    assert model.is_cut("!" * 127)  # 129 with the two marks of a message's ends


@pytest.mark.model
@pytest.mark.parametrize("words", [60, 124, 125, 126])
def test_the_context_is_cut_at_its_beginning_and_the_message_never(words: int) -> None:
    """Contexts of every length, some of which begin within a word where they are cut."""
    model = TextModel.load(WEIGHTS)
    text = " ".join(["love"] * words)
    alone = model.read(text, "")
    for second in ("unbelievably " * 100, "ab" * 90 + " end", "ok", "x" * 5000, "🙂é" * 200):
        pair = model.read(text, second)
        assert [i for i, kind in zip(pair.ids, pair.kinds, strict=True) if kind == 0] == alone.ids
        assert len(pair.ids) <= 128
    end = model.read("love", "one two three " * 200 + "the very end").ids
    assert len(end) == 128
    assert model._tokenizer.decode(end).endswith("three the very end")


@pytest.mark.model
@pytest.mark.parametrize("text", ["!" * 32_000, "a " * 16_000, "x" * 32_000, "字" * 32_000])
def test_a_long_text_is_read_as_its_beginning_without_reading_it_all(text: str) -> None:
    """Beside a long context, the tokenizer's own truncation took all memory."""
    model = TextModel.load(WEIGHTS)
    encoded = model._tokenizer.encode(text[:4096])
    tokens = model.read(text, text)
    assert tokens.ids[: min(100, len(encoded.ids) - 1)] == encoded.ids[:-1][:100]
    assert len(model._beginning(text)) <= 16 * 128
    assert model.is_cut(text)


@pytest.mark.model
def test_words_too_long_for_the_tokenizer_lower_the_confidence() -> None:
    shipped = AffectHead.load(WEIGHTS)
    word, shout = shipped.score([Message("x" * 32_000), Message("n" + "o" * 60)])
    assert word.confidence <= 0.3 < shout.confidence


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
