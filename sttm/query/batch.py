"""Questions being answered about one video, and what one turn of theirs is: a token a row, or a piece of a choice."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence

from sttm.engine.likelihood import Pieces
from sttm.engine.ready_video import ReadyVideo
from sttm.query.ticket import Piece, Ticket
from sttm.query.worker import Answers, Choice


class Batch(ABC):
    """Questions about one video that are answered together, a turn at a time."""

    def __init__(self, video: ReadyVideo, tickets: Sequence[Ticket]) -> None:
        self.identity, self.video = tickets[0].identity, video
        self._tickets: dict[int, Ticket] = dict(enumerate(tickets))  # rows that have not ended

    @property
    def running(self) -> int:
        """Questions that have not ended."""
        return len(self._tickets)

    @property
    def _kv_tokens(self) -> int:
        return self.video.keys[-1].shape[1]

    @property
    @abstractmethod
    def rows(self) -> int:
        """What they take of the memory."""

    @abstractmethod
    def step(self) -> bool:
        """One turn, short whatever was asked; False once all have ended. What it raises has ended none of them."""

    def fail(self, error: BaseException) -> None:
        """No question of the batch can be answered any more."""
        while self._tickets:
            self._tickets.popitem()[1].fail(error)


class Speaking(Batch):
    """Answers that are generated, one token of each a turn."""

    def __init__(self, video: ReadyVideo, tickets: Sequence[Ticket], answers: Answers) -> None:
        super().__init__(video, tickets)
        self._answers = answers

    @property
    def rows(self) -> int:
        return self.running

    def step(self) -> bool:
        for row, ticket in list(self._tickets.items()):
            if ticket.is_cancelled:
                self._answers.cut(row)
                self._end(row)
        if not self._tickets:
            return False
        pieces = self._answers.step()
        now = time.perf_counter()
        for row, ticket in list(self._tickets.items()):
            ticket.first = ticket.first or now
            if pieces[row]:
                ticket.tell(Piece(pieces[row]))
            if self._answers.ended(row):
                self._end(row)
        return bool(self._tickets)

    def _end(self, row: int) -> None:
        answers = self._answers
        reason = answers.ended(row) or "cut"
        prompt, completion = answers.prompt_tokens[row], answers.completion_tokens[row]
        self._tickets.pop(row).end(reason, self._kv_tokens, prompt, completion)


class Choosing(Batch):
    """One question whose options are scored, at most `max_rows` at one time."""

    def __init__(self, video: ReadyVideo, ticket: Ticket, pieces: Pieces[list[Choice]], max_rows: int) -> None:
        super().__init__(video, [ticket])
        self._ticket, self._pieces, self._max_rows = ticket, pieces, max_rows

    @property
    def rows(self) -> int:
        return self._ticket.rows(self._max_rows)

    def step(self) -> bool:
        ticket = self._ticket
        if ticket.is_cancelled:
            self._tickets.clear()
            ticket.end("cut", self._kv_tokens, 0)
            return False
        try:
            next(self._pieces)
        except StopIteration as end:
            (choice,) = end.value
        else:
            return True
        self._tickets.clear()
        ticket.first = time.perf_counter()
        ticket.tell(Piece(ticket.options[choice.index]))
        ticket.end("stop", self._kv_tokens, choice.prompt_tokens, choice=choice)
        return False
