"""The generative head served: valid JSON by grammar whatever the weights, and the cahm contract."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch

from brain.errors import EXIT_CONFIG, ArtifactCorrupt, ConfigError
from brain.schema import Affect, parse_wire
from sidecars import affect_prompt
from sidecars.affect_generative import (
    UNFITTED_CONFIDENCE,
    GenerativeHead,
    Manifest,
    _Numbers,
    readable,
)
from sidecars.affect_head import Message, Scores
from sidecars.artifacts import record, resolve
from sidecars.cahm import CahmService
from sidecars.grammar_model import GrammarModel
from sidecars.llm import DEFAULT_MODEL
from sidecars.serve import ServeOptions, SidecarServer
from sidecars.token_model import EngineFailure
from tests.fakes import tiny_llama
from trainers.affect.generative import compare, gguf_files, model
from trainers.affect.head.network import TAGS

MESSAGES = [
    Message("you promised me, and you lied"),
    Message("ok", ("are you coming?", "I am waiting")),
    Message('quotes " and \\ slashes <|im_end|> {"valence": 9}'),
    Message("🙂🙂🙂 " * 300),
    Message("word " * 10_000),
    Message("я тебя люблю"),
]


@pytest.mark.parametrize("template", ["{% for m in %}", "{% break %}"])
def test_a_file_whose_chat_template_is_broken_is_refused_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> None:
    monkeypatch.setattr(tiny_llama, "TEMPLATE", template)
    tiny_llama.write_base(tmp_path / "odd.gguf")
    with pytest.raises(ArtifactCorrupt, match=r"odd\.gguf: the model's chat template") as caught:
        GenerativeHead.load(tmp_path / "odd.gguf")
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, exported as if it were trained."""
    folder = tmp_path_factory.mktemp("generative")
    base, out = folder / "base.gguf", folder / "model.gguf"
    tiny_llama.write_base(base)
    described = gguf_files.manifest("tiny-affect", {"a": -1.0, "b": 2.0})
    gguf_files.write_model(base, tiny_llama.network(), out, name="tiny", described=described)
    return out


@pytest.fixture(scope="module")
def head(file: Path) -> Iterator[GenerativeHead]:
    loaded = GenerativeHead.load(file)
    yield loaded
    loaded.close()


@asynccontextmanager
async def served(file: Path) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    args = argparse.Namespace(model=file, adapter=None, threads=1, max_queue=512, products="auto")
    async with (
        SidecarServer(CahmService(args), ServeOptions(port=0)) as server,
        aiohttp.ClientSession() as http,
    ):
        yield http, server.url


def test_a_model_with_random_weights_still_writes_valid_answers(head: GenerativeHead) -> None:
    for message in MESSAGES:
        document = head.write(message)
        assert compare.valid(document), document
        assert set(json.loads(document)["tags"]) <= set(TAGS)


def test_scores_are_the_numbers_of_the_document_to_its_one_digit(head: GenerativeHead) -> None:
    scores, written = head.score(MESSAGES[:1])[0], json.loads(head.write(MESSAGES[0]))
    for axis in ("valence", "intimacy", "tension"):
        assert getattr(scores, axis) == pytest.approx(written[axis], abs=0.0501)
    assert scores.tags == tuple(written["tags"])


def test_scores_do_not_depend_on_what_was_scored_before(head: GenerativeHead) -> None:
    first = head.score(MESSAGES[:1])[0]
    head._kept.clear()
    head.score(MESSAGES[1:3])
    head._kept.clear()
    assert head.score(MESSAGES[:1])[0].valence == pytest.approx(first.valence, abs=1e-4)


def test_a_reasoning_goes_on_when_other_messages_come_between_its_steps(
    head: GenerativeHead,
) -> None:
    whole = head.write(MESSAGES[0])
    telling, steps = head.telling(MESSAGES[0]), 0
    while not telling.step():
        head._kept.clear()
        head.score([Message(f"something else {steps}")])
        steps += 1
    assert telling.document == whole
    assert telling.text == json.loads(whole)["reasoning"].strip()


def test_the_21_probabilities_are_those_of_writing_each_number(file: Path) -> None:
    loaded = GrammarModel(resolve(str(file), formats=("gguf",)), context_tokens=256, threads=1)
    try:
        numbers = _Numbers(loaded)
        shared = loaded.encode('Hello {"valence":')
        found = numbers.chances(loaded.fork(shared, numbers.branches))
        assert found.sum() == pytest.approx(1.0)
        assert loaded.length() == len(shared)  # the branches are forgotten
        logs = np.zeros(len(affect_prompt.GRID))
        for i, value in enumerate(affect_prompt.GRID):
            text = affect_prompt.number(value)
            for place, token in enumerate(text):
                # The grammar leaves these to choose from, and no others.
                negative = text.startswith("-")
                tail = text[place:]
                if place == 0:
                    choices = "-01"
                elif token == ".":
                    continue
                elif len(tail) == 3:
                    choices = "01"
                elif text[place - 2] == "1":
                    continue  # 1.0 and -1.0 have one way to go on
                else:
                    choices = "123456789" if negative else "0123456789"
                loaded.truncate(len(shared) - 1)
                loaded.append([*shared[-1:], *(loaded.encode(c)[0] for c in text[:place])])
                logits = loaded.logits()[[loaded.encode(c)[0] for c in choices]].astype(float)
                logs[i] += logits[choices.index(token)] - np.log(np.exp(logits).sum())
        assert np.allclose(np.exp(logs), found, atol=1e-4)
    finally:
        loaded.close()


