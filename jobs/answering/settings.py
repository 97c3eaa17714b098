"""How the answer job works through a table of questions: the `answer` section of the settings."""

from pydantic import Field

from sttm.settings import Settings


class AnswerConfig(Settings):
    """How questions are handed out. Nothing here changes an answer.

    Attributes:
        workers: actors that answer. None starts as many as the GPUs hold, or one on the CPU.
        batch_rows: questions about one video that are answered together.
        timeout_s: seconds after which a process that answers one chunk of questions is killed, which counts as a crash.
    """

    workers: int | None = Field(default=None, ge=1)
    batch_rows: int = Field(default=64, ge=1)
    timeout_s: float = Field(default=900.0, gt=0)
