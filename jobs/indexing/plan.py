"""What a run of the index job has to do, and what `--dry-run` says of it."""

import json
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.indexing.forecast import Forecast, Rate, forecast, measured_rate
from jobs.indexing.run_record import key_of
from sttm.corpus import VideoRef
from sttm.store.key import Recipe
from sttm.store.store import Store
from sttm.urls import redact_url

_SHOWN = 50


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        todo: videos to index.
        stored: how many are in the store already.
        known_bad: how many failed before and are left alone.
    """

    todo: list[VideoRef]
    stored: int
    known_bad: int


def make_plan(refs: list[VideoRef], recipe: Recipe, store: Store | None, retry_errors: bool) -> Plan:
    """Compare a corpus with a store; reads no video and writes nothing."""
    if store is None:
        return Plan(refs, 0, 0)
    rows = (row for row in store.catalog.rows() if row.error_code != "lost")  # an outage says nothing of the video
    status = {row.source_key: row.status for row in rows}
    found = [(ref, status.get(key_of(ref, recipe))) for ref in refs]
    todo = [ref for ref, state in found if state is None or (state == "error" and retry_errors)]
    stored = sum(state == "ok" for _, state in found)
    return Plan(todo, stored, len(refs) - len(todo) - stored)


def print_plan(plan: Plan, store: Store | None, recipe: Recipe, gpus_per_model: int) -> None:
    """The videos a run would index and what that will cost; the last line is the same as JSON."""
    table = Table("video", "MB", "uri")
    for ref in plan.todo[:_SHOWN]:
        table.add_row(ref.video_id, f"{(ref.size_bytes or 0) / 1e6:.1f}", Text(redact_url(ref.uri)))
    if len(plan.todo) > _SHOWN:
        table.add_row(f"... {len(plan.todo) - _SHOWN} more", "", "")
    Console().print(table)
    megabytes = sum(ref.size_bytes or 0 for ref in plan.todo) / 1e6
    said = {"to_index": len(plan.todo), "video_megabytes": round(megabytes, 1)}
    rate = measured_rate(store, recipe) if store else None
    if store and rate:
        expected = forecast(plan.todo, store, recipe, rate, gpus_per_model)
        _print_forecast(expected, rate)
        costs = {name: round(value, 6) for name, value in asdict(expected).items()}
        basis = {"videos": rate.videos, "device": rate.device, "differs": rate.differs}
        print(json.dumps({**said, "forecast": costs, "measured_on": basis}))
    else:
        print(
            "no forecast: the store holds no video of this model and budget to measure by; "
            "index a few with --limit 3, then plan again with --dry-run"
        )
        print(json.dumps({**said, "forecast": None, "measured_on": None}))


def _print_forecast(expected: Forecast, rate: Rate) -> None:
    known = expected.video_hours_known / expected.video_hours if expected.video_hours else 0.0
    table = Table("expected", "")
    table.add_row("hours of video", f"{expected.video_hours:.3g} (length known of {known:.0%}, else from the size)")
    table.add_row("visual tokens", f"{expected.tokens_before:,} before the merge, {expected.tokens_after:,} after")
    table.add_row("GB to be written", f"{expected.gigabytes:.3g}")
    table.add_row("GPU hours", Text(f"{expected.gpu_hours:.3g} (measured on {rate.device})"))
    Console().print(table)
    of = "this recipe" if not rate.differs else f"a recipe of the same model and budget ({'; '.join(rate.differs)})"
    print(f"measured on {rate.videos} videos of {of}")
