"""The settings that the answer job reads: its own section, and the names of the sections that it shares."""

from typing import Protocol

from pydantic import Field

from jobs.cluster.settings import RunConfig
from sttm.engine.sampling import SamplingConfig
from sttm.models.checkpoint import ModelConfig
from sttm.query.cache_tier import CacheConfig
from sttm.settings import Settings


class AnswerConfig(Settings):
    """How questions are handed out: the `answer` section. Nothing here changes an answer.

    Attributes:
        workers: actors that answer. None starts as many as the GPUs hold, or one on the CPU.
        batch_rows: questions about one video that are answered together.
        timeout_s: seconds after which a process that answers one chunk of questions is killed, which counts as a crash.
    """

    workers: int | None = Field(default=None, ge=1)
    batch_rows: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=900.0, gt=0)


class AnswerSections(Protocol):
    """The sections of `jobs.config.JobConfig` that the answer job reads."""

    @property
    def model(self) -> ModelConfig:
        """The checkpoint; a `path` of None means the model that made the caches."""

    @property
    def sampling(self) -> SamplingConfig:
        """How answers are generated."""

    @property
    def cache(self) -> CacheConfig:
        """Memory and disk for the videos of each actor."""

    @property
    def answer(self) -> AnswerConfig:
        """How questions are handed out."""

    @property
    def run(self) -> RunConfig:
        """How the job runs on Ray."""
