"""The command line itself: what `sttm` says of its commands, help that is not cut, tables whose ids can be copied."""

import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from jobs.__main__ import COMMANDS, main
from jobs.command import print_table

ROOT = Path(__file__).parent.parent
# Modules of jobs/ that are no commands: the package, the `sttm` command, and what all commands share.
SHARED = {"__init__", "__main__", "command"}


def sttm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jobs", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_jobs_holds_the_commands_and_little_else() -> None:
    assert {path.stem for path in ROOT.glob("jobs/*.py")} == {*COMMANDS} | SHARED


def test_every_command_is_listed_with_its_whole_summary_and_the_version_is_told() -> None:
    listed = sttm("--help").stdout
    assert all(f"{name:11} {what}\n" in listed for name, what in COMMANDS.items())
    assert "Examples:" in listed
    assert sttm("--version").stdout.startswith("sttm 0.")


def test_unknown_command_suggests_the_nearest() -> None:
    done = sttm("indx")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no command 'indx'; did you mean 'index'?")


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_of_every_command_has_an_example_and_cuts_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sttm", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"sttm {name}" in shown or f"jobs.{name}" in shown
    assert "..." not in shown.split("Commands:")[-1] or "Commands:" not in shown


def test_table_is_never_cut_so_that_ids_can_be_copied(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("video", "identity")
    video, identity = "clip-" + "a" * 120, "f" * 64
    table.add_row(video, identity)
    print_table(table)
    out = capsys.readouterr().out
    assert f" {video} " in out
    assert f" {identity} " in out
