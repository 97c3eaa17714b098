"""Metrics of the service in Prometheus' format: requests, answers, times, and the sizes and hits of the caches."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from jobs.serving.answerer import Answerer
from sttm.query.request import Ended

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class ServiceMetrics:
    """Metrics of one service, in a registry of its own."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "sttm_requests", "HTTP responses by route and status.", ["route", "status"], registry=self._registry
        )
        self.answers = Counter("sttm_answers", "Questions by how they ended.", ["outcome"], registry=self._registry)
        self._tokens = Counter("sttm_completion_tokens", "Tokens generated.", registry=self._registry)
        self._load = self._times("sttm_load_seconds", "Seconds from the request until the video is loaded.")
        self._ttft = self._times("sttm_ttft_seconds", "Seconds from the request until the first token is known.")
        self._total = self._times("sttm_answer_seconds", "Seconds from the request to the end of the answer.")
        self._registry.register(self)

    def _times(self, name: str, what: str) -> Histogram:
        return Histogram(name, what, registry=self._registry, buckets=_SECONDS)

    def ended(self, ended: Ended) -> None:
        """Count an answer that is complete."""
        self.answers.labels(ended.reason).inc()
        self._tokens.inc(ended.completion_tokens)
        self._load.observe(ended.load_s)
        self._ttft.observe(ended.ttft_s)
        self._total.observe(ended.total_s)

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterable[Metric]:
        """The values that the answerer counts itself. The registry calls this for each scrape."""
        questions = GaugeMetricFamily("sttm_questions", "Questions at this moment.", labels=["state"])
        questions.add_metric(["running"], self._answerer.running)
        questions.add_metric(["waiting"], self._answerer.waiting)
        caches = dict(self._answerer.caches)
        labels = ["tier"] if set(caches) == {""} else ["tier", "replica"]
        kept = "Bytes of videos kept for later questions; videos that are being asked about are not counted."
        held = GaugeMetricFamily("sttm_cache_bytes", kept, labels=labels)
        gets = CounterMetricFamily("sttm_cache_gets", "How often a video was found in each place.", labels=labels)
        for replica, state in caches.items():
            for family, values in ((held, state.size_bytes), (gets, state.gets)):
                for tier, value in values.items():
                    family.add_metric([tier, replica][: len(labels)], value)
        return [questions, held, gets]
