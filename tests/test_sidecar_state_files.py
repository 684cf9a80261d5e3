"""What was evaluated outlives the process, and nothing that lies in the folder can do harm."""

from __future__ import annotations

import os
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sidecars.chat_engine import ChatEngine, Finished, Prefilled, Started
from sidecars.prefix_cache import PrefixCache
from sidecars.state_files import FRESH, SUFFIX, TRYING, Saved, StateFiles, Stored
from tests.fakes.scripted_model import PATIENCE_S, ScriptedModel
from tests.test_sidecar_engine import Client, ask, engine_with, fill

PROMPT = "a long history " * 20
PLENTY = 1_000_000


def files_in(folder: Path, *, owner: str = "model 1", budget: int = PLENTY) -> StateFiles:
    return StateFiles(folder, owner=owner, budget_bytes=budget)


def live_once(folder: Path, text: str = PROMPT, **options: object) -> ScriptedModel:
    """A process that evaluates ``text`` and ends as processes should."""
    model, client = ScriptedModel(), Client()
    with engine_with(model, files=files_in(folder, **options)) as engine:  # type: ignore[arg-type]
        engine.submit(fill(client, text))
        assert isinstance(client.end()[-1], Prefilled)
    return model


def evaluated_after(folder: Path, **options: object) -> int:
    """Tokens that the next process evaluates for one reply to the same conversation."""
    model, client = ScriptedModel(), Client()
    with engine_with(model, files=files_in(folder, **options)) as engine:  # type: ignore[arg-type]
        engine.submit(ask(client, PROMPT + "and more", max_tokens=1))
        events = client.end()
    started = events[0]
    assert isinstance(started, Started) and isinstance(events[-1], Finished)
    assert model.live == list((PROMPT + "and more").encode())
    assert model.evaluated == len(model.live) - started.cached
    return model.evaluated


def the_file(folder: Path) -> Path:
    (found,) = folder.iterdir()
    return found


def test_after_a_restart_only_what_is_new_is_evaluated(tmp_path: Path) -> None:
    live_once(tmp_path)
    assert evaluated_after(tmp_path) == len("and more")


def test_a_restart_that_nobody_used_keeps_what_was_there(tmp_path: Path) -> None:
    live_once(tmp_path)
    with engine_with(ScriptedModel(), files=files_in(tmp_path)):
        pass
    assert evaluated_after(tmp_path) == len("and more")


def test_several_conversations_outlive_the_process(tmp_path: Path) -> None:
    texts = [f"{name} " * 60 for name in ("sea", "hill", "wood")]
    client = Client()
    with engine_with(ScriptedModel(), files=files_in(tmp_path)) as engine:
        for text in texts:
            engine.submit(fill(client, text))
            client.end()
    model = ScriptedModel()
    with engine_with(model, files=files_in(tmp_path)) as engine:
        for text in texts:
            engine.submit(fill(client, text))
            client.end()
        assert engine.from_disk == len(texts)
    assert model.evaluated == 0


def test_a_longer_conversation_takes_the_place_of_its_beginning(tmp_path: Path) -> None:
    live_once(tmp_path)
    live_once(tmp_path, PROMPT * 2)
    assert len(the_file(tmp_path).read_bytes()) > 2 * len(PROMPT)


def test_the_most_recent_conversations_are_kept_within_the_budget(tmp_path: Path) -> None:
    files = files_in(tmp_path, budget=250)
    files.read_all()
    entries = [Saved(array("i", [n] * 5), 5, bytearray(100)) for n in range(4)]
    assert files.keep(entries) == 2
    assert [one.tokens[0] for one in files.read_all()] == [2, 3]
    assert files_in(tmp_path, budget=50).keep(entries) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", [0.02, 0.3, 0.9])
def test_a_damaged_file_is_evaluated_again_and_removed(tmp_path: Path, place: float) -> None:
    live_once(tmp_path)
    file = the_file(tmp_path)
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 0x11
    file.write_bytes(data)
    assert evaluated_after(tmp_path) > len(PROMPT)
    assert evaluated_after(tmp_path) == 1, "what was evaluated instead is kept"


@pytest.mark.parametrize("length", [0, 1, 60, 400])
def test_a_file_that_was_cut_short_is_removed(tmp_path: Path, length: int) -> None:
    live_once(tmp_path)
    os.truncate(the_file(tmp_path), length)
    assert files_in(tmp_path).read_all() == []
    assert not list(tmp_path.iterdir())


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.from_regex(rb'\{"format":1,"owner":"model 1",.*\}\n.*'))
def test_any_bytes_in_the_folder_are_refused_without_an_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / f"x{SUFFIX}").write_bytes(data)
    assert files_in(tmp_path).read_all() == []
    assert not list(tmp_path.iterdir())


def test_states_of_another_model_or_library_are_not_used(tmp_path: Path) -> None:
    live_once(tmp_path)
    assert evaluated_after(tmp_path, owner="model 2") > len(PROMPT)


def test_a_state_the_library_refuses_is_removed_and_evaluated_again(tmp_path: Path) -> None:
    live_once(tmp_path)
    model = ScriptedModel()
    model.refuses_states = True
    cache = PrefixCache(model, budget_bytes=0, files=files_in(tmp_path))
    assert cache.adopt(list(PROMPT.encode()), reusable=len(PROMPT)) == 0
    assert not list(tmp_path.iterdir())


