"""How a job runs on Ray, whatever it does: the `run` section of the settings."""

from typing import Any

from pydantic import Field, model_validator

from sttm.settings import Settings


class RunConfig(Settings):
    """How `index` and `answer` run on Ray. Nothing here changes what is stored or answered.

    Attributes:
        gpus: GPUs to use, counting those that an autoscaler will still add. None takes the GPUs that the cluster has
            when the job starts.
        gpus_per_model: GPUs that one copy of the model is spread over by layers. `ask` and `serve` read it, too. It is
            ignored where there is no GPU.
        in_flight: videos that one prefill actor holds at a time: one on its GPU, the others on their way to the GPU or
            to the store.
        decode_ahead_bytes: bytes of decoded frames that the cluster may hold at a time, those that the decodes under
            way will add included. None takes half of the object stores of all machines. CPU cores and memory of the
            cluster limit how many videos are decoded at a time, too.
        decode_timeout_s: seconds after which the process that decodes a video is killed, which counts as a crash.
        decode_memory_bytes: bytes that decoding one video may allocate; more fails and counts as a crash. A decode
            reserves the memory that the largest of the run's recent decodes took, and this many bytes if the video
            crashed before.
        prefill_timeout_s: seconds after which the process that prefills a video is killed, which counts as a crash.
        crash_tries: crashes of a process after which the video or question that it worked on becomes an error row.
        lost_tries: faults of machines, networks or the store after which the work in hand becomes an error row.
        max_failed_share: share of failed videos or questions above which the exit code is 3. For `index` the share of
            the videos tried counts, and the share of the corpus that failed now or before.
    """

    gpus: int | None = Field(default=None, ge=0)
    gpus_per_model: int = Field(default=1, ge=1)
    in_flight: int = Field(default=3, ge=1)
    decode_ahead_bytes: int | None = Field(default=None, ge=0)
    decode_timeout_s: float = Field(default=300.0, gt=0)
    decode_memory_bytes: int = Field(default=8 << 30, ge=1)
    prefill_timeout_s: float = Field(default=600.0, gt=0)
    crash_tries: int = Field(default=3, ge=1)
    lost_tries: int = Field(default=8, ge=1)
    max_failed_share: float = Field(default=0.5, ge=0)

    @model_validator(mode="before")
    @classmethod
    def _name_the_cure(cls, data: Any) -> Any:
        if isinstance(data, dict) and "decode_ahead" in data:
            raise ValueError(
                "there is no setting 'decode_ahead' any more: as many videos are decoded at a time as there are free "
                "CPU cores; leave it out, and set decode_ahead_bytes if decoded frames should take less memory"
            )
        return data
