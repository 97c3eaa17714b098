"""Sums up the outcomes of all videos to one row for each reducer."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

from sttm.evaluation.evaluator import VideoOutcome
from sttm.evaluation.reducers import Reducer
from sttm.evaluation.statistics import mcnemar_exact, relative_interval, wilson

MIN_READ_SHARE = 0.9  # of the replies; the accuracy means little where fewer could be read


@dataclass(frozen=True)
class TaskScore:
    """One task under one reducer.

    Attributes:
        n: number of units (questions, or groups of questions).
        accuracy: share of the units answered rightly.
        relative_accuracy: accuracy divided by the accuracy with all tokens; None where the latter is zero.
    """

    n: int
    accuracy: float
    relative_accuracy: float | None


@dataclass(frozen=True)
class Row:
    """One reducer over the whole benchmark. The unit is a question, or a group where questions come in groups.

    Attributes:
        reducer: the reducer as it was written.
        budget: share of the tokens to keep; None where the reducer has a target of its own or keeps all tokens.
        retained_ratio: share of the visual tokens that were really kept, over all videos.
        accuracy: share of the units answered rightly.
        ci: 95 % Wilson interval of the accuracy.
        relative_accuracy: accuracy divided by the accuracy with all tokens; None where the latter is zero.
        relative_ci: 95 % interval of the relative accuracy, from resampled videos; None where there is none.
        n: number of units.
        replies: number of single replies.
        reply_accuracy: share of the single replies that are right; equal to `accuracy` where nothing is grouped.
        unparsed: replies that could not be read as one option; they count as wrong.
        lost: units that are right only with all tokens.
        gained: units that are right only with this reducer.
        mcnemar_p: two-sided exact p-value of the hypothesis that a loss and a gain are equally likely.
        task_mean_accuracy: mean of the accuracies of the tasks, each task counting the same.
        per_task: scores by task.
        tokens_before, tokens_after: visual tokens that enter and leave the merge, mean over the videos.
        over_budget: videos that kept more than the budget, because nothing similar enough was left to merge.
        prefill_s, ttft_s: seconds, median over the videos; see `Outcome`.
        kv_bytes: bytes of a cache, mean over the videos.
    """

    reducer: str
    budget: float | None
    retained_ratio: float
    accuracy: float
    ci: tuple[float, float]
    relative_accuracy: float | None
    relative_ci: tuple[float, float] | None
    n: int
    replies: int
    reply_accuracy: float
    unparsed: int
    lost: int
    gained: int
    mcnemar_p: float
    task_mean_accuracy: float
    per_task: dict[str, TaskScore]
    tokens_before: float
    tokens_after: float
    over_budget: int
    prefill_s: float
    ttft_s: float
    kv_bytes: int

    @property
    def name(self) -> str:
        """Reducer and, where there is one, budget."""
        return self.reducer if self.budget is None else f"{self.reducer} {self.budget:g}"

    def as_json(self) -> dict[str, Any]:
        """The row as plain values, floats rounded to six digits."""
        return _rounded(asdict(self))


def summarise(reducers: Sequence[Reducer], videos: Sequence[VideoOutcome]) -> list[Row]:
    """One row for each reducer. All are compared with the first one, which keeps all tokens.

    Returns:
        The rows in the order of the reducers; none if no question could be asked.
    """
    videos = [video for video in videos if video.asked]
    units = [[list(_units(video, i)) for video in videos] for i in range(len(reducers))]
    return [_row(reducer, i, videos, units[i], units[0]) for i, reducer in enumerate(reducers)] if videos else []


def unreadable(rows: Sequence[Row]) -> list[str]:
    """One warning for each row of which fewer than `MIN_READ_SHARE` of the replies could be read."""
    return [
        f"{row.name}: {row.replies - row.unparsed} of {row.replies} replies could be read as one option, and the "
        "others count as wrong; look at the answers (--out), allow longer ones (--set sampling.max_tokens=64), or "
        "choose another --scoring"
        for row in rows
        if row.replies - row.unparsed < MIN_READ_SHARE * row.replies
    ]


@dataclass(frozen=True)
class _Unit:
    task: str
    is_right: bool


def _units(video: VideoOutcome, reducer: int) -> Iterator[_Unit]:
    """The units of one video: single questions, and groups, which are right if every member is."""
    members: dict[tuple[str, str | int], list[bool]] = defaultdict(list)
    for i, (question, verdict) in enumerate(zip(video.asked, video.outcomes[reducer].verdicts, strict=True)):
        members[question.task, i if question.group is None else question.group].append(verdict.is_right)
    for (task, _), right in members.items():
        yield _Unit(task, all(right))


def _row(
    reducer: Reducer, index: int, videos: list[VideoOutcome], units: list[list[_Unit]], full: list[list[_Unit]]
) -> Row:
    outcomes = [video.outcomes[index] for video in videos]
    pairs = [pair for mine, theirs in zip(units, full, strict=True) for pair in zip(mine, theirs, strict=True)]
    right, right_full, n = sum(a.is_right for a, _ in pairs), sum(b.is_right for _, b in pairs), len(pairs)
    lost = sum(b.is_right and not a.is_right for a, b in pairs)
    gained = sum(a.is_right and not b.is_right for a, b in pairs)
    per_task = _per_task(pairs)
    by_video, by_video_full = ([sum(unit.is_right for unit in video) for video in side] for side in (units, full))
    before, after = (fmean(getattr(o, f"tokens_{when}") for o in outcomes) for when in ("before", "after"))
    return Row(
        reducer=reducer.name,
        budget=reducer.budget,
        retained_ratio=after / before,
        accuracy=right / n,
        ci=wilson(right, n),
        relative_accuracy=right / right_full if right_full else None,
        relative_ci=relative_interval(by_video, by_video_full) if right_full else None,
        n=n,
        replies=sum(len(o.verdicts) for o in outcomes),
        reply_accuracy=fmean(verdict.is_right for o in outcomes for verdict in o.verdicts),
        unparsed=sum(not verdict.is_parsed for o in outcomes for verdict in o.verdicts),
        lost=lost,
        gained=gained,
        mcnemar_p=mcnemar_exact(lost, gained),
        task_mean_accuracy=fmean(score.accuracy for score in per_task.values()),
        per_task=per_task,
        tokens_before=before,
        tokens_after=after,
        over_budget=sum(o.over_target > 0 for o in outcomes),
        prefill_s=median(o.prefill_s for o in outcomes),
        ttft_s=median(o.ttft_s for o in outcomes),
        kv_bytes=round(fmean(o.kv_bytes for o in outcomes)),
    )


def _per_task(pairs: list[tuple[_Unit, _Unit]]) -> dict[str, TaskScore]:
    by_task: dict[str, list[tuple[_Unit, _Unit]]] = defaultdict(list)
    for pair in pairs:
        by_task[pair[0].task].append(pair)
    scores = {}
    for task, members in by_task.items():
        right, full = sum(a.is_right for a, _ in members), sum(b.is_right for _, b in members)
        scores[task] = TaskScore(len(members), right / len(members), right / full if full else None)
    return scores


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
