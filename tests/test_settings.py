"""Settings: every mistake at once, with its place; environment over file; paths of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from brain.errors import EXIT_CONFIG, ConfigError
from brain.persona import list_personas, load_persona
from brain.settings import config_dir, find_config, load_settings


def test_the_shipped_file_says_the_defaults() -> None:
    shipped = load_settings(config_dir() / "limbic.toml", environ={})
    plain = load_settings(None, environ={})
    sections = ("chat", "blend", "llm", "telemetry", "web", "memory", "state", "sidecars")
    for section in sections:
        assert getattr(shipped, section) == getattr(plain, section)


def test_all_mistakes_are_reported_at_once_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text(
        '[blend]\nsoft_deadline_ms = "soon"\nfoo = 1\n[llm]\nmax_attempts = 99\n'
        '[sidecars.cahm]\nmode = "remote"\n'
    )
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={"LIMBIC__WEB__PORT": "70000"})
    text = str(caught.value)
    assert caught.value.exit_code == EXIT_CONFIG and len(caught.value.problems) == 5
    for part in (
        f"{file}: blend.soft_deadline_ms", "blend.foo: unknown key", "less than or equal to 10",
        "a remote sidecar needs url", "environment LIMBIC__WEB__PORT: web.port",
    ):  # fmt: skip
        assert part in text


def test_without_a_file_the_side_models_run_and_a_file_or_the_environment_leaves_them_out(
    tmp_path: Path,
) -> None:
    plain = load_settings(None, environ={})
    assert [plain.sidecar(name).mode for name in ("cahm", "lvm")] == ["managed", "managed"]
    quiet = load_settings(None, environ={"LIMBIC__SIDECARS__CAHM__MODE": "off"})
    assert [quiet.sidecar(name).mode for name in ("cahm", "lvm")] == ["off", "managed"]
    file = tmp_path / "limbic.toml"
    file.write_text("[sidecars.lvm]\nmode = 'managed'\n")
    named = load_settings(file, environ={})
    assert [named.sidecar(name).mode for name in ("cahm", "lvm")] == ["off", "managed"]
    assert [plain.sidecar(name).mode for name in ("cahm", "lvm")] == ["managed", "managed"]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"[blend", "not valid TOML"), (b"\xff\xfe", "cannot be read"), (None, "no such file")],
)
def test_an_unreadable_file_is_named(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    file = tmp_path / "limbic.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=complaint):
        load_settings(file, environ={})


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text("[blend]\nsoft_deadline_ms = 500\n")
    settings = load_settings(
        file,
        environ={
            "LIMBIC__BLEND__SOFT_DEADLINE_MS": "550",
            "LIMBIC__LLM__BASE_URL": "http://127.0.0.1:9/v1",
        },
    )
    assert settings.blend.soft_deadline_ms == 550
    assert settings.sidecar("llm").mode == "remote"


@pytest.mark.parametrize(
    "line", ['mode = "off"', 'mode = "remote"\nurl = "http://x"', 'model = "m"']
)
def test_where_the_chat_model_is_has_one_place(tmp_path: Path, line: str) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text(f"[sidecars.llm]\n{line}\n")
    with pytest.raises(ConfigError, match=r"sidecars.llm.*said in \[llm\]"):
        load_settings(file, environ={})
    file.write_text('[llm]\nmodel = "m"\n[sidecars.llm]\nmode = "managed"\nargs = ["-v"]\n')
    side = load_settings(file, environ={}).sidecar("llm")
    assert (side.model, side.args, side.required) == (str(tmp_path / "m"), ("-v",), True)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text('[paths]\ndata = "d"\n')
    assert load_settings(file, environ={}).data_dir == tmp_path / "d"


def test_models_of_a_file_are_found_beside_it_wherever_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file, digest = tmp_path / "limbic.toml", "#sha256=" + "0" * 64
    file.write_text(
        f'[llm]\nmodel = "file:models/x.gguf{digest}"\n'
        '[sidecars.cahm]\nmodel = "../a.gguf"\n[sidecars.lvm]\nmodel = "mine"\n'
    )
    settings = load_settings(file, environ={"LIMBIC__SIDECARS__CAHM__MODEL": "b.gguf"})
    assert settings.sidecar("llm").model == f"{tmp_path}/models/x.gguf{digest}"
    assert settings.sidecar("lvm").model == f"{tmp_path}/mine"
    assert settings.sidecar("cahm").model == f"{tmp_path}/elsewhere/b.gguf"
    table = load_settings(file, environ={"LIMBIC__SIDECARS": '{lvm = {model = "mine"}}'})
    assert table.sidecar("lvm").model == f"{tmp_path}/elsewhere/mine"
    assert load_settings(file, environ={}).sidecar("cahm").model == f"{tmp_path.parent}/a.gguf"


def test_models_that_are_no_paths_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "limbic.toml"
    for name in ("pkg:p/x.gguf", "hf:org/repo/x.gguf", "", "lvm_articles"):
        file.write_text(f'[llm]\nmodel = "{name}"\n[sidecars.lvm]\nmodel = "{name}"\n')
        settings = load_settings(file, environ={})
        assert (settings.llm.model, settings.sidecar("lvm").model) == (name, name)
    file.write_text('[llm]\nmodel = "org/name"\nbase_url = "http://127.0.0.1:9/v1"\n')
    assert load_settings(file, environ={}).llm.model == "org/name"


@pytest.mark.parametrize("key", ["paths.data", "paths.logs", "state.hormones", "llm.model"])
@pytest.mark.parametrize("path", ["~no_such_user_here/x", "a\\u0000b"])
def test_what_cannot_be_a_path_is_one_line_that_names_the_key(
    tmp_path: Path, key: str, path: str
) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text(f'{key} = "{path}"\nweb.port = -1\n')
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={})
    assert len(caught.value.problems) == 2  # together with every other mistake
    assert caught.value.problems[0].startswith(f"{file}: {key}: not a path: ")


@pytest.mark.parametrize(
    ("section", "complaint"),
    [
        ("[blend]\nsoft_deadline_ms = 800\nhard_deadline_ms = 799", "blend: hard_deadline_ms"),
        ("[blend]\nadaptive_min_ms = 700\nadaptive_max_ms = 699", "blend: adaptive_max_ms"),
        ('[llm]\nbase_url = "localhost:8080"', "llm: base_url must start with http"),
        ('[sidecars.cahm]\nmode = "remote"', "sidecars.cahm: a remote sidecar needs url"),
        ('[sidecars.cahm]\nurl = "cahm:8082"', "sidecars.cahm: url must start with http"),
    ],
)
def test_keys_that_do_not_fit_together_are_one_line(
    tmp_path: Path, section: str, complaint: str
) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text(section)
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={})
    (problem,) = caught.value.problems
    assert problem.startswith(f"{file}: {complaint}")


def test_deadlines_may_be_the_same() -> None:
    file = {"LIMBIC__BLEND__SOFT_DEADLINE_MS": "800", "LIMBIC__BLEND__HARD_DEADLINE_MS": "800",
            "LIMBIC__BLEND__ADAPTIVE_MIN_MS": "700"}  # fmt: skip
    blend = load_settings(None, environ=file).blend
    assert blend.hard_deadline_ms == 800 and blend.adaptive_max_ms == 700


def test_the_environment_speaks_toml_and_plain_words() -> None:
    said = {"LIMBIC__BLEND__ADAPTIVE": "true", "LIMBIC__CHAT__PERSONA": "maverick",
            "LIMBIC__SIDECARS__CAHM__ARGS": '["--threads", "1"]'}  # fmt: skip
    settings = load_settings(None, environ=said)
    assert settings.blend.adaptive is True and settings.chat.persona == "maverick"
    assert settings.sidecar("cahm").args == ("--threads", "1")
    assert load_settings(None, environ={}).sidecar("cahm").args == (), "defaults are not touched"


def test_a_mistake_in_a_table_of_the_environment_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    file = tmp_path / "limbic.toml"
    file.write_text("[blend]\nsoft_deadline_ms = 500\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file, environ={"LIMBIC__BLEND": "{soft_deadline_ms = -1}"})
    (problem,) = caught.value.problems
    assert problem.startswith("environment LIMBIC__BLEND: blend.soft_deadline_ms: ")


def test_without_the_chat_model_nothing_works_wherever_it_is() -> None:
    for environ in ({}, {"LIMBIC__LLM__BASE_URL": "http://127.0.0.1:9/v1"}):
        assert load_settings(None, environ=environ).sidecar("llm").required


def test_data_and_logs_are_where_the_settings_or_the_desktop_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    plain = load_settings(None, environ={})
    assert (plain.data_dir, plain.logs_dir) == (tmp_path / "limbic", tmp_path / "limbic" / "logs")
    apart = load_settings(None, environ={"LIMBIC__PATHS__LOGS": str(tmp_path / "elsewhere")})
    assert (apart.data_dir, apart.logs_dir) == (tmp_path / "limbic", tmp_path / "elsewhere")


def test_a_file_is_named_by_the_command_then_the_environment_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIMBIC_CONFIG", raising=False)
    assert find_config() is None
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "limbic.toml").touch()
    assert find_config() == Path("config/limbic.toml")
    monkeypatch.setenv("LIMBIC_CONFIG", "other.toml")
    assert find_config() == Path("other.toml")
    assert find_config("mine.toml") == Path("mine.toml")


def test_two_personas_ship_and_differ() -> None:
    settings = load_settings(None, environ={})
    assert set(list_personas(settings)) >= {"companion", "maverick"}
    sol, rook = (load_persona(n, settings) for n in ("companion", "maverick"))
    assert sol.system != rook.system
    assert sol.hormones.levels["oxytocin"] != rook.hormones.levels["oxytocin"]


@pytest.mark.parametrize("name", ["nobody", "../companion", ""])
def test_an_unknown_persona_is_named_with_those_that_exist(name: str) -> None:
    with pytest.raises(ConfigError, match=r"companion, maverick|only letters"):
        load_persona(name, load_settings(None, environ={}))


def test_mistakes_in_a_persona_are_reported(tmp_path: Path) -> None:
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "odd.toml").write_text(
        'system = "x"\n[hormones.levels.dopamine]\nbaseline = 7\n'
    )
    file = tmp_path / "limbic.toml"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"odd\.toml: levels\.dopamine\.baseline"):
        load_persona("odd", load_settings(file, environ={}))


@pytest.mark.parametrize("value", ["3", '"calm"', "[1]"])
def test_hormones_of_a_persona_that_are_no_table_are_refused(tmp_path: Path, value: str) -> None:
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas" / "odd.toml").write_text(f'system = "x"\nhormones = {value}\n')
    file = tmp_path / "limbic.toml"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"odd\.toml: hormones: must be a table"):
        load_persona("odd", load_settings(file, environ={}))
