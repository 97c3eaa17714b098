"""Errors that are not bugs. Each message names the bad value, the file or URL, and the cure.

The commands in `jobs` print an `SttmError` as one line and exit with a non-zero code. Any other exception is a bug and
shows its traceback.
"""


class SttmError(Exception):
    """Base class of all errors that are meant for the user."""


class ConfigError(SttmError):
    """A setting is unknown, out of range, or contradicts another setting."""


class CorpusError(SttmError):
    """The videos of a corpus cannot be listed, for example because its folder is missing or its manifest is invalid."""


class ModelError(SttmError):
    """A checkpoint cannot be loaded, or its kind is not supported."""


class QuestionError(SttmError):
    """A question cannot be put to the model."""


class StoreError(SttmError):
    """The store cannot be read or written, or does not contain what was asked for."""


class ArtifactError(StoreError):
    """A stored file is malformed, damaged, or has another format version. It is never used for an answer."""


class VideoError(SttmError):
    """One video cannot be used, and trying again would not help. It becomes an error row; other videos go on.

    Attributes:
        code: short stable word for the cause, such as `no_video_stream`. It becomes `error_code` of the row.
        message: one sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # pickling between Ray processes needs both arguments
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
