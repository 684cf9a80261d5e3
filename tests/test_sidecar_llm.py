"""The chat sidecar over HTTP, with a scripted model behind it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
import pytest
from blockbuster import blockbuster_ctx

from brain.errors import ConfigError
from sidecars.llm import LlmService
from sidecars.serve import ServeOptions, SidecarServer
from sidecars.service import ModelInfo
from sidecars.token_model import Sampling
from tests.fakes.scripted_model import PATIENCE_S, ScriptedModel


def arguments(**changes: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    LlmService.add_arguments(parser)
    args = parser.parse_args([])
    for key, value in {"chunk_tokens": 10, **changes}.items():
        setattr(args, key, value)
    return args


@asynccontextmanager
async def serving(model: ScriptedModel, **changes: Any) -> AsyncIterator[aiohttp.ClientSession]:
    service = LlmService(arguments(**changes), lambda *_: (model, ModelInfo("scripted", "cd" * 32)))
    async with (
        SidecarServer(service, ServeOptions(drain_s=0.0)) as server,
        aiohttp.ClientSession(server.url) as http,
    ):
        try:
            with blockbuster_ctx():  # the event loop must never wait for the model or a file
                yield http
        finally:
            model.release()


def ask(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


async def frames(answer: aiohttp.ClientResponse) -> list[Any]:
    found = []
    async for line in answer.content:
        if line.startswith(b"data: "):
            data = line[6:].strip()
            found.append("DONE" if data == b"[DONE]" else orjson.loads(data))
    return found


async def error_of(answer: aiohttp.ClientResponse) -> tuple[int, str]:
    return answer.status, (await answer.json())["error"]["code"]


async def until_waiting(model: ScriptedModel) -> None:
    assert await asyncio.to_thread(model.waiting.wait, PATIENCE_S)


async def test_a_whole_answer_has_openais_shape() -> None:
    async with serving(ScriptedModel(lambda p: b"I heard: " + p.encode())) as http:
        answer = await http.post("/v1/chat/completions", json=ask("yo"))
        body = await answer.json()
    prompt = "[user]yo\n[assistant]"
    assert body["object"] == "chat.completion" and body["model"] == "scripted"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": f"I heard: {prompt}"},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert body["usage"] == {
        "prompt_tokens": len(prompt),
        "completion_tokens": 9 + len(prompt),
        "total_tokens": 9 + 2 * len(prompt),
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream_has_openais_frames_and_whole_characters() -> None:
    text = "né 😀!"
    async with serving(ScriptedModel(lambda _: text.encode())) as http:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        answer = await http.post("/v1/chat/completions", json=ask(**options))
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        found = await frames(answer)
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [f["choices"][0]["delta"].get("content", "") for f in found[:-2]]
    assert "".join(deltas) == text and "\ufffd" not in "".join(deltas)
    assert found[-3]["choices"][0]["finish_reason"] == "stop"
    assert found[-2]["choices"] == [] and found[-2]["usage"]["completion_tokens"] == 9
    assert found[-1] == "DONE"
    assert len({f["id"] for f in found[:-1]}) == 1


async def test_a_stream_without_usage_ends_with_the_reason() -> None:
    async with serving(ScriptedModel()) as http:
        found = await frames(
            await http.post("/v1/chat/completions", json=ask(stream=True, max_tokens=2))
        )
    assert found[-2]["choices"][0] == {
        "index": 0, "delta": {}, "logprobs": None, "finish_reason": "length",
    }  # fmt: skip
    assert found[-1] == "DONE"


async def test_an_empty_reply_is_a_complete_answer() -> None:
    async with serving(ScriptedModel(lambda _: b"")) as http:
        found = await frames(await http.post("/v1/chat/completions", json=ask(stream=True)))
        assert found[-2]["choices"][0]["finish_reason"] == "stop" and found[-1] == "DONE"
        body = await (await http.post("/v1/chat/completions", json=ask())).json()
        assert body["choices"][0]["message"]["content"] == ""


async def test_the_first_token_is_not_held_back_for_company() -> None:
    model = ScriptedModel(lambda _: b"abc")
    async with serving(model, chunk_tokens=100) as http:
        model.hold()
        model.allow(1)  # the prompt; the step after the first token stays held
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        assert b'"role":"assistant"' in await answer.content.readline()
        await answer.content.readline()
        assert b'"content":"a"' in await answer.content.readline()
        model.release()
        await answer.read()


@pytest.mark.parametrize("stop", ["lo", ["zz", "l"]])
async def test_a_stop_sequence_ends_the_reply_before_it(stop: Any) -> None:
    async with serving(ScriptedModel(lambda _: b"hello")) as http:
        body = await (await http.post("/v1/chat/completions", json=ask(stop=stop))).json()
    assert body["choices"][0]["message"]["content"] == ("hel" if stop == "lo" else "he")
    assert body["choices"][0]["finish_reason"] == "stop"


async def test_sampling_parameters_reach_the_model() -> None:
    model = ScriptedModel()
    async with serving(model) as http:
        await http.post("/v1/chat/completions", json=ask())
        given = {
            "temperature": 0.3, "top_p": 0.8, "top_k": 5, "min_p": 0.1, "seed": 7,
            "presence_penalty": 0.5, "frequency_penalty": -0.5, "repeat_penalty": 1.1,
            "dry_multiplier": 0.5, "dry_base": 2.0, "dry_allowed_length": 4,
        }  # fmt: skip
        await http.post("/v1/chat/completions", json=ask(**given, turn_id="t", user="u"))
    assert model.samplings == [Sampling(), Sampling(**given)]  # type: ignore[arg-type]


async def test_what_the_agent_said_is_not_said_again_and_what_the_person_said_may_be() -> None:
    model = ScriptedModel()
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "well"},
            {"role": "user", "content": "so"}, {"role": "assistant", "content": "and"},
            {"role": "user", "content": "yes"}]  # fmt: skip
    async with serving(model) as http:
        for more in ({}, {"dry_multiplier": 0}):
            body = {"messages": talk, **more}
            assert (await http.post("/v1/chat/completions", json=body)).status == 200
    assert [s.spoken for s in model.samplings] == [tuple(model.encode("well\nand")), ()]


@pytest.mark.parametrize(
    "wrong",
    [
        {"dry_multiplier": -1},
        {"dry_base": 0.5},
        {"dry_allowed_length": 0},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"temperature": 2.1},
        {"temperature": "hot"},
        {"top_p": 0},
        {"max_tokens": 0},
        {"n": 2},
        {"stop": [""]},
        {"stop": ["x"] * 17},
        {"presence_penalty": 3},
        {"tools": [{"type": "function"}]},
        {"logprobs": True},
        {"response_format": {"type": "json_object"}},
        {"deadline_ms": -5},
    ],
)
async def test_a_request_outside_the_contract_is_400(wrong: dict[str, Any]) -> None:
    model = ScriptedModel()
    async with serving(model) as http:
        answer = await http.post("/v1/chat/completions", json={**ask(), **wrong})
        assert await error_of(answer) == (400, "invalid_request")
    assert model.steps == []


async def test_openais_newer_names_and_nulls_are_understood() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "kind"}, {"role": "user", "content": parts}]
    model = ScriptedModel(lambda prompt: prompt.encode())
    nulls = dict.fromkeys(("temperature", "stop", "seed", "tools", "stream_options"))
    async with serving(model) as http:
        body = {"messages": messages, "max_completion_tokens": 100, "n": 1, **nulls}
        found = await (await http.post("/v1/chat/completions", json=body)).json()
    assert found["choices"][0]["message"]["content"] == "[system]kind\n[user]ab\n[assistant]"


async def test_a_prompt_over_the_context_is_refused_by_name() -> None:
    async with serving(ScriptedModel(context_tokens=50)) as http:
        for route in ("/v1/chat/completions", "/v1/prefill"):
            answer = await http.post(route, json=ask("x" * 60))
            assert await error_of(answer) == (400, "context_length_exceeded")


async def test_prefill_then_completion_evaluates_only_the_tail() -> None:
    history = [{"role": "system", "content": "kind"}, {"role": "user", "content": "a" * 100}]
    async with serving(ScriptedModel()) as http:
        first = await (await http.post("/v1/prefill", json={"messages": history})).json()
        again = await (await http.post("/v1/prefill", json={"messages": history})).json()
        answer = await http.post("/v1/chat/completions", json={"messages": history})
        counts = (await answer.json())["usage"]
    assert first == {"tokens": first["tokens"], "cached": 0}
    assert again == {"tokens": first["tokens"], "cached": first["tokens"]}
    assert counts["prompt_tokens_details"]["cached_tokens"] == first["tokens"]
    assert counts["prompt_tokens"] == first["tokens"] + len("\n[assistant]"), (
        "a person's message that may go on is not closed by the prefill"
    )


async def test_token_counts_are_the_models_own() -> None:
    async with serving(ScriptedModel()) as http:
        answer = await http.post("/v1/tokenize", json={"texts": ["", "abc", "é"]})
        assert await answer.json() == {"counts": [0, 3, 2]}


async def test_models_lists_the_one_model() -> None:
    async with serving(ScriptedModel()) as http:
        (entry,) = (await (await http.get("/v1/models")).json())["data"]
    assert (entry["id"], entry["object"], entry["context_tokens"]) == ("scripted", "model", 1000)


async def test_health_answers_while_the_model_is_busy() -> None:
    model = ScriptedModel()
    async with serving(model) as http:
        model.hold()
        reply = asyncio.create_task(http.post("/v1/chat/completions", json=ask()))
        await until_waiting(model)
        health = await (await http.get("/health")).json()
        assert (health["status"], health["busy"]) == ("ok", True)
        assert (await http.get("/ready")).status == 200
        model.release()
        assert (await reply).status == 200


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_during_the_prompt_stops_it(stream: bool) -> None:
    model = ScriptedModel()
    async with serving(model) as http:
        model.hold()
        reply = asyncio.create_task(
            http.post("/v1/chat/completions", json=ask("x" * 200, stream=stream))
        )
        await until_waiting(model)
        reply.cancel()
        # The next request runs although no step of the first was ever allowed to finish.
        following = asyncio.create_task(http.post("/v1/chat/completions", json=ask("next")))
        await asyncio.to_thread(model.wait_for_interruption)
        model.release()
        assert (await following).status == 200
    assert model.steps[0] == (0, 10)
    assert bytes(model.live).startswith(b"[user]next")


async def test_a_client_that_leaves_mid_stream_stops_generation() -> None:
    model = ScriptedModel(lambda _: b"x" * 900)
    async with serving(model, chunk_tokens=100) as http:
        model.hold()
        model.allow(2)
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        await answer.content.readline()
        await until_waiting(model)
        answer.close()
        await asyncio.to_thread(model.wait_for_interruption)
        model.release()
        assert (await http.post("/v1/chat/completions", json=ask("n", max_tokens=1))).status == 200
        text = await (await http.get("/metrics")).text()
    assert "limbic_llm_cancelled_total 1.0" in text
    assert len(model.steps) < 20


async def test_a_full_queue_is_429_with_retry_after() -> None:
    model = ScriptedModel()
    async with serving(model, max_queue=1) as http:
        model.hold()
        tasks = [asyncio.create_task(http.post("/v1/chat/completions", json=ask()))]
        await until_waiting(model)
        tasks.append(asyncio.create_task(http.post("/v1/chat/completions", json=ask())))
        while (await (await http.get("/health")).json())["queue"] < 1:
            pass
        answer = await http.post("/v1/chat/completions", json=ask())
        assert await error_of(answer) == (429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
        model.release()
        assert [(await task).status for task in tasks] == [200, 200]


async def test_a_deadline_that_has_passed_is_shed_with_its_code() -> None:
    async with serving(ScriptedModel()) as http:
        for more in ({"deadline_ms": 0}, {"deadline_ms": 0, "stream": True}):
            answer = await http.post("/v1/chat/completions", json=ask(**more))
            assert await error_of(answer) == (503, "deadline_passed")
        headers = {"X-Limbic-Deadline-Ms": "0"}
        answer = await http.post("/v1/prefill", json=ask(), headers=headers)
        assert await error_of(answer) == (503, "deadline_passed")


async def test_a_model_failure_before_the_first_token_is_an_http_error() -> None:
    model = ScriptedModel()
    model.fail_on = ord("!")
    async with serving(model) as http:
        answer = await http.post("/v1/chat/completions", json=ask("!", stream=True))
        assert await error_of(answer) == (503, "EngineFailure")
        assert (await http.post("/v1/chat/completions", json=ask())).status == 200


async def test_a_model_failure_mid_stream_is_an_error_frame_without_the_end_mark() -> None:
    model = ScriptedModel(lambda _: b"ab!cd")
    model.fail_on = ord("!")
    async with serving(model, chunk_tokens=100) as http:
        model.hold()
        model.allow(1)
        answer = await http.post("/v1/chat/completions", json=ask(stream=True))
        model.release()
        found = await frames(answer)
    assert found[-1]["error"]["code"] == "engine_failed"
    assert "DONE" not in found


async def test_concurrent_requests_are_all_answered() -> None:
    async with serving(ScriptedModel(lambda p: p[6:8].encode()), max_queue=30) as http:

        async def one(n: int) -> str:
            body = await (await http.post("/v1/chat/completions", json=ask(f"{n:02}"))).json()
            return str(body["choices"][0]["message"]["content"])

        assert await asyncio.gather(*map(one, range(20))) == [f"{n:02}" for n in range(20)]


def test_every_bad_option_is_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        LlmService.from_args(arguments(threads=0, context_tokens=3, cache_mb=-1))
    assert len(caught.value.problems) == 3
