"""What the index job prints at its end: counts, the videos that failed, and the exit code that says it to a program."""

import json
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from jobs.command import EXIT_TOO_MANY_FAILED, print_table
from jobs.indexing.run_record import RunRecord
from sttm.store.catalog.row import CatalogRow

_SHOWN = 100


def print_results(record: RunRecord, was_stopped: bool) -> None:
    """Print the counts, what was thinned, and the videos that failed now and before; the counts as JSON come last.

    Args:
        record: the run's record.
        was_stopped: whether a signal ended the run early, so that it must be said how to go on.
    """
    summary = record.summary()
    if record.plan.todo:
        table = Table(show_header=False)
        for name, value in summary.items():
            table.add_row(name, Text(str(value)))
        print_table(table)
        if cure := record.progress.frames.cure(record.recipe):
            print(cure)
    else:
        print("nothing to do")
    _print_failed("failed video", record.errors)
    _print_failed("failed before", record.plan.failed_before)
    if record.plan.failed_before:
        print("the videos that failed before were left alone; --retry-errors tries them again")
    if was_stopped:
        stored = summary["done"] + summary["skipped"]
        print(f"stopped: {stored} videos are stored, {summary['left']} are left; the same command goes on with them")
    print(json.dumps(summary), flush=True)


def exit_code(record: RunRecord, max_failed_share: float) -> int:
    """3 if too large a share of the videos that were tried now, or of the whole corpus, has failed; else 0.

    Args:
        record: the run's record.
        max_failed_share: the largest share of failed videos that is still a success.
    """
    tried, failed = record.progress.total, record.progress.failed
    shares = [
        failed / max(1, tried),
        (failed + len(record.plan.failed_before)) / max(1, record.plan.videos),
    ]
    return EXIT_TOO_MANY_FAILED if max(shares) > max_failed_share else 0


def _print_failed(title: str, rows: Sequence[CatalogRow]) -> None:
    if not rows:
        return
    table = Table(title, "code")
    table.add_column("message", max_width=100)
    for row in rows[:_SHOWN]:
        table.add_row(*map(Text, (row.name, row.error_code, row.error_message)))
    print_table(table)
    if len(rows) > _SHOWN:
        print(f"... and {len(rows) - _SHOWN} more")