def test_a_file_during_whose_use_the_process_died_is_not_tried_again(tmp_path: Path) -> None:
    live_once(tmp_path)

    def die(_: bytearray) -> bool:
        assert the_file(tmp_path).suffix == TRYING
        raise SystemExit

    files = files_in(tmp_path)
    (stored,) = files.read_all()
    with pytest.raises(SystemExit):
        files.use(stored, die)
    assert evaluated_after(tmp_path) > len(PROMPT)


def test_a_file_that_vanished_is_evaluated_again(tmp_path: Path) -> None:
    live_once(tmp_path)
    model, client = ScriptedModel(), Client()
    with engine_with(model, files=files_in(tmp_path)) as engine:
        the_file(tmp_path).unlink()
        engine.submit(fill(client, PROMPT))
        assert client.end()[-1] == Prefilled(tokens=len(PROMPT), cached=0)


def test_a_folder_that_cannot_be_used_costs_only_the_saving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taken = tmp_path / "file"
    taken.write_text("not a folder")
    live_once(taken)
    assert "cannot be read" in caplog.text and "could not be saved" in caplog.text
    assert taken.read_text() == "not a folder"


def test_a_full_disk_leaves_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    live_once(tmp_path)
    assert not list(tmp_path.iterdir())


def test_only_the_owner_may_read_what_was_said(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    live_once(folder)
    assert folder.stat().st_mode & 0o077 == 0
    assert the_file(folder).stat().st_mode & 0o077 == 0


def test_left_over_temporary_files_are_removed_and_other_files_are_not(tmp_path: Path) -> None:
    (tmp_path / f"half{FRESH}").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    live_once(tmp_path)
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [SUFFIX, ".txt"]


class Watched(StateFiles):
    """Says when it was asked to keep something; ``hang`` holds it there."""

    def __init__(self, folder: Path, *, hang: bool = False) -> None:
        super().__init__(folder, owner="model 1", budget_bytes=PLENTY)
        self.asked, self.done, self.go_on = (threading.Event() for _ in range(3))
        self._hang = hang

    def keep(self, states: object) -> int:
        self.asked.set()
        if self._hang and threading.current_thread().name == "llm-states":
            assert self.go_on.wait(PATIENCE_S)
        kept = super().keep(states)  # type: ignore[arg-type]
        self.done.set()
        return kept


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[Watched]:
    files = Watched(tmp_path, hang=True)
    yield files
    files.go_on.set()


def test_a_quiet_moment_puts_it_on_disk_while_the_process_goes_on(tmp_path: Path) -> None:
    files, client = Watched(tmp_path), Client()
    with engine_with(ScriptedModel(), files=files, quiet_s=0.001) as engine:
        engine.submit(fill(client, PROMPT))
        client.end()
        assert files.done.wait(PATIENCE_S)
        assert len(files_in(tmp_path).read_all()) == 1  # as after a kill


def test_a_disk_that_hangs_stops_no_reply(hanging: Watched) -> None:
    client = Client()
    with engine_with(ScriptedModel(), files=hanging, quiet_s=0.001) as engine:
        engine.submit(fill(client, PROMPT))
        client.end()
        assert hanging.asked.wait(PATIENCE_S)
        engine.submit(ask(client, "hi"))
        assert isinstance(client.end()[-1], Finished)


def test_nothing_is_written_again_when_little_is_new(tmp_path: Path) -> None:
    model = ScriptedModel()
    cache = PrefixCache(model, budget_bytes=0, files=files_in(tmp_path))
    prompt = list(PROMPT.encode())
    cache.adopt(prompt, reusable=len(prompt))
    assert not cache.worth_storing()
    cache.extend(prompt, logits=False)
    assert cache.worth_storing()
    cache.plan()
    assert not cache.worth_storing()
    cache.extend([1] * 95, logits=False)
    assert not cache.worth_storing()
    cache.extend([1], logits=False)
    assert cache.worth_storing()


def test_without_a_folder_nothing_is_stored() -> None:
    cache = PrefixCache(ScriptedModel(), budget_bytes=0)
    cache.extend([1] * 200, logits=False)
    assert not cache.worth_storing()


SOME_PROMPT = st.lists(st.integers(0, 2), min_size=1, max_size=30)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(SOME_PROMPT, st.booleans()), max_size=12),
    st.integers(0, 400),
    st.integers(0, 600),
)
def test_after_any_history_with_restarts_the_model_holds_exactly_the_prompt(
    tmp_path_factory: pytest.TempPathFactory,
    turns: list[tuple[list[int], bool]],
    memory: int,
    disk: int,
) -> None:
    folder = tmp_path_factory.mktemp("states")

    def process() -> tuple[ScriptedModel, StateFiles, PrefixCache]:
        model, files = ScriptedModel(), files_in(folder, budget=disk)
        return model, files, PrefixCache(model, budget_bytes=memory, worth_saving=3, files=files)

    model, files, cache = process()
    for prompt, restart in turns:
        if restart:
            files.keep(cache.plan())
            assert sum(f.size for f in files.read_all()) <= disk
            model, files, cache = process()
        cached = cache.adopt(prompt, reusable=len(prompt) - 1)
        assert cache.extend(prompt[cached:], logits=True)
        assert model.live == prompt
        assert cache.saved_bytes <= memory


def test_a_head_says_what_the_file_holds(tmp_path: Path) -> None:
    live_once(tmp_path)
    (stored,) = files_in(tmp_path).read_all()
    assert isinstance(stored, Stored)
    assert bytes(stored.tokens.tolist()) == PROMPT.encode()
    assert (stored.prompt_length, stored.size) == (len(PROMPT), 10 * len(PROMPT))


def test_the_engine_of_a_server_without_a_folder_has_no_files() -> None:
    assert ChatEngine(ScriptedModel()).from_disk == 0
