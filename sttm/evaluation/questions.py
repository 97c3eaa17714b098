"""Questions with known answers, grouped by the video they are about, and what is wrong with rows that are none."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

Scoring = Literal["exact", "letter", "likelihood"]
MAX_OPTIONS = 26
_MAX_PROMPT_CHARS, _MAX_OPTION_CHARS = 20_000, 2_000


@dataclass(frozen=True)
class Question:
    """One question as the model is asked it.

    Attributes:
        prompt: everything said after the video, options and instructions included.
        answer: the right answer; one of `options` where there are any.
        options: what one can choose from; empty for a free answer. Public benchmarks have repeated and empty ones.
        right: index of the right option; needed wherever an option is chosen.
        task: what kind of question it is; accuracy is also given per task.
        group: questions of one group count once, and only if all are answered rightly; None stands alone.
        scoring: `exact` compares the reply's text, `letter` reads the chosen option's letter from the reply,
            `likelihood` asks no reply but which option the model finds likeliest.
        row: number in the file it came from, from 1 on; 0 where there is no file.
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
    """Frames of one video: pixels uint8 [T, H, W, 3] and the second each is shown at, float64 [T]."""

    pixels: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class VideoQuestions:
    """One video and all questions about it.

    Attributes:
        name: what messages call it.
        questions: at least one.
        read: gives the frames; raises `SttmError` where the video cannot be used.
    """

    name: str
    questions: tuple[Question, ...]
    read: Callable[[], Clip]


@dataclass(frozen=True)
class RowError:
    """A question that could not be asked: which one, and why. It counts for no reducer.

    Attributes:
        row: number in its file, from 1 on; 0 where there is no file.
        video: its video, as far as known.
        cause: one sentence.
    """

    row: int
    video: str
    cause: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.cause}" + (f" (video {self.video})" if self.video else "")


@dataclass(frozen=True)
class Benchmark:
    """All that is asked: videos with their questions, and the rows that hold none."""

    name: str
    videos: list[VideoQuestions]
    errors: list[RowError]

    def head(self, videos: int | None) -> "Benchmark":
        """The same with the first so many videos; None keeps all."""
        return Benchmark(self.name, self.videos[:videos], self.errors)


def group_by_video(asked: Iterable[tuple[str, Question]], reader: Callable[[str], Clip]) -> list[VideoQuestions]:
    """(URI, question) pairs as one entry a video, in order of first mention."""
    by_uri: dict[str, list[Question]] = {}
    for uri, question in asked:
        by_uri.setdefault(uri, []).append(question)

    def bound(uri: str) -> Callable[[], Clip]:
        return lambda: reader(uri)

    return [VideoQuestions(uri, tuple(questions), bound(uri)) for uri, questions in by_uri.items()]
