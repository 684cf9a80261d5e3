"""The worker's order: completions before prefills, interruption, shedding; a scripted model."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from sidecars.batching import Shed
from sidecars.chat_engine import (
    ChatEngine,
    Event,
    Failed,
    Finished,
    Job,
    Prefilled,
    Started,
    Text,
    completion,
    prefill,
)
from sidecars.token_model import EngineFailure, Sampling
from tests.fakes.scripted_model import PATIENCE_S, ScriptedModel


class Client:
    """Collects a job's events."""

    def __init__(self) -> None:
        self._events: queue.Queue[Event] = queue.Queue()

    def put(self, event: Event) -> None:
        self._events.put(event)

    def next(self) -> Event:
        return self._events.get(timeout=PATIENCE_S)

    def end(self) -> list[Event]:
        events = []
        while True:
            events.append(self.next())
            if isinstance(events[-1], Finished | Failed | Prefilled):
                return events

    def silent(self) -> bool:
        return self._events.empty()


@contextmanager
def engine_with(model: ScriptedModel, **options: object) -> Iterator[ChatEngine]:
    engine = ChatEngine(model, **{"chunk_tokens": 10, **options})  # type: ignore[arg-type]
    engine.start()
    try:
        yield engine
    finally:
        model.release()
        assert engine.close(PATIENCE_S)


def ask(client: Client, text: str, *, max_tokens: int = 50, deadline: float | None = None) -> Job:
    return completion(
        list(text.encode()),
        client.put,
        max_tokens=max_tokens,
        sampling=Sampling(),
        deadline=deadline,
    )


def fill(client: Client, text: str, *, deadline: float | None = None) -> Job:
    return prefill(list(text.encode()), client.put, deadline=deadline)


def test_a_reply_streams_and_ends_with_its_count() -> None:
    client = Client()
    with engine_with(ScriptedModel(lambda prompt: f"you said {prompt}".encode())) as engine:
        engine.submit(ask(client, "hi"))
        events = client.end()
    assert events[0] == Started(prompt_tokens=2, cached=0)
    assert "".join(e.text for e in events if isinstance(e, Text)) == "you said hi"
    assert events[-1] == Finished("stop", 11)


@pytest.mark.parametrize(("limit", "context"), [(3, 1000), (50, 13)])
def test_a_reply_ends_at_the_token_limit_or_the_end_of_the_context(
    limit: int, context: int
) -> None:
    client = Client()
    with engine_with(ScriptedModel(context_tokens=context)) as engine:
        engine.submit(ask(client, "x" * 10, max_tokens=limit))
        events = client.end()
    text = "".join(e.text for e in events if isinstance(e, Text))
    assert text == "hello"[: min(limit, context - 10 + 1)]
    assert events[-1] == Finished("length", len(text))


def test_a_prefill_makes_the_completion_evaluate_only_the_rest() -> None:
    model, first, second = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        engine.submit(fill(first, "a" * 40))
        assert first.end() == [Prefilled(tokens=40, cached=0)]
        engine.submit(ask(second, "a" * 40 + "bc"))
        assert second.end()[0] == Started(prompt_tokens=42, cached=40)


def test_a_prefill_of_what_is_live_cuts_nothing_and_evaluates_nothing() -> None:
    model, client = ScriptedModel(), Client()
    with engine_with(model) as engine:
        engine.submit(ask(client, "abc"))
        client.end()
        before = model.evaluated
        engine.submit(fill(client, "abc"))
        assert client.end() == [Prefilled(tokens=3, cached=3)]
        assert model.evaluated == before
        assert bytes(model.live[:8]) == b"abchello"


def test_a_completion_interrupts_a_prefill_of_another_conversation_at_once() -> None:
    model, slow, quick = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        engine.submit(fill(slow, "a" * 35))
        assert model.waiting.wait(PATIENCE_S)
        engine.submit(ask(quick, "b" * 5))
        assert model.waiting.wait(PATIENCE_S)
        model.release()
        assert isinstance(quick.end()[-1], Finished)
        assert model.steps[0] == (0, 5), "the held step was given up, not finished"
        assert slow.end() == [Prefilled(tokens=35, cached=0)], "and the prefill goes on later"
        assert engine.counts.yields == 1


