"""What can go wrong that is not a bug: every error names the value, the place, and the cure.

`jobs` prints an `SttmError` as one line and exits non-zero; anything else is a bug and shows its traceback.
"""


class SttmError(Exception):
    """Base of all errors meant for the user."""


class ConfigError(SttmError):
    """A setting is unknown, out of range, or contradicts another."""


class CorpusError(SttmError):
    """The list of videos cannot be made: a missing folder, an empty glob, a bad manifest."""


class ModelError(SttmError):
    """A checkpoint cannot be loaded or is of an unsupported kind."""


class QuestionError(SttmError):
    """A question that must not be put to a model."""


class StoreError(SttmError):
    """The store cannot be read or written, or lacks what was asked for."""


class ArtifactError(StoreError):
    """A stored file is malformed, damaged, or of another format version. It is never used for an answer."""


class VideoError(SttmError):
    """One video cannot be used, whatever is tried again: it becomes one error row and costs no other video.

    Attributes:
        code: short stable word for the cause, such as `no_video_stream`; becomes the row's `error_code`.
        message: one sentence for a person.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)  # both in args, so that it survives pickling between Ray processes
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