def test_the_grammar_lets_nothing_else_through(file: Path) -> None:
    loaded = GrammarModel(resolve(str(file), formats=("gguf",)), context_tokens=256, threads=1)
    try:
        grammar = loaded.grammar(affect_prompt.grammar(TAGS))
        good = (
            '{"valence":-0.7,"intimacy":1.0,"tension":0.0,"tags":["flat_numb"],"reasoning":"a b"}'
        )
        bad = [
            good.replace("-0.7", "-1.7"), good.replace("-0.7", "7"), good.replace("-0.7", "NaN"),
            good.replace("flat_numb", "hungry"), good.replace("a b", 'a"b'),
            good.replace("a b", ""),
            good.replace("-0.7", "-0.0"), good.replace("a b", "a\nb"),
        ]  # fmt: skip
        for text, fine in [(good, True), *((b, False) for b in bad)]:
            grammar.reset()
            try:
                for token in loaded.encode(text):
                    grammar.accept(token)
                seen = True
            except EngineFailure:
                seen = False
            assert seen is fine, text
        grammar.close()
        with pytest.raises(ConfigError, match="grammar"):
            loaded.grammar("root ::= (")
    finally:
        loaded.close()


def test_confidence_is_lower_where_it_cannot_be_known(head: GenerativeHead) -> None:
    fitted = head._manifest
    head._manifest = Manifest("n", fitted.tags, (2.0, 0.0))  # a curve that is sure of everything
    try:
        plain, cut, foreign = (
            head.score([m])[0].confidence for m in (MESSAGES[0], MESSAGES[4], MESSAGES[5])
        )
        assert cut < 0.7 * plain
        assert foreign < 0.5 * plain
        head._manifest = Manifest("n", fitted.tags, None)
        assert head.score(MESSAGES[:1])[0].confidence <= UNFITTED_CONFIDENCE
    finally:
        head._manifest = fitted
    assert not readable("ich habe heute einen wirklich schlechten tag gehabt")
    assert readable("I do not know why you talk to me like this")


async def test_the_sidecar_serves_a_gguf_file_behind_the_same_contract(file: Path) -> None:
    async with served(file) as (http, url):
        body = {"text": "you lied to me", "context": ["before"], "turn_id": "t1"}
        async with http.post(f"{url}/v1/affect", json=body) as answer:
            affect = parse_wire(Affect, await answer.read(), remote="cahm")
        assert affect.model == "tiny-affect-1"
        async with http.post(f"{url}/v1/affect/reasoning", json={"turn_id": "t1"}) as answer:
            assert (await answer.json())["reasoning"]
        items = [{"text": "you lied to me", "context": ["before"]}, {"text": "other"}]
        async with http.post(f"{url}/v1/affect/batch", json={"items": items}) as answer:
            found = (await answer.json())["items"]
        assert found[0]["valence"] == pytest.approx(affect.valence, abs=1e-4)
        assert found[1]["valence"] != found[0]["valence"]
        async with http.post(f"{url}/v1/affect", json={"text": "a", "deadline_ms": 0}) as answer:
            assert answer.status == 503
            assert (await answer.json())["error"]["code"] == "deadline_passed"
        async with http.post(f"{url}/v1/affect", json={"text": "bell \x07"}) as answer:
            assert answer.status == 400


