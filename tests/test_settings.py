"""Settings: every mistake at once, with its place; environment over file; paths of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from brain.errors import EXIT_CONFIG, ConfigError
from brain.persona import list_personas, load_persona
from brain.settings import config_dir, load_settings


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
