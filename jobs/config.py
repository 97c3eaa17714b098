"""The settings file of the jobs: what an index holds, and how a run goes. Imports no Ray."""

from pydantic import Field

from sttm.config import IndexConfig
from sttm.settings import Settings


class RunConfig(Settings):
    """How the job runs; nothing here changes what is stored.

    Attributes:
        gpus: how many to use, one not there yet included; default those the cluster has when the job starts. Say it
            where an autoscaler adds GPUs on demand.
        gpus_per_model: GPUs of one prefill actor; ignored where the cluster has none.
        decode_ahead: videos decoded or being decoded ahead of each actor.
        decode_ahead_bytes: bytes of decoded videos waiting at one time, over all actors.
        decode_timeout_s: a decode that takes longer is killed and counts as a crash.
        decode_memory_bytes: a decode that allocates more fails and counts as a crash; no other process suffers.
        prefill_timeout_s: the same for vision tower and prefill.
        crash_tries: how often a video may kill its process before it becomes an error row.
        lost_tries: how often a video is tried again after nodes or objects were lost.
        max_failed_share: the job's exit code says so when a larger share of the videos failed.
    """

    gpus: int | None = Field(default=None, ge=0)
    gpus_per_model: int = 1
    decode_ahead: int = 3
    decode_ahead_bytes: int = 4 << 30
    decode_timeout_s: float = 300.0
    decode_memory_bytes: int = 8 << 30
    prefill_timeout_s: float = 600.0
    crash_tries: int = 3
    lost_tries: int = 8
    max_failed_share: float = 0.5


class JobConfig(IndexConfig):
    """The settings file of `jobs.index`; other jobs read the parts they need."""

    run: RunConfig = RunConfig()

    @property
    def index(self) -> IndexConfig:
        """The part that decides what is stored."""
        return IndexConfig.model_validate(self.model_dump(exclude={"run"}))
