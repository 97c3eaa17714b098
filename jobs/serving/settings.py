"""The `serve` section of the settings: limits and size of the HTTP service."""

from pydantic import Field

from sttm.settings import Settings


class ServeConfig(Settings):
    """Limits and size of one service.

    Attributes:
        replicas: processes that answer. More than one are started on Ray Serve, each with a model of its own.
        max_rows: questions, or options of one question, that one process answers at a time. Memory grows with it.
        max_waiting: questions that one process accepts before it can begin them; further ones are refused.
        max_tokens: longest answer that a request may ask for, in tokens.
        default_tokens: longest answer to a request that names no length, in tokens; at most `max_tokens`.
        timeout_s: seconds after which an answer is cut off.
        drain_s: seconds that requests under way get to finish after SIGTERM.
        requests_per_minute: requests that one API key, or one address where there are no keys, may send a minute. None
            sets no limit.
        shows_frames: whether the page shows frames of a video, which are decoded from its source on demand.
    """

    replicas: int = Field(default=1, ge=1)
    max_rows: int = Field(default=64, ge=1)
    max_waiting: int = Field(default=256, ge=1)
    max_tokens: int = Field(default=1024, ge=1)
    default_tokens: int = Field(default=128, ge=1)
    timeout_s: float = Field(default=120.0, gt=0)
    drain_s: int = Field(default=60, ge=0)
    requests_per_minute: int | None = Field(default=None, ge=1)
    shows_frames: bool = False
