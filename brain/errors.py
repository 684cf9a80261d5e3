"""The whole error tree of Limbic.

Every exception that leaves a public function of the brain is one of these::

    LimbicError
    ├── ConfigError              settings, persona or hormone file is wrong        exit 78
    ├── InputError               the caller sent something unusable                HTTP 400
    │   ├── TextTooLong                                                            HTTP 413
    │   └── TurnConflict         same turn id, other words; or already running     HTTP 409
    ├── StoreError               the database refused                              HTTP 503
    │   ├── DiskFull             no space, or fsync failed: nothing acknowledged is lost
    │   └── DataDirectoryInUse   another brain owns the directory                  exit 78
    ├── ArtifactError            a model file cannot be used                       exit 78
    │   ├── ArtifactMissing
    │   ├── ArtifactCorrupt      size or sha256 differs from what was recorded
    │   └── ArtifactRefused      a format that is never loaded (pickle and the like)
    ├── RemoteError              something on the other end of a socket
    │   ├── RemoteUnavailable    refused, reset before an answer, 5xx              retryable
    │   ├── RateLimited          429, with ``retry_after_s``                       retryable
    │   ├── RemoteRejected       4xx: asking again cannot help
    │   ├── RemoteTimeout        one of the named limits passed
    │   ├── ProtocolError        an answer that does not fit the contract
    │   ├── StreamBroken         the stream ended early, after the first token
    │   └── BreakerOpen          too many failures; not asked
    └── SidecarError             a supervised process
        ├── SidecarDown          died, restarting or switched off                  retryable
        └── SidecarFailed        permanent: exit code 78 or its intensity limit

``retryable`` says whether the same request may succeed when sent again soon; it is the only
definition of that word in the project. ``str(error)`` is one sentence that a person can act on and
is never shown or stored as a reply.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED_CHECK = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78


class LimbicError(Exception):
    """Base of every error that Limbic raises on purpose."""

    retryable: ClassVar[bool] = False
    exit_code: ClassVar[int] = EXIT_FAILED_CHECK
    http_status: ClassVar[int] = 500

    @property
    def code(self) -> str:
        """Stable machine-readable name, e.g. ``RemoteTimeout``."""
        return type(self).__name__


class ConfigError(LimbicError):
    """Configuration is wrong. ``problems`` lists every mistake, one line each."""

    exit_code = EXIT_CONFIG

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class InputError(LimbicError):
    """The caller sent something that cannot be used; the message says what and why."""

    http_status = 400


class TextTooLong(InputError):
    """The text is over the configured limit."""

    http_status = 413


class TurnConflict(InputError):
    """A turn id that is running now, or was used for other words."""

    http_status = 409


class StoreError(LimbicError):
    """The database refused; what was acknowledged earlier is safe."""

    http_status = 503


class DiskFull(StoreError):
    """No space left, or fsync failed: the turn is refused, never half-acknowledged."""


class DataDirectoryInUse(StoreError):
    """Another brain owns the data directory; ``pid`` is its process id."""

    exit_code = EXIT_CONFIG

    def __init__(self, message: str, *, pid: int | None = None) -> None:
        self.pid = pid
        super().__init__(message)


class ArtifactError(LimbicError):
    """A model file cannot be used. Permanent: restarting does not help."""

    exit_code = EXIT_CONFIG


class ArtifactMissing(ArtifactError):
    """The reference names no file that is here."""


class ArtifactCorrupt(ArtifactError):
    """Size or sha256 differs from what was recorded."""


class ArtifactRefused(ArtifactError):
    """A format that is never loaded, whatever its name says."""


class RemoteError(LimbicError):
    """Something on the other end of a socket; ``remote`` names it (``llm``, ``cahm`` …)."""

    http_status = 502

    def __init__(self, message: str, *, remote: str = "") -> None:
        self.remote = remote
        super().__init__(message)


class RemoteUnavailable(RemoteError):
    """Refused, reset before any answer, or 5xx."""

    retryable = True
    http_status = 503


class RateLimited(RemoteError):
    """HTTP 429. ``retry_after_s`` is what the server asked for, if it did."""

    retryable = True
    http_status = 503

    def __init__(
        self, message: str, *, remote: str = "", retry_after_s: float | None = None
    ) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message, remote=remote)


class RemoteRejected(RemoteError):
    """A 4xx answer: the request itself is refused. ``status`` is the HTTP status."""

    def __init__(self, message: str, *, remote: str = "", status: int = 400) -> None:
        self.status = status
        super().__init__(message, remote=remote)


class RemoteTimeout(RemoteError):
    """A limit passed. ``phase`` is ``connect``, ``first_token``, ``idle`` or ``total``."""

    http_status = 504

    def __init__(self, message: str, *, remote: str = "", phase: str = "total") -> None:
        self.phase = phase
        super().__init__(message, remote=remote)


class ProtocolError(RemoteError):
    """The answer does not fit the contract: invalid JSON, NaN, wrong dimension, error body."""


class StreamBroken(RemoteError):
    """The stream ended early after the first token; what arrived is kept and marked partial."""


class BreakerOpen(RemoteError):
    """The circuit breaker is open: the remote failed too often and was not asked."""

    http_status = 503


class SidecarError(LimbicError):
    """A supervised process; ``name`` says which."""

    http_status = 503

    def __init__(self, message: str, *, name: str = "") -> None:
        self.name = name
        super().__init__(message)


class SidecarDown(SidecarError):
    """Died, is restarting, or is switched off; the request was not answered."""

    retryable = True


class SidecarFailed(SidecarError):
    """Permanent: bad configuration, bad model file, or over its restart intensity limit."""
