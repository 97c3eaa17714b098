"""What `--dry-run` prints about the plan of an index run, and what the run would cost."""

import json
from dataclasses import asdict

from rich.table import Table
from rich.text import Text

from jobs.cluster.size import ClusterSize
from jobs.command import print_table
from jobs.indexing.forecast import Forecast, Rate, forecast, known_durations, measured_rate, would_be_thinned
from jobs.indexing.limit import Limit, limit_of
from sttm.index_plan import Plan
from sttm.store.catalog.frame_counts import enough_frames
from sttm.store.key import Recipe
from sttm.store.store import Store
from sttm.urls import redact_url

_SHOWN = 50


def print_plan(
    plan: Plan, store: Store | None, recipe: Recipe, gpus_per_model: int, cluster: ClusterSize | None = None
) -> None:
    """Print the videos that a run would index and what that will cost; the last line is the same as JSON.

    Args:
        plan: what the run would do.
        store: the store whose earlier runs the forecast is based on; None if there is none yet.
        recipe: what the videos would be indexed with.
        gpus_per_model: GPUs that one copy of the model takes.
        cluster: the cluster that the run would have; None if it is not known.
    """
    table = Table("video", "MB", "uri")
    for ref in plan.todo[:_SHOWN]:
        table.add_row(ref.video_id, f"{(ref.size_bytes or 0) / 1e6:.1f}", Text(redact_url(ref.uri)))
    if len(plan.todo) > _SHOWN:
        table.add_row(f"... {len(plan.todo) - _SHOWN} more", "", "")
    print_table(table)
    megabytes = sum(ref.size_bytes or 0 for ref in plan.todo) / 1e6
    known = [seconds for seconds in known_durations(plan.todo, store) if seconds]
    thinned = [seconds for seconds in known if would_be_thinned(seconds, recipe)]
    _print_thinned(thinned, len(known), len(plan.todo), recipe)
    counts = {"to_index": len(plan.todo), "video_megabytes": round(megabytes, 1)}
    counts |= {"length_known": len(known), "would_be_thinned": len(thinned)}
    rate = measured_rate(store, recipe) if store else None
    if store and rate:
        expected = forecast(plan.todo, store, recipe, rate, gpus_per_model)
        limit = limit_of(expected, cluster, gpus_per_model) if cluster else None
        _print_forecast(expected, rate, limit)
        costs = {name: value and round(value, 6) for name, value in asdict(expected).items()}
        basis = {"videos": rate.videos, "device": rate.device, "differs": rate.differs}
        found = limit and {**asdict(limit), "gpu_idle_share": round(limit.gpu_idle_share, 4)}
        print(json.dumps({**counts, "forecast": costs, "limit": found, "measured_on": basis}))
    else:
        print(
            "no forecast: the store holds no video of this model and budget to measure by; "
            "index a few with --limit 3, then plan again with --dry-run"
        )
        print(json.dumps({**counts, "forecast": None, "limit": None, "measured_on": None}))


def _print_thinned(thinned: list[float], known: int, videos: int, recipe: Recipe) -> None:
    """Say how many videos would be thinned, as far as lengths are known, and what takes all their frames.

    Args:
        thinned: lengths in seconds of the videos that would be thinned.
        known: number of videos whose length is known.
        videos: how many videos would be indexed.
        recipe: what they would be indexed with.
    """
    if videos and not known:
        print("how many videos would be thinned is not known: the store holds the length of none of them")
    if known:
        print(f"{len(thinned)} of the {known} videos whose length is known, of {videos}, would be thinned")
    if thinned:
        fps, most, longest = recipe["video"]["fps"], recipe["video"]["max_frames"], max(thinned)
        print(
            f"the longest, of {longest:,.1f} s, would have one frame in {longest / most:.3g} s, because of "
            f"video.max_frames={most}; "
            f"--set video.max_frames={enough_frames(longest, fps)} takes all the frames that video.fps={fps:g} asks for"
        )


def _print_forecast(expected: Forecast, rate: Rate, limit: Limit | None) -> None:
    known = expected.video_hours_known / expected.video_hours if expected.video_hours else 0.0
    table = Table("expected", "")
    table.add_row("hours of video", f"{expected.video_hours:.3g} (length known of {known:.0%}, else from the size)")
    table.add_row("visual tokens", f"{expected.tokens_before:,} before the merge, {expected.tokens_after:,} after")
    table.add_row("GB to be written", f"{expected.gigabytes:.3g}")
    table.add_row("GPU hours", Text(f"{expected.gpu_hours:.3g} (measured on {rate.device})"))
    unknown = "not known: no video of the store has its CPU seconds of decoding recorded"
    table.add_row("core hours", unknown if expected.core_hours is None else f"{expected.core_hours:.3g} of decoding")
    print_table(table)
    print(expected.cost)
    if limit:
        print(limit)
    of = "this recipe" if not rate.differs else f"a recipe of the same model and budget ({'; '.join(rate.differs)})"
    print(f"measured on {rate.videos} videos of {of}")
