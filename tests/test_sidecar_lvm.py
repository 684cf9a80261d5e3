"""The lvm sidecar on the shipped encoder and dialogue model: contract, padding, bad input."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import orjson
import pytest

from brain.errors import EXIT_CONFIG, ConfigError, LimbicError
from brain.paths import SHIPPED_MODELS
from brain.schema import Embeddings, Prediction, parse_wire
from sidecars import lvm
from sidecars.launch import _parser
from sidecars.lvm import WEIGHTS, LvmService
from sidecars.lvm_network import load_network
from sidecars.onnx_text import TextModel
from sidecars.serve import ServeOptions, SidecarServer

pytestmark = pytest.mark.model
DIM = 384


def service(*options: str) -> LvmService:
    return LvmService.from_args(_parser(LvmService).parse_args(list(options)))


@asynccontextmanager
async def served(*options: str) -> AsyncIterator[tuple[aiohttp.ClientSession, str]]:
    async with (
        SidecarServer(service(*options), ServeOptions(port=0)) as server,
        aiohttp.ClientSession() as http,
    ):
        yield http, server.url


async def post(http: aiohttp.ClientSession, url: str, body: Any) -> tuple[int, bytes]:
    async with http.post(url, json=body) as answer:
        return answer.status, await answer.read()


async def test_it_encodes_continues_and_ranks() -> None:
    texts = ["I adopted a kitten", "so sweet! what is its name?", "Miso, she is black"]
    async with served() as (http, url):
        _, body = await post(http, f"{url}/encode", {"texts": texts})
        found = parse_wire(Embeddings, body, remote="lvm")
        assert found.shape == (3, DIM)
        vectors = [list(v) for v in found.embeddings]
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-3)
        _, body = await post(http, f"{url}/infer", {"context_vectors": vectors})
        short = parse_wire(Prediction, body, remote="lvm").predicted_vector
        padded = [vectors[0], vectors[0], *vectors]
        _, body = await post(http, f"{url}/infer", {"context_vectors": [padded, padded]})
        both = orjson.loads(body)["predicted_vector"]
        assert np.allclose(both, [short, short], atol=1e-5)
        likely = ["is Miso a calm cat?", "the tax form is due on Monday"]
        _, body = await post(http, f"{url}/encode", {"texts": likely})
        candidates = orjson.loads(body)["embeddings"]
        _, body = await post(
            http, f"{url}/rank", {"context_vectors": vectors, "candidates": candidates}
        )
        scores = orjson.loads(body)["scores"]
    assert scores[0] > scores[1]


async def test_chat_says_what_it_expects_and_how_long_each_step_took() -> None:
    async with served() as (http, url):
        messages = ["hello", {"role": "user", "content": "my train is late"}]
        status, body = await post(http, f"{url}/chat", {"messages": messages})
    answer = orjson.loads(body)
    assert status == 200
    assert len(answer["predicted_vector"]) == DIM
    assert answer["text"] is None
    assert set(answer["latency_ms"]) == {"encode", "infer", "total"}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("infer", {"context_vectors": []}),
        ("infer", {"context_vectors": [[0.1] * 7] * 5}),
        ("infer", {"context_vectors": [[0.1] * DIM] * 6}),
        ("infer", {"context_vectors": [[0.0] * DIM] * 5}),
        ("infer", {"context_vectors": [[0.1] * DIM, [0.1]]}),
        ("infer", {"context_vectors": [["a"] * DIM]}),
        ("infer", {"context_vectors": [[None] * DIM]}),
        ("rank", {"context_vectors": [[0.1] * DIM], "candidates": []}),
        ("rank", {"context_vectors": [[0.1] * DIM], "candidates": [[0.1] * 3]}),
        ("encode", {"texts": []}),
        ("chat", {"messages": ["a"] * 6}),
    ],
)
async def test_bad_input_is_a_400_with_a_reason(route: str, body: dict[str, Any]) -> None:
    async with served() as (http, url):
        status, answer = await post(http, f"{url}/{route}", body)
    assert status == 400
    assert orjson.loads(answer)["error"]["message"]


async def test_where_no_predictor_is_installed_it_encodes_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lvm, "WEIGHTS", tmp_path)
    async with served("--encoder", str(WEIGHTS / "minilm")) as (http, url):
        assert (await post(http, f"{url}/encode", {"texts": ["a"]}))[0] == 200
        status, body = await post(http, f"{url}/infer", {"context_vectors": [[0.1] * DIM]})
    assert status == 503
    assert orjson.loads(body)["error"]["code"] == "no_model"


@pytest.mark.parametrize("name", ["none", "lvm_artikles", "no/lvm_articles"])
def test_a_predictor_that_is_named_and_missing_is_refused_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"{name}: no such folder"):
        service("--model", name)


def test_the_brain_knows_the_names_of_the_shipped_predictors() -> None:
    assert {folder.name for folder in WEIGHTS.glob("lvm_*")} == SHIPPED_MODELS


def test_a_predictor_made_for_another_encoder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(WEIGHTS / "lvm_dialogue", folder)
    manifest = orjson.loads((folder / "manifest.json").read_bytes())
    manifest["encoder_sha256"] = "0" * 64
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    with pytest.raises(ConfigError, match="another encoder") as caught:
        service("--model", str(folder)).load(lambda _: None, lambda: False)
    assert caught.value.exit_code == EXIT_CONFIG


def changed(folder: Path, source: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A model folder like ``source`` whose manifest was changed."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).symlink_to(file)
    manifest = orjson.loads((source / "manifest.json").read_bytes())
    change(manifest)
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_bytes(orjson.dumps(manifest))
    return folder


@pytest.mark.parametrize(
    ("option", "source", "change", "complaint"),
    [
        ("--model", "lvm_dialogue", lambda m: m.pop("name"), "lacks name"),
        ("--model", "lvm_dialogue", lambda m: m.pop("version"), "lacks version"),
        ("--model", "lvm_articles", lambda m: m["files"].pop("model.safetensors"), "does not list"),
        ("--model", "lvm_dialogue", lambda m: m["network"].pop("dim"), "does not fit"),
        ("--model", "lvm_dialogue", lambda m: m["network"]["vector"].update(heads=0), "not fit"),
        ("--encoder", "minilm", lambda m: m.pop("name"), "lacks name"),
        ("--encoder", "minilm", lambda m: m.pop("dim"), "its manifest says dim None"),
        ("--encoder", "minilm", lambda m: m.update(dim=100), "its manifest says dim 100"),
    ],
)
def test_a_manifest_that_lacks_what_is_served_from_it_is_refused_for_good(
    tmp_path: Path, option: str, source: str, change: Callable[[dict[str, Any]], Any],
    complaint: str,
) -> None:  # fmt: skip
    folder = changed(tmp_path / "model", WEIGHTS / source, change)
    with pytest.raises(LimbicError, match=complaint) as caught:
        service(option, str(folder)).load(lambda _: None, lambda: False)
    assert caught.value.exit_code == EXIT_CONFIG and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["lvm_dialogue", "lvm_articles"])
def test_a_shipped_model_fits_the_shipped_encoder(name: str) -> None:
    network = load_network(WEIGHTS / name)
    assert network.manifest["encoder_sha256"] == TextModel.load(WEIGHTS / "minilm").sha256


async def test_the_article_model_serves_when_it_is_named_and_knows_what_comes_next() -> None:
    told = [
        "The river rises in the hills north of the town.",
        "It runs south for forty kilometres through farmland.",
        "Two weirs were built on it in the nineteenth century.",
        "Barges carried grain down the river to the port.",
        "The port lost most of its trade when the railway opened.",
    ]
    candidates = [
        "Freight trains then took the grain that barges had carried.",
        "The singer released her second album in the spring.",
        "An enzyme is a protein that speeds up a reaction.",
    ]
    async with served("--model", "lvm_articles") as (http, url):
        vectors = orjson.loads((await post(http, f"{url}/encode", {"texts": told + candidates}))[1])
        context, others = vectors["embeddings"][:5], vectors["embeddings"][5:]
        asked = {"context_vectors": context, "candidates": others}
        status, ranked = await post(http, f"{url}/rank", asked)
        _, foreseen = await post(http, f"{url}/infer", {"context_vectors": context})
    scores = orjson.loads(ranked)["scores"]
    assert status == 200 and scores.index(max(scores)) == 0
    answer = orjson.loads(foreseen)
    assert answer["model"].startswith("ours-articles")
    assert np.argmax(np.asarray(others) @ answer["predicted_vector"]) == 0


def test_texts_are_encoded_alike_alone_and_in_company() -> None:
    model = TextModel.load(WEIGHTS / "minilm")
    texts = ["short", "a much longer text " * 20, "middle sized, with commas, and so on"]
    together = model.run(texts)["embedding"]
    alone = np.concatenate([model.run([text])["embedding"] for text in texts])
    assert (together * alone).sum(1).min() > 0.999
