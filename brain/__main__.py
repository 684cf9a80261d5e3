"""``python -m brain`` is the ``limbic`` command."""

from brain.cli import main

main()
