"""The rows of an evaluation as two Markdown tables, aligned so that they read well in a terminal too."""

from collections.abc import Sequence

from sttm.evaluation.reducers import FULL
from sttm.evaluation.summary import Row

_HEAD = (
    *("reducer", "budget", "kept", "accuracy", "95 % CI", "relative", "95 % CI (videos)", "lost/gained", "McNemar p"),
    *("replies read", "prefill ms", "TTFT ms", "KV MB"),
)


def tables(rows: Sequence[Row]) -> str:
    """One table with the overall figures and, where there are several tasks, one with the accuracy in each task."""
    tasks = list(rows[0].per_task)
    by_task = [[row.name, *(_percent(row.per_task[task].accuracy) for task in tasks)] for row in rows]
    counts = ["n", *(str(rows[0].per_task[task].n) for task in tasks)]
    overall = _table([_HEAD, *(_overall(row) for row in rows)])
    return overall if len(tasks) < 2 else f"{overall}\n\n{_table([['reducer', *tasks], counts, *by_task])}"


def _overall(row: Row) -> list[str]:
    is_full = row.reducer == FULL
    return [
        row.reducer,
        "" if row.budget is None else f"{row.budget:g}",
        _percent(row.retained_ratio),
        _percent(row.accuracy),
        _interval(row.ci),
        "-" if row.relative_accuracy is None else f"{row.relative_accuracy:.2%}",
        "-" if is_full or row.relative_ci is None else _interval(row.relative_ci),
        "-" if is_full else f"{row.lost}/{row.gained}",
        "-" if is_full else f"{row.mcnemar_p:.2g}",
        f"{row.replies - row.unparsed} of {row.replies}",
        f"{row.prefill_s * 1e3:.1f}",
        f"{row.ttft_s * 1e3:.1f}",
        f"{row.kv_bytes / 1e6:.2f}",
    ]


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _interval(ends: tuple[float, float]) -> str:
    return f"{ends[0]:.1%}–{ends[1]:.1%}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    # Names are aligned to the left, numbers to the right.
    text = [
        [f"{c:<{w}}" if i == 0 else f"{c:>{w}}" for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        for line in cells
    ]
    text.insert(1, ["-" * w if i == 0 else "-" * (w - 1) + ":" for i, w in enumerate(widths)])
    return "\n".join(f"| {' | '.join(line)} |" for line in text)
