"""The affect sidecar: its contract, bad input, reasons, and the shipped head's plain sense."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import subprocess
import sys
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
from sidecars.cahm import KEPT_REASONS, WEIGHTS, CahmService
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
        {"text": "a", "context": ["bell \x07"]},
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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": None}, "lacks 'name'"),
        ({"version": None}, "lacks 'version'"),
        ({"max_tokens": None}, "lacks 'max_tokens'"),
        ({"tags": None}, "lacks 'tags'"),
        ({"tag_thresholds": [0.5]}, "one threshold for each tag"),
        ({"tag_thresholds": [0.5, float("nan")]}, "no number"),
        ({"confidence": {"a": 1.0}}, "lacks 'b'"),
        ({"confidence": {"a": float("inf"), "b": 1.0}}, "no number"),
        ({"confidence": {"a": "much", "b": 1.0}}, "malformed"),
    ],
)
def test_a_foreign_manifest_is_refused_with_what_it_lacks(change: dict[str, Any], why: str) -> None:
    model = ScriptedModel()
    model.manifest |= change
    model.manifest = {key: value for key, value in model.manifest.items() if value is not None}
    with pytest.raises(ConfigError, match=why):
        head(model)


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


def test_absurd_confidence_parameters_saturate_instead_of_overflowing() -> None:
    model = ScriptedModel()
    model.manifest["confidence"] = {"a": -1e9, "b": 1e9}
    assert head(model).score([Message("love it")])[0].confidence == 0.0


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
def test_other_languages_and_noise_in_latin_letters_lower_the_confidence() -> None:
    shipped = AffectHead.load(WEIGHTS)
    plain = ["I do not know why you talk to me like this", "ok", "lol", "Marta Kowalczyk",
             "that's great, congrats!!", "omg same haha"]  # fmt: skip
    other = ["Ich habe heute einen schlechten Tag gehabt", "No entiendo por qué llegas tarde",
             "J'ai passé une très mauvaise journée au travail", "asdkjh qwoeiu zmxn",
             "Minulla on tänään todella huono päivä"]  # fmt: skip
    assert all(shipped._readable(text) for text in plain)
    assert not any(shipped._readable(text) for text in other)


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
@pytest.mark.parametrize("change", [{"name": None}, {"tags": ["one"], "tag_thresholds": [0.5]}])
def test_a_foreign_model_ends_the_process_with_78_and_one_line(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = tmp_path / "cahm"
    shutil.copytree(WEIGHTS, folder)
    path = folder / "manifest.json"
    manifest = orjson.loads(path.read_bytes()) | change
    path.write_bytes(orjson.dumps({k: v for k, v in manifest.items() if v is not None}))
    done = subprocess.run(
        [sys.executable, "-m", "sidecars.cahm", "--model", str(folder), "--port", "0"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_CONFIG
    assert "Traceback" not in done.stderr


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
