"""Questions with known answers, grouped by video, and the errors of rows that hold no usable question."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

Scoring = Literal["exact", "letter", "likelihood"]
MAX_OPTIONS = 26
_MAX_PROMPT_CHARS, _MAX_OPTION_CHARS = 20_000, 2_000


@dataclass(frozen=True)
class Question:
    """One question in the form in which the model is asked.

    Attributes:
        prompt: everything the model is told after the video, options and instructions included.
        answer: the right answer; where there are options, one of them.
        options: the answers to choose from; empty for a free answer. In public benchmarks some are repeated or empty.
        right: index of the right option; required unless `scoring` is `exact`.
        task: the kind of question; accuracy is also given for each task.
        group: questions of one group count once, and only if all are answered rightly; None stands alone.
        scoring: `exact` compares the text of the reply with the answer, `letter` reads the letter of an option from the
            reply, `likelihood` generates no reply and takes the option that the model finds likeliest.
        row: number of its row in the file, from 1 on; 0 where there is no file.
    """

    prompt: str
    answer: str
    options: tuple[str, ...] = ()
    right: int | None = None
    task: str = "all"
    group: str | None = None
    scoring: Scoring = "exact"
    row: int = 0

    def __post_init__(self) -> None:
        if not self.prompt.strip() or not self.answer.strip():
            raise ValueError("the question or its answer is empty")
        if len(self.prompt) > _MAX_PROMPT_CHARS:
            raise ValueError(f"the question has {len(self.prompt)} characters, over {_MAX_PROMPT_CHARS}")
        if len(self.options) > MAX_OPTIONS or any(len(o) > _MAX_OPTION_CHARS for o in self.options):
            raise ValueError(f"more than {MAX_OPTIONS} options, or one of over {_MAX_OPTION_CHARS} characters")
        if self.options and self.answer not in self.options:
            raise ValueError(f"answer {self.answer[:80]!r} is none of the options {self.options}")
        if self.scoring != "exact" and (len(self.options) < 2 or self.right is None):
            raise ValueError(f"scoring {self.scoring!r} needs at least two options, one of them right")
        if self.right is not None and self.options[self.right : self.right + 1] != (self.answer,):
            raise ValueError(f"option {self.right} of {self.options} is not the answer {self.answer[:80]!r}")


class Clip(NamedTuple):
    """Frames of one video: pixels uint8 [T, H, W, 3], and the time in seconds at which each is shown, float64 [T]."""

    pixels: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class VideoQuestions:
    """One video and all questions about it.

    Attributes:
        name: what messages call the video.
        questions: at least one question.
        read: reads the frames; raises `SttmError` where the video cannot be used.
    """

    name: str
    questions: tuple[Question, ...]
    read: Callable[[], Clip]


@dataclass(frozen=True)
class RowError:
    """A question that could not be asked. It counts for no reducer.

    Attributes:
        row: number of its row in the file, from 1 on; 0 where there is no file.
        video: its video; empty where the row does not say it.
        cause: why it could not be asked, in one sentence.
    """

    row: int
    video: str
    cause: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.cause}" + (f" (video {self.video})" if self.video else "")


@dataclass(frozen=True)
class Benchmark:
    """All that is asked.

    Attributes:
        name: name of the benchmark.
        videos: the videos with their questions.
        errors: the rows of the file that hold no usable question.
        notes: lines for the user about the file as a whole.
    """

    name: str
    videos: list[VideoQuestions]
    errors: list[RowError]
    notes: tuple[str, ...] = ()

    def head(self, videos: int | None) -> "Benchmark":
        """The benchmark with only the first so many videos; None keeps all."""
        return replace(self, videos=self.videos[:videos])


def group_by_video(asked: Iterable[tuple[str, Question]], reader: Callable[[str], Clip]) -> list[VideoQuestions]:
    """Group (URI, question) pairs by video, in the order in which the videos are first named.

    Args:
        asked: the pairs.
        reader: reads the frames of a video by its URI.
    """
    by_uri: dict[str, list[Question]] = {}
    for uri, question in asked:
        by_uri.setdefault(uri, []).append(question)

    def bound(uri: str) -> Callable[[], Clip]:
        return lambda: reader(uri)

    return [VideoQuestions(uri, tuple(questions), bound(uri)) for uri, questions in by_uri.items()]
