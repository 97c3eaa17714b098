"""Accuracy against the share of tokens kept, one line a reducer. Needs matplotlib: pip install 'sttm[eval]'."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from sttm.evaluation.reducers import FULL
from sttm.evaluation.summary import Row


def plot(rows: Sequence[Row], path: Path, title: str) -> None:
    """Write the plot. Every line ends at the point of all tokens.

    Args:
        rows: the rows of the evaluation, that of all tokens included.
        path: the file; its ending decides the format.
        title: the title of the plot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure

    full = next(row for row in rows if row.reducer == FULL)
    lines: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row is not full:
            lines[row.reducer].append(row)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.axhspan(*full.ci, color="0.92", zorder=0, label="all tokens, 95 % interval")
    for name, members in lines.items():
        points = sorted([*members, full] if len(members) > 1 else members, key=lambda row: row.retained_ratio)
        errors = [[row.accuracy - row.ci[0] for row in points], [row.ci[1] - row.accuracy for row in points]]
        axes.errorbar(
            [row.retained_ratio for row in points],
            [row.accuracy for row in points],
            yerr=errors,
            marker="o",
            markersize=4,
            capsize=2,
            linewidth=1.2,
            label=name,
        )
    axes.set(xlabel="visual tokens kept", ylabel="accuracy", title=title, xlim=(0, 1.03))
    axes.xaxis.set_major_formatter("{x:.0%}")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.legend(fontsize="small")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
