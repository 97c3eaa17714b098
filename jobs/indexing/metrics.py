"""What Prometheus sees of a running index job.

Only the driver emits metrics, because a series of an actor that died would stay at its last value. Ray serves them on
every node's metrics port, a few seconds late, under the names `Metric.series`. The Grafana dashboard and the alerts in
`infra/monitoring/` use exactly these metrics. The lasting record of a run is `runs/<run_id>.json` in the store.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from ray.util import metrics as ray_metrics

from sttm.indexer import DECODE_CPU
from sttm.store.catalog.row import CatalogRow

_STAGE_BOUNDARIES_S = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0]


@dataclass(frozen=True)
class Metric:
    """One family of series.

    Attributes:
        kind: type of the metric in Prometheus.
        name: the name that Ray is given; Prometheus has it as `series`.
        description: help text of the metric.
        labels: keys of its labels.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    labels: tuple[str, ...] = ()

    @property
    def series(self) -> str:
        """The metric's name in Prometheus; the series of a histogram add `_bucket`, `_sum` and `_count` to it."""
        return f"ray_{self.name}" + ("_total" if self.kind == "counter" else "")

    def register(self) -> Any:
        """Create the Ray object that takes the metric's values; Ray must be running."""
        if self.kind == "histogram":
            return ray_metrics.Histogram(self.name, self.description, _STAGE_BOUNDARIES_S, self.labels)
        kind = ray_metrics.Counter if self.kind == "counter" else ray_metrics.Gauge
        return kind(self.name, self.description, self.labels)


METRICS = (
    Metric("counter", "sttm_videos", "Videos that ended; outcome is stored, failed or skipped.", ("outcome",)),
    Metric("counter", "sttm_failures", "Videos that cannot be indexed, by cause.", ("code",)),
    Metric("counter", "sttm_frames", "Frames decoded and sampled."),
    Metric("counter", "sttm_visual_tokens", "Visual tokens entering and leaving the merge.", ("side",)),
    Metric("counter", "sttm_bytes_written", "Bytes of artifacts put into the store."),
    Metric("histogram", "sttm_stage_seconds", "Seconds one video spent in one stage.", ("stage",)),
    Metric("gauge", "sttm_videos_waiting", "Videos not done; place is queue, decoding, decoded or gpu.", ("place",)),
    Metric(
        "gauge",
        "sttm_gpu_idle_share",
        "Share of a prefill actor's time without work for its GPU, since ready.",
        ("actor",),
    ),
)


class IdleClock:
    """Adds up how long the actors of one place of the pool were ready, and how long of that time their GPU did nothing.

    Attributes:
        ready_s: seconds for which an actor was ready.
        busy_s: seconds for which the GPU worked; an actor reports them with each finished video.
    """

    def __init__(self) -> None:
        self.ready_s = self.busy_s = 0.0
        self._is_ready = False
        self._since = 0.0

    @property
    def idle_s(self) -> float:
        """Seconds without work for the GPU; a video under way counts as idle time until it is finished."""
        return max(0.0, self.ready_s - self.busy_s)

    def observe(self, is_ready: bool, now: float | None = None) -> None:
        """Close the current interval and start one in which the actor is, or is not, ready.

        Args:
            is_ready: whether the actor is ready from now on.
            now: the present time in seconds; None takes `time.monotonic`.
        """
        now = time.monotonic() if now is None else now
        self.ready_s += now - self._since if self._is_ready else 0.0
        self._is_ready, self._since = is_ready, now

    def worked(self, seconds: float) -> None:
        """Add the seconds that the GPU worked on a video that is finished now."""
        self.busy_s += seconds


@dataclass(frozen=True)
class Pipeline:
    """Where the videos of a run are at one moment.

    Attributes:
        places: number of videos by where they are: `queue`, `decoding`, `decoded`, `gpu` (an actor holds them).
        ready_s: seconds for which an actor was ready, for each place of the pool.
        idle_s: seconds of `ready_s` without work for the GPU, for each place of the pool.
    """

    places: dict[str, int]
    ready_s: tuple[float, ...]
    idle_s: tuple[float, ...]

    @property
    def gpu_idle_share(self) -> float | None:
        """Share of the ready time of all actors without work for their GPUs; None before any actor was ready."""
        return sum(self.idle_s) / sum(self.ready_s) if sum(self.ready_s) else None


class RunMetrics:
    """Feeds the metrics of one run; it can be made once Ray has started."""

    def __init__(self) -> None:
        self._metrics = {metric.name: metric.register() for metric in METRICS}
        self._counted: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()

    def stored(self, row: CatalogRow) -> None:
        """Count an artifact that this run has committed."""
        self._count("sttm_videos", 1, outcome="stored")
        self._count("sttm_visual_tokens", row.tokens_before, side="before")
        self._count("sttm_visual_tokens", row.tokens_after, side="after")
        self._count("sttm_bytes_written", row.kv_bytes + row.tokens_bytes)
        for stage in row.timings_s.keys() - {DECODE_CPU}:
            seconds = row.timings_s[stage]
            self._metrics["sttm_stage_seconds"].observe(float(seconds), tags={"stage": stage})

    def failed(self, code: str) -> None:
        """Count a video that cannot be indexed."""
        self._count("sttm_videos", 1, outcome="failed")
        self._count("sttm_failures", 1, code=code)

    def skipped(self) -> None:
        """Count a video that turned out to be stored already, by another run or under another name."""
        self._count("sttm_videos", 1, outcome="skipped")

    def decoded(self, frames: int) -> None:
        """Count the frames of a video that was decoded."""
        self._count("sttm_frames", frames)

    def observe(self, pipeline: Pipeline) -> None:
        """Set the gauges to the present state of the run, and pass on what was counted since the last time."""
        for (name, labels), value in self._counted.items():
            if value > 0:  # Ray refuses to count nothing
                self._metrics[name].inc(value, tags=dict(labels))
        self._counted.clear()
        for place, videos in pipeline.places.items():
            self._metrics["sttm_videos_waiting"].set(videos, tags={"place": place})
        for number, (ready_s, idle_s) in enumerate(zip(pipeline.ready_s, pipeline.idle_s, strict=True)):
            if ready_s:
                self._metrics["sttm_gpu_idle_share"].set(idle_s / ready_s, tags={"actor": str(number)})

    def _count(self, name: str, value: int, **labels: str) -> None:
        self._counted[name, tuple(labels.items())] += value