def test_a_completion_of_the_same_conversation_lets_the_running_step_finish() -> None:
    model, early, late = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        engine.submit(fill(early, "a" * 35))
        assert model.waiting.wait(PATIENCE_S)
        engine.submit(ask(late, "a" * 35 + "b"))
        model.release()
        assert late.end()[0] == Started(prompt_tokens=36, cached=10)
        assert early.end() == [Prefilled(tokens=35, cached=0)]


def test_a_reply_that_goes_on_inside_a_prefilled_message_keeps_most_of_the_running_step() -> None:
    model, early, late = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        engine.submit(fill(early, "aaaaaaaa./"))
        assert model.waiting.wait(PATIENCE_S)
        engine.submit(ask(late, "aaaaaaaa. tail"))
        model.release()
        assert late.end()[0] == Started(prompt_tokens=14, cached=9)
        assert model.interruptions == 0 and model.steps[0] == (0, 10)


def test_cancelling_a_reply_stops_inside_the_step_and_frees_the_model() -> None:
    model, gone, next_one = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        job = ask(gone, "a" * 35)
        engine.submit(job)
        assert model.waiting.wait(PATIENCE_S)
        engine.cancel(job)
        engine.submit(ask(next_one, "b"))
        model.release()
        assert isinstance(next_one.end()[-1], Finished)
        assert gone.silent()
        assert model.steps[0] == (0, 1)


def test_cancelling_a_reply_while_it_generates_stops_it() -> None:
    model, gone, next_one = ScriptedModel(lambda _: b"x" * 500), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        model.allow(3)
        job = ask(gone, "a", max_tokens=400)
        engine.submit(job)
        assert isinstance(gone.next(), Started)
        engine.cancel(job)
        model.release()
        engine.submit(ask(next_one, "b", max_tokens=1))
        assert isinstance(next_one.end()[-1], Finished)
        assert engine.counts.generated_tokens < 10


def test_cancelling_a_prefill_keeps_what_was_evaluated() -> None:
    model, gone, after = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        job = fill(gone, "a" * 35)
        engine.submit(job)
        assert model.waiting.wait(PATIENCE_S)
        engine.cancel(job)
        model.release()
        assert gone.end() == [Prefilled(tokens=10, cached=0)]
        engine.submit(ask(after, "a" * 36))
        assert after.end()[0] == Started(prompt_tokens=36, cached=10)


def test_a_waiting_request_that_is_cancelled_never_runs() -> None:
    model, first, gone = ScriptedModel(), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        engine.submit(ask(first, "a"))
        assert model.waiting.wait(PATIENCE_S)
        job = ask(gone, "b")
        engine.submit(job)
        assert engine.queue_length == 1
        engine.cancel(job)
        assert engine.queue_length == 0
        model.release()
        first.end()
    assert gone.silent()
    assert bytes(model.live[:1]) == b"a"


def test_a_full_queue_refuses_with_429() -> None:
    model = ScriptedModel()
    with engine_with(model, max_queue=2) as engine:
        model.hold()
        engine.submit(ask(Client(), "a"))
        assert model.waiting.wait(PATIENCE_S)
        engine.submit(ask(Client(), "b"))
        engine.submit(ask(Client(), "c"))
        with pytest.raises(Shed) as refusal:
            engine.submit(ask(Client(), "d"))
        assert (refusal.value.status, refusal.value.reason) == (429, "queue_full")
        assert refusal.value.retry_after_s is not None


def test_a_request_whose_deadline_passed_while_it_waited_is_shed() -> None:
    now = 100.0
    model, first, late, last = ScriptedModel(), Client(), Client(), Client()
    with engine_with(model, now=lambda: now) as engine:
        model.hold()
        engine.submit(ask(first, "a"))
        assert model.waiting.wait(PATIENCE_S)
        engine.submit(ask(late, "b", deadline=101.0))
        engine.submit(ask(last, "c", deadline=200.0))
        now = 102.0
        model.release()
        (failure,) = late.end()
        assert isinstance(failure, Failed) and isinstance(failure.error, Shed)
        assert failure.error.reason == "deadline_passed"
        assert isinstance(last.end()[-1], Finished)
        assert engine.counts.shed == 1


