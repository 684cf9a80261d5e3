"""The bare loop that everything is compared with: aiohttp, orjson, nothing else."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import aiohttp
import orjson

from brain.schema import Behaviour, Message


async def bare_stream(
    http: aiohttp.ClientSession,
    url: str,
    messages: Sequence[Message],
    behaviour: Behaviour,
    *,
    headers: Mapping[str, str] | None = None,
    first_only: bool = False,
) -> tuple[float, str]:
    """Stream one reply from the completions address ``url``.

    Returns seconds from the call to the first word, and the text. With ``first_only`` it leaves
    after the first word, which stops the server.
    """
    began = time.perf_counter()
    first_s = 0.0
    parts: list[str] = []
    body = {
        "model": "default",
        "messages": [{"role": m.role, "content": m.content} for m in messages],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": behaviour.temperature,
        "top_p": behaviour.top_p,
        "max_tokens": behaviour.max_tokens,
    }
    sent = {"Content-Type": "application/json", **(headers or {})}
    async with http.post(url, data=orjson.dumps(body), headers=sent) as response:
        response.raise_for_status()
        async for line in response.content:
            if not line.startswith(b"data: "):
                continue
            if line[6:].strip() == b"[DONE]":
                break
            event = orjson.loads(line[6:])
            if event["choices"] and (text := event["choices"][0]["delta"].get("content")):
                if not parts:
                    first_s = time.perf_counter() - began
                parts.append(text)
                if first_only:
                    return first_s, text
        await response.read()  # to the end of the body, so that the connection is reused
    return first_s, "".join(parts)
