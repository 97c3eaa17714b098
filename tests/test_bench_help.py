"""The help of every benchmark."""

import sys

import pytest

from jobs.bench import command


@pytest.mark.parametrize("program", ["python -m jobs.bench", "sttm bench"])
@pytest.mark.parametrize(
    "name", ["prefill", "answer", "decode", "film", "pipeline", "night", "frames", "store", "schemes"]
)
def test_help_shows_an_example_that_can_be_typed(
    program: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [program, name, "--help"])
    with pytest.raises(SystemExit):
        command()
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert any(line.startswith(f"{program} {name}") for line in lines)
