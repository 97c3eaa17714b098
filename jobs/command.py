"""How a function becomes a command: arguments from its signature (typer), user errors as one line, exit codes."""

import functools
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from sttm.errors import SttmError

EXIT_ERROR = 1
EXIT_TOO_MANY_FAILED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

# Options that several commands share, so that each has one name and one meaning everywhere.
StoreOption = Annotated[str, typer.Option("--store", help="URL of the store: a folder or s3://bucket/path")]
ConfigOption = Annotated[
    str, typer.Option("--config", help="settings: a name such as tiny or qwen2_5_vl_7b, or a YAML file")
]
OptionalConfigOption = Annotated[
    str | None,
    typer.Option("--config", help="settings: a name such as tiny, or a YAML file; default: none"),
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override one setting, such as merge.budget=0.5; may be repeated")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; default $RAY_ADDRESS, else a Ray inside this process")
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="recipe of the caches to use, as `sttm store ls` shows it; default the newest"),
]


def run(*, is_group: bool = False, **functions: Callable[..., int | None]) -> NoReturn:
    """Run one function, or one of several as a subcommand, with the arguments of the command line, and exit.

    What it returns is the exit code (None is 0).

    Args:
        is_group: a single function is a subcommand too.
        functions: by the name they have on the command line; a single one needs no subcommand.
    """
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=len(functions) > 1,
        rich_markup_mode=None,  # it would take [brackets] in a help text for markup
    )
    for name, function in functions.items():
        app.command(name)(_guarded(function))
    if is_group:
        app.callback()(lambda: None)
    app(prog_name=sys.argv[0] if sys.argv[0].startswith("sttm ") else None)
    sys.exit(0)


def _guarded(function: Callable[..., int | None]) -> Callable[..., NoReturn]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = function(*args, **kwargs)
        except SttmError as error:
            print(f"error: {error}", file=sys.stderr)
            code = EXIT_ERROR
        raise typer.Exit(code or 0)

    return guarded