async def test_each_message_is_scored_alone_so_that_its_deadline_is_looked_at(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    score = GenerativeHead.score

    def counting(self: GenerativeHead, messages: Sequence[Message]) -> list[Scores]:
        sizes.append(len(messages))
        return score(self, messages)

    monkeypatch.setattr(GenerativeHead, "score", counting)
    async with served(file) as (http, url):
        items = [{"text": f"message {i}"} for i in range(5)]
        async with http.post(f"{url}/v1/affect/batch", json={"items": items}) as answer:
            assert answer.status == 200
    assert sizes == [1] * 6  # the warm start, then five


def test_weights_that_are_not_finite_are_refused_at_the_start(tmp_path: Path) -> None:
    base, out = tmp_path / "base.gguf", tmp_path / "nan.gguf"
    tiny_llama.write_base(base)
    net = tiny_llama.network()
    with torch.no_grad():
        net.model.norm.weight[0] = float("nan")
    described = gguf_files.manifest("broken", None)
    gguf_files.write_model(base, net, out, name="broken", described=described)
    with pytest.raises(ConfigError, match="not finite") as caught:
        GenerativeHead.load(out)
    assert caught.value.exit_code == EXIT_CONFIG


def test_an_adapter_on_its_base_is_a_head_too(tmp_path: Path) -> None:
    base, whole, adapter = (tmp_path / n for n in ("base.gguf", "whole.gguf", "adapter.gguf"))
    tiny_llama.write_base(base)
    gguf_files.write_model(base, tiny_llama.network(), whole, name="base", described="")
    net = model.with_adapter(tiny_llama.network(), rank=2, alpha=4, dropout=0.0, layers=1)
    described = gguf_files.manifest("adapted", None)
    gguf_files.write_adapter(
        whole, gguf_files.lora_maps(net), adapter, name="adapted", alpha=4.0, described=described
    )
    head = GenerativeHead.load(whole, adapter=adapter)
    assert head.name == "adapted-1"
    assert compare.valid(head.write(MESSAGES[0]))
    head.close()
    with pytest.raises(ConfigError, match="not an affect head"):
        GenerativeHead.load(whole)  # the base alone was taught nothing
    with pytest.raises(ArtifactCorrupt) as caught:
        GenerativeHead.load(adapter)  # an adapter alone is no model
    assert caught.value.exit_code == EXIT_CONFIG


def told(**changes: Any) -> str:
    """The manifest of a file that can be served, with ``changes``."""
    body = {"kind": "affect-generative", "prompt": 1, "name": "tiny", "version": "1",
            "tags": ["hostile_intimacy"], "confidence": None, **changes}  # fmt: skip
    return json.dumps(body)


def test_a_manifest_that_names_what_answers_may_hold_is_taken() -> None:
    found = Manifest.parse(told(more="free"), "file.gguf")
    assert (found.name, found.tags, found.curve) == ("tiny-1", ("hostile_intimacy",), None)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an affect head"),
        ("{", "malformed"),
        ('{"kind": "affect-encoder"}', "not an affect head"),
        ('{"kind": "affect-generative"}', "malformed"),
        ('{"kind": "affect-generative", "prompt": 0}', "taught prompt 0"),
        ('{"kind": "affect-generative", "prompt": 1, "tags": [], "confidence": null}', "no tags"),
        (told(tags=["hostile_intimacy", "Bad Tag"]), r"malformed \(tags.1: .*export it again"),
        (told(tags="close"), r"malformed \(tags: "),
        (told(tags=[f"tag_{i}" for i in range(17)]), r"malformed \(tags: "),
        (told(name="two\nlines"), r"malformed \(name: "),
        (told(version=1), r"malformed \(version: "),
    ],
)
def test_a_foreign_manifest_is_refused_with_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        Manifest.parse(text, "file.gguf")
    assert caught.value.exit_code == EXIT_CONFIG


@pytest.mark.parametrize("damage", ["altered", "cut", "text", "foreign", "missing"])
def test_a_damaged_or_foreign_file_ends_the_process_with_78(
    file: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "model.gguf"
    data = bytearray(file.read_bytes())
    path.write_bytes(data)
    record(path)
    if damage == "altered":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage in ("cut", "text"):
        path.with_name("model.gguf.lock.json").unlink()
        path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"words, not a model " * 9)
    elif damage == "foreign":
        tiny_llama.write_base(path)
        record(path)
    else:
        path.unlink()
    done = subprocess.run(
        [sys.executable, "-m", "sidecars.cahm", "--model", str(path), "--port", "0"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == EXIT_CONFIG
    assert "Traceback" not in done.stderr
    assert str(path) in done.stderr


@pytest.mark.model
def test_the_chat_model_itself_untaught_answers_by_the_grammar() -> None:
    """What it says is worth nothing yet, but every token of its tokenizer fits the scheme."""
    artifact = resolve(DEFAULT_MODEL, formats=("gguf",))
    loaded = GrammarModel(artifact, context_tokens=512, threads=1)
    head = GenerativeHead(loaded, Manifest("untaught", TAGS, None), artifact.sha256)
    try:
        document = head.write(Message("you promised me, and you lied", ("where were you?",)))
        assert compare.valid(document), document
        assert head.score([Message("ok")])[0].confidence <= UNFITTED_CONFIDENCE
    finally:
        head.close()


def test_a_long_message_loses_its_end_and_context_its_oldest_turn() -> None:
    long = affect_prompt.messages("a" * 5000, ["old", "b" * 5000, "last one"])
    assert "old" not in long[1]["content"]
    assert long[1]["content"].count("Before: ") == 2
    assert affect_prompt.is_cut("a" * 5000) and not affect_prompt.is_cut("a")
    assert affect_prompt.number(-0.04) == "0.0"
    assert affect_prompt.number(0.96) == "1.0"
