"""What the manifest of an affect head must say; anything else is refused before it is served.

A manifest is a file from elsewhere: every field has a type, a range and a length, so that no value
in it can end in a score that is no number, in an answer outside the contract, or in a traceback.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from brain.errors import ConfigError
from brain.schema import MAX_TAGS, Tag, Unit, describe

AXES = ("valence", "intimacy", "tension")
KIND = "affect-encoder"
MAX_LINE = 300

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]


class Confidence(BaseModel):
    """``sigmoid(a − b · spread)``, spread being the expected mean error of the axes in [0, 2].

    Fitted values are near 3 and 12; what lies far outside is no fit of such an error, and a
    negative ``b`` would be surest where the head errs most.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    a: Annotated[float, Field(ge=-50.0, le=50.0, allow_inf_nan=False)]
    b: Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False)]


class AffectManifest(BaseModel):
    """The fields that the sidecar reads; others may stand beside them."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    name: Word
    version: Word
    kind: Literal["affect-encoder"]
    max_tokens: Annotated[int, Field(ge=8, le=8192)]
    axes: list[Any]
    # No answer may carry more tags than the brain accepts.
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS)]
    tag_thresholds: list[Unit]
    confidence: Confidence

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.axes != list(AXES):
            raise ValueError(f"axes must be {', '.join(AXES)}, in this order")
        if len(set(self.tags)) != len(self.tags):
            raise ValueError("tags must differ from each other")
        if len(self.tag_thresholds) != len(self.tags):
            raise ValueError("tag_thresholds must hold one threshold for each tag")
        return self

    @classmethod
    def check(cls, manifest: Any, *, where: str) -> Self:
        """The checked manifest.

        Args:
            manifest: what ``manifest.json`` holds, any JSON value.
            where: the file, for the message.

        Raises:
            ConfigError: one line that names the first two mistakes (exit code 78).
        """
        kind = manifest.get("kind") if isinstance(manifest, dict) else None
        if kind != KIND:
            said = repr(kind)[:60]
            raise ConfigError(f"{where}: not an affect head (kind {said}, wanted {KIND!r})")
        try:
            return cls.model_validate(manifest)
        except ValidationError as error:
            said = _one_line(describe(error)).replace("body: Value error, ", "")
            raise ConfigError(f"{where}: {said}; export it again") from error


def _one_line(text: str) -> str:
    """Keys of a foreign file are part of the message: they may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_LINE]
