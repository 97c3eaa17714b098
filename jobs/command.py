"""How a function becomes a command: arguments from its signature (typer), user errors as one line, exit codes."""

import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import typer

from sttm.errors import SttmError

EXIT_ERROR = 1
EXIT_TOO_MANY_FAILED = 3
EXIT_TERMINATED = 143


def run(function: Callable[..., int | None], name: str | None = None) -> NoReturn:
    """Run `function` with the arguments of the command line and exit with the code it returns (None is 0)."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = function(*args, **kwargs)
        except SttmError as error:
            print(f"error: {error}", file=sys.stderr)
            code = EXIT_ERROR
        raise typer.Exit(code or 0)

    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(guarded)
    app(prog_name=name)
    sys.exit(0)
