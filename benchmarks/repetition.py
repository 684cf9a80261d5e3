"""``python -m benchmarks.repetition``: how much the default chat model says again.

Conversations of twelve messages with the default persona, each with a seed of its own, once as the
``llm`` sidecar samples by default and once without its DRY stage. A figure is the share of a
reply's 5-grams of words that an earlier reply of the same conversation has; beside it how many
replies came word for word before. The interval is a bootstrap over conversations.
"""

from __future__ import annotations

import argparse
import json
import queue
import re

import numpy as np

from brain import prompt
from brain.errors import EXIT_USAGE
from brain.persona import load_persona
from brain.prompt import Exchange
from brain.schema import Behaviour
from brain.settings import load_settings
from sidecars.artifacts import resolve
from sidecars.chat_engine import ChatEngine, Event, Failed, Finished, Text, completion
from sidecars.llama_model import LlamaModel, LlamaOptions
from sidecars.llm import DEFAULT_MODEL, spoken_tokens
from sidecars.token_model import Sampling

N = 5  # words
SAID = (
    "hey, i had a long day at work",
    "my boss shouted at me in front of everyone",
    "i don't know what to do about it",
    "maybe i should quit",
    "what would you do?",
    "my sister says i should stay",
    "do you think she is right?",
    "anyway, tell me something funny",
    "i like cooking, what should i make tonight?",
    "i have eggs and rice",
    "thanks, that sounds good",
    "what did i tell you about my boss?",
)
TONE = Behaviour(directive="warm, gentle", temperature=0.6, top_p=0.88, max_tokens=120)


def ngrams(text: str) -> list[tuple[str, ...]]:
    """Every 5-gram of words, in lower case."""
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", text.lower())
    return [tuple(words[i : i + N]) for i in range(len(words) - N + 1)]


def said_again(replies: list[str]) -> tuple[int, int, int]:
    """5-grams that an earlier reply has, all of them, and replies given word for word before."""
    known: set[tuple[str, ...]] = set()
    again = total = 0
    for reply in replies:
        own = ngrams(reply)
        again += sum(ngram in known for ngram in own)
        total += len(own)
        known.update(own)
    return again, total, len(replies) - len(set(replies))


def conversation(engine: ChatEngine, model: LlamaModel, multiplier: float, seed: int) -> list[str]:
    """The replies to all of ``SAID``."""
    settings = load_settings(None, environ={})
    persona, history = load_persona(settings.chat.persona, settings), list[Exchange]()
    for number, text in enumerate(SAID):
        messages = [
            {"role": m.role, "content": m.content}
            for m in prompt.build(prompt.head(persona, history), text, TONE)
        ]
        sampling = Sampling(
            temperature=TONE.temperature, top_p=TONE.top_p, dry_multiplier=multiplier,
            frequency_penalty=settings.llm.frequency_penalty, seed=seed * len(SAID) + number,
            spoken=spoken_tokens(model, messages),
        )  # fmt: skip
        events: queue.Queue[Event] = queue.Queue()
        engine.submit(completion(model.encode_chat(messages, reply=True), events.put,
                                 max_tokens=TONE.max_tokens, sampling=sampling))  # fmt: skip
        reply = ""
        while not isinstance(event := events.get(), Finished):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Text):
                reply += event.text
        history.append(Exchange(number + 1, text, reply, len(model.encode(text + reply))))
    return [turn.reply for turn in history]


def main() -> None:
    """A JSON line for each way to sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print the replies")
    args = parser.parse_args()
    for name in ("conversations", "threads"):
        if (value := getattr(args, name)) < 1:
            parser.exit(EXIT_USAGE, f"benchmarks.repetition: --{name} {value}: at least 1\n")
    options = LlamaOptions(context_tokens=4096, threads=args.threads)
    model = LlamaModel(resolve(DEFAULT_MODEL), options)
    engine = ChatEngine(model)
    engine.start()
    rng = np.random.default_rng(0)
    for multiplier in (Sampling().dry_multiplier, 0.0):
        counts, words = [], 0
        for seed in range(args.conversations):
            replies = conversation(engine, model, multiplier, seed)
            counts.append(said_again(replies))
            words += sum(len(reply.split()) for reply in replies)
            if args.show:
                for text, reply in zip(SAID, replies, strict=True):
                    print(f"> {text}\n  {' '.join(reply.split())}")
        array = np.array(counts)
        drawn = array[rng.integers(0, len(array), (1000, len(array)))].sum(1)
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], [2.5, 97.5])
        again, total, same = (int(n) for n in array.sum(0))
        count = len(counts) * len(SAID)
        row = {"dry_multiplier": multiplier, "said_again": round(again / total, 4),
               "interval": [round(low, 4), round(high, 4)], "same_replies": same,
               "replies": count, "words_a_reply": round(words / count, 1)}  # fmt: skip
        print(json.dumps(row), flush=True)
    engine.close(60)


if __name__ == "__main__":
    main()
