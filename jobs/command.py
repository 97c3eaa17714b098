"""How a function becomes a command: arguments from its signature (typer), help, user errors as one line, exit codes."""

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table

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
    str | None, typer.Option("--config", help="settings: a name such as tiny, or a YAML file; default: none")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="override one setting, such as merge.budget=0.5; may be repeated")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="Ray cluster; default $RAY_ADDRESS, else a Ray on this machine")
]
RecipeOption = Annotated[
    str | None,
    typer.Option("--recipe", help="recipe of the caches to use, as `sttm store ls` shows it; default the newest"),
]

_HELP_WIDTH = 110
_NARROWEST = 80


def run(help_text: str | None, *, is_group: bool = False, **functions: Callable[..., int | None]) -> NoReturn:
    """Run one function, or one of several as a subcommand, with the arguments of the command line, and exit.

    The exit code is what the function returns; None is 0.

    Args:
        help_text: what `--help` prints above the options: a module's docstring. Indented lines, such as examples, keep
            their shape.
        is_group: whether a single function is a subcommand, too.
        functions: the functions by the names that they have on the command line; a single one needs no subcommand.
    """
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        no_args_is_help=len(functions) > 1,
        rich_markup_mode=None,  # rich would take [brackets] in a help text for markup
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _HELP_WIDTH},
    )
    program = sys.argv[0] if sys.argv[0].startswith("sttm ") else None

    def shown(text: str | None) -> str:
        lines = _with_shape(text or "").split("\n")
        if program:  # a cluster has the code, not always the `sttm` script
            lines = [x if "ray job" in x else x.replace("python -m jobs.", "sttm ") for x in lines]
        return "\n".join(lines)

    alone = len(functions) == 1 and not is_group
    for name, function in functions.items():
        summary = inspect.cleandoc(function.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        text = help_text if alone else function.__doc__
        app.command(name, help=shown(text), short_help=summary)(_guarded(function))
    if not alone:
        app.callback(help=shown(help_text))(lambda: None)
    app(prog_name=program)
    sys.exit(0)


def print_table(table: Table) -> None:
    """Print a table so wide that nothing in it is cut, whatever the width of the terminal, so that ids can be copied.

    A long text belongs into a column with a `max_width`, where it continues on the next lines.
    """
    width = Console(width=10_000).measure(table).maximum
    Console(width=max(width, _NARROWEST)).print(table, soft_wrap=False, crop=False)


def _with_shape(text: str) -> str:
    """The text with a mark before each paragraph that has indented lines, which keeps click from joining its lines."""
    paragraphs = inspect.cleandoc(text).split("\n\n")
    return "\n\n".join(f"\b\n{part}" if "\n  " in f"\n{part}" else part for part in paragraphs)


def _guarded(function: Callable[..., int | None]) -> Callable[..., NoReturn]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> NoReturn:
        try:
            code = function(*args, **kwargs)
        except SttmError as error:
            print(f"error: {error}", file=sys.stderr)
            code = EXIT_ERROR
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            code = EXIT_INTERRUPTED
        raise typer.Exit(code or 0)

    return guarded
