"""Options of benchmarks that make no sense are refused before a model is loaded."""

from __future__ import annotations

import pytest

from benchmarks import repetition
from brain.errors import EXIT_USAGE


@pytest.mark.parametrize("option", ["--conversations", "--threads"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_no_conversations_and_no_threads_are_one_line(
    option: str,
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["repetition", option, value])
    monkeypatch.setattr(repetition, "LlamaModel", None)
    with pytest.raises(SystemExit) as left:
        repetition.main()
    said = capsys.readouterr().err
    assert left.value.code == EXIT_USAGE
    assert f"{option} {value}: at least 1" in said and said.count("\n") == 1