def test_a_deadline_that_passes_during_a_long_prompt_stops_it() -> None:
    now = 100.0
    model, client = ScriptedModel(), Client()
    with engine_with(model, now=lambda: now) as engine:
        model.hold()
        engine.submit(ask(client, "a" * 35, deadline=101.0))
        assert model.waiting.wait(PATIENCE_S)
        now = 102.0
        model.allow(1)
        (failure,) = client.end()
        assert isinstance(failure, Failed) and isinstance(failure.error, Shed)
        assert len(model.live) == 10


def test_a_prefill_out_of_time_says_how_far_it_came() -> None:
    now = 100.0
    model, client = ScriptedModel(), Client()
    with engine_with(model, now=lambda: now) as engine:
        model.hold()
        engine.submit(fill(client, "a" * 35, deadline=101.0))
        assert model.waiting.wait(PATIENCE_S)
        now = 102.0
        model.allow(1)
        assert client.end() == [Prefilled(tokens=10, cached=0)]


def test_completions_go_before_prefills_that_wait() -> None:
    model, running, waiting, urgent = ScriptedModel(), Client(), Client(), Client()
    order: list[str] = []
    with engine_with(model) as engine:
        model.hold()
        engine.submit(ask(running, "a"))
        assert model.waiting.wait(PATIENCE_S)
        done = threading.Event()

        def note(name: str, client: Client):  # type: ignore[no-untyped-def]
            def put(event: Event) -> None:
                client.put(event)
                if isinstance(event, Finished | Prefilled):
                    order.append(name)
                    if len(order) == 2:
                        done.set()

            return put

        engine.submit(prefill([1, 2], note("prefill", waiting)))
        engine.submit(
            completion([3], note("completion", urgent), max_tokens=1, sampling=Sampling())
        )
        model.release()
        assert done.wait(PATIENCE_S)
    assert order == ["completion", "prefill"]


def test_a_failing_model_fails_that_request_and_serves_the_next() -> None:
    model, bad, good = ScriptedModel(), Client(), Client()
    model.fail_on = ord("!")
    with engine_with(model) as engine:
        engine.submit(ask(bad, "no!"))
        (failure,) = bad.end()
        assert isinstance(failure, Failed) and isinstance(failure.error, EngineFailure)
        engine.submit(ask(good, "yes"))
        assert isinstance(good.end()[-1], Finished)


@pytest.mark.parametrize("can_truncate", [True, False])
def test_an_interrupted_prefill_is_completed_whatever_the_model_can_undo(
    can_truncate: bool,
) -> None:
    model, slow, quick = ScriptedModel(can_truncate=can_truncate), Client(), Client()
    with engine_with(model) as engine:
        model.hold()
        model.allow(1)
        engine.submit(fill(slow, "a" * 35))
        while model.evaluated < 10 or not model.waiting.is_set():
            assert model.waiting.wait(PATIENCE_S)
        engine.submit(ask(quick, "b" * 5))
        model.release()
        assert isinstance(quick.end()[-1], Finished)
        assert slow.end() == [Prefilled(tokens=35, cached=0)]
        assert bytes(model.live) == b"a" * 35


def test_closing_refuses_what_waits_and_stops_what_runs() -> None:
    model, running, waiting = ScriptedModel(), Client(), Client()
    engine = ChatEngine(model, chunk_tokens=10)
    engine.start()
    model.hold()
    engine.submit(ask(running, "a" * 30))
    assert model.waiting.wait(PATIENCE_S)
    engine.submit(ask(waiting, "b"))
    assert engine.close(PATIENCE_S)
    (failure,) = waiting.end()
    assert isinstance(failure, Failed) and isinstance(failure.error, Shed)
    assert failure.error.reason == "draining"
    with pytest.raises(Shed):
        engine.submit(ask(Client(), "c"))
