"""``python -m sidecars.verify REFERENCE``: is this model the one that it should be?

Prints reference, size and sha256 on one line; of a folder, how many files its manifest vouches for.
Exit 78 with one line on stderr when it is not.
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from brain.errors import EXIT_USAGE, LimbicError
from sidecars.artifacts import resolve
from sidecars.weights import shipped


def main(argv: list[str]) -> int:
    """Verify ``argv[0]``; nothing is downloaded that is not asked for by its reference."""
    if len(argv) != 1:
        print("usage: python -m sidecars.verify REFERENCE", file=sys.stderr)
        return EXIT_USAGE
    try:
        folder = shipped(Path(argv[0].removeprefix("file:")))
        print(f"{argv[0]}: {_folder(folder) if folder.is_dir() else _file(argv[0])}")
    except LimbicError as error:
        print(f"limbic: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _file(reference: str) -> str:
    artifact = resolve(reference)
    return f"{artifact.size / 1e6:.0f} MB, sha256 {artifact.sha256[:16]}…"


def _folder(folder: Path) -> str:
    """Every file against the manifest; raises LimbicError where one differs."""
    # Imported here: they bring in NumPy and the ONNX runtime, which a file's check does without.
    from sidecars.lvm_network import KIND, check_folder
    from sidecars.onnx_text import MANIFEST_FILE, read_manifest

    try:
        kind = orjson.loads((folder / MANIFEST_FILE).read_bytes()).get("kind")
    except (OSError, orjson.JSONDecodeError, AttributeError):
        kind = None  # the check below says what is wrong
    manifest = check_folder(folder) if kind == KIND else read_manifest(folder)
    return f"{len(manifest['files'])} files as its manifest says"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
