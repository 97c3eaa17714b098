"""A question with the artifact that it is asked about, and the rows of the answer table that it can become."""

from dataclasses import dataclass, replace

from jobs.answering.answer_table import AnswerRow
from jobs.answering.questions import Question
from sttm.errors import QuestionError

_LONGEST_MESSAGE = 1000  # characters


@dataclass(frozen=True)
class QuestionTask:
    """A question to answer.

    Attributes:
        key: digest of the question, of the sampling settings and of the artifact; names the row of its answer.
        question: the row of the question table.
        video_id: the video that the question names; empty if there is none.
        identity: the artifact that is asked; empty if there is none.
    """

    key: str
    question: Question
    video_id: str
    identity: str

    def row(self, run_id: str) -> AnswerRow:
        """A row with everything that is known before the answer."""
        return AnswerRow(
            key=self.key,
            id=self.question.id,
            video=self.question.video,
            question=self.question.text,
            options=self.question.options,
            video_id=self.video_id,
            identity=self.identity,
            run_id=run_id,
        )

    def error_row(self, code: str, message: str, run_id: str) -> AnswerRow:
        """The row of a question that gets no answer, for the reason given."""
        return replace(self.row(run_id), status="error", error_code=code, error_message=message[:_LONGEST_MESSAGE])

    def exception_row(self, error: Exception, run_id: str) -> AnswerRow:
        """The row of a question that raised an exception while it was answered."""
        code = "bad_question" if isinstance(error, QuestionError) else "failed"
        return self.error_row(code, f"{type(error).__name__}: {error}", run_id)
