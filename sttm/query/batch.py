"""Batches of requests about one video. A scheduler gives each batch one short step after another."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from sttm.engine.likelihood import Steps
from sttm.engine.ready_video import ReadyVideo
from sttm.query.answers import Answers, Choice
from sttm.query.request import Piece, Request


class Batch(ABC):
    """Requests about one video that are answered together.

    Args:
        video: the video that all of them are about.
        requests: at least one.

    Attributes:
        identities: the artifacts that the video consists of.
        video: the video.
    """

    def __init__(self, video: ReadyVideo, requests: Sequence[Request]) -> None:
        self.identities, self.video = requests[0].identities, video
        self._requests: dict[int, Request] = dict(enumerate(requests))  # by row, only those that have not ended

    @property
    def running(self) -> int:
        """Number of requests that have not ended."""
        return len(self._requests)

    @property
    def _kv_tokens(self) -> int:
        return self.video.keys[-1].shape[1]

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of memory that the batch takes on the device."""

    @abstractmethod
    def step(self) -> bool:
        """Do a short part of the work. Returns False once all requests have ended.

        If it raises, no request has received the error: call `fail`.
        """

    def fail(self, error: BaseException) -> None:
        """End all requests that still run with this error."""
        while self._requests:
            self._requests.popitem()[1].fail(error)


class GenerationBatch(Batch):
    """Requests whose answers are generated. One step generates one token for each of them."""

    def __init__(self, video: ReadyVideo, requests: Sequence[Request], answers: Answers) -> None:
        super().__init__(video, requests)
        self._answers = answers

    @property
    def rows(self) -> int:
        return self.running

    def step(self) -> bool:
        for row, request in list(self._requests.items()):
            if request.is_cancelled:
                self._answers.cut(row)
                self._end(row)
        if not self._requests:
            return False
        pieces = self._answers.step()
        now = time.perf_counter()
        for row, request in list(self._requests.items()):
            request.first_token_at = request.first_token_at or now
            if pieces[row]:
                request.emit(Piece(pieces[row]))
            if self._answers.ended(row):
                self._end(row)
        return bool(self._requests)

    def _end(self, row: int) -> None:
        answers = self._answers
        reason = answers.ended(row) or "cut"
        self._requests.pop(row).end(reason, self._kv_tokens, answers.prompt_tokens[row], answers.completion_tokens[row])


class ScoringBatch(Batch):
    """One request whose options are scored.

    Args:
        video: the video that the request is about.
        request: a request with options.
        scoring: the work, whose result is the one choice.
        max_rows: options that the work scores at a time.
    """

    def __init__(self, video: ReadyVideo, request: Request, scoring: Steps[list[Choice]], max_rows: int) -> None:
        super().__init__(video, [request])
        self._request, self._scoring, self._max_rows = request, scoring, max_rows

    @property
    def rows(self) -> int:
        return self._request.rows(self._max_rows)

    def step(self) -> bool:
        request = self._request
        if request.is_cancelled:
            self._requests.clear()
            request.end("cut", self._kv_tokens, 0)
            return False
        try:
            next(self._scoring)
        except StopIteration as end:
            (choice,) = end.value
        else:
            return True
        self._requests.clear()
        request.first_token_at = time.perf_counter()
        request.emit(Piece(request.options[choice.index]))
        request.end("stop", self._kv_tokens, choice.prompt_tokens, choice=choice)
        return False
