"""Files under ``config/data``, read and checked; a mistake names the file and the key."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainers.affect.errors import DataConfigError
from trainers.affect.rows import ARCHETYPES, AXES, Score, Unit


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceFile(_Strict):
    """One file of a public source: where it lies, where it comes from, what it must be."""

    path: str
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    url: str | None = None
    derive: str | None = Field(default=None, pattern="^drop_test_split$")


class Source(_Strict):
    """One public data set."""

    title: str
    measures: str
    licence: str
    homepage: str
    cite: str
    files: tuple[SourceFile, ...]


class Sources(_Strict):
    """All of ``sources.toml``: the data sets, and the class of each licence."""

    licences: dict[str, str]
    sources: dict[str, Source]

    def licence_class(self, licence: str) -> str:
        """``permissive``, ``share-alike`` or ``restricted`` (anything unknown is restricted)."""
        return self.licences.get(licence, "restricted")


class Meaning(_Strict):
    """What one emotion label says about the axes; ``None`` where it says nothing."""

    valence: Score | None = None
    intimacy: Score | None = None
    tension: Score | None = None
    archetype: str | None = None


@dataclass(frozen=True)
class Mapping:
    """``archetypes.toml``: per source, per label, its :class:`Meaning`."""

    max_disagreement: float
    confidence: float
    labels: dict[str, dict[str, Meaning]] = field(default_factory=dict)


class Merge(_Strict):
    """How rows are joined and weighted (``build.toml``, section ``merge``)."""

    weights: dict[str, float]
    backfill_cap: int = Field(gt=0)
    frame_cap: int = Field(gt=0)
    near_duplicate_jaccard: float = Field(gt=0.3, le=1.0)
    near_duplicate_ratio: float = Field(gt=50.0, le=100.0)
    conflict: float = Field(gt=0.0)


class Splits(_Strict):
    dev: float = Field(gt=0.0, lt=0.5)
    test: float = Field(gt=0.0, lt=0.5)


class Balance(_Strict):
    """Cell edges, weight clipping and the gate (``build.toml``, section ``balance``)."""

    neutral_band: float = Field(gt=0.0, lt=1.0)
    clip: float = Field(gt=1.0)
    limit: Unit
    aim: Unit
    max_selected_out: Unit
    bootstrap: int = Field(ge=100)
    level: float = Field(gt=0.5, lt=1.0)
    distance_sample: int = Field(ge=50)


class Build(_Strict):
    """All of ``build.toml``."""

    seed: int
    max_rejects: Unit
    goemotions_cap_per_label: int = Field(gt=0)
    xed_cap_per_label: int = Field(gt=0)
    emobank_tension_share: Unit
    merge: Merge
    split: Splits
    balance: Balance


def config_dir() -> Path:
    """``config/data`` of the checkout, or the copy that an installed package carries."""
    checkout = Path(__file__).parents[2] / "config" / "data"
    if checkout.is_dir():
        return checkout
    spec = find_spec("brain")
    for root in (spec.submodule_search_locations or []) if spec else []:
        installed = Path(root) / "default_config" / "data"
        if installed.is_dir():
            return installed
    raise DataConfigError(f"{checkout}: no such folder; reinstall the package or use a checkout")


def _load(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataConfigError(f"{path}: cannot read it: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataConfigError(f"{path}: not valid TOML: {error}") from error


def _problem(path: Path, error: ValidationError) -> DataConfigError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return DataConfigError(f"{path}: {where}: {first['msg']}")


def load_sources(path: Path | None = None) -> Sources:
    """The public sources and licence classes of ``sources.toml``."""
    path = path or config_dir() / "sources.toml"
    try:
        found = Sources.model_validate(_load(path))
    except ValidationError as error:
        raise _problem(path, error) from error
    for name, source in found.sources.items():
        if source.licence not in found.licences:
            raise DataConfigError(
                f"{path}: sources.{name}.licence: {source.licence!r} has no class in [licences]"
            )
    return found


def load_mapping(path: Path | None = None) -> Mapping:
    """The weak meaning of emotion labels in ``archetypes.toml``."""
    path = path or config_dir() / "archetypes.toml"
    raw = _load(path)
    numbers = {}
    for key in ("max_disagreement", "confidence"):
        value = raw.pop(key, None)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 2:
            raise DataConfigError(f"{path}: {key}: needs a number from 0 to 2, got {value!r}")
        numbers[key] = float(value)
    labels: dict[str, dict[str, Meaning]] = {}
    for source, table in raw.items():
        labels[source] = {}
        for label, entry in table.items():
            try:
                meaning = Meaning.model_validate(entry)
            except ValidationError as error:
                raise _problem(path, error) from error
            if meaning.archetype is not None and meaning.archetype not in ARCHETYPES:
                raise DataConfigError(
                    f"{path}: {source}.{label}.archetype: {meaning.archetype!r} is not one of "
                    f"{', '.join(ARCHETYPES)}"
                )
            if all(getattr(meaning, axis) is None for axis in AXES) and not meaning.archetype:
                raise DataConfigError(f"{path}: {source}.{label}: says nothing; remove the line")
            labels[source][label] = meaning
    return Mapping(labels=labels, **numbers)


def load_build(path: Path | None = None) -> Build:
    """Seeds, caps, weights and gate limits of ``build.toml``."""
    path = path or config_dir() / "build.toml"
    try:
        return Build.model_validate(_load(path))
    except ValidationError as error:
        raise _problem(path, error) from error


@lru_cache(maxsize=1)
def default_build() -> Build:
    """The shipped ``build.toml``, read once."""
    return load_build()
