"""``python -m sidecars.verify REFERENCE``: is this model file the one that it should be?

Prints reference, size and sha256 on one line. Exit 78 with one line on stderr when it is not.
"""

from __future__ import annotations

import sys

from brain.errors import EXIT_USAGE, LimbicError
from sidecars.artifacts import resolve


def main(argv: list[str]) -> int:
    """Verify ``argv[0]``; nothing is downloaded that is not asked for by its reference."""
    if len(argv) != 1:
        print("usage: python -m sidecars.verify REFERENCE", file=sys.stderr)
        return EXIT_USAGE
    try:
        artifact = resolve(argv[0])
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        return error.exit_code
    print(f"{argv[0]}: {artifact.size / 1e6:.0f} MB, sha256 {artifact.sha256[:16]}…")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
