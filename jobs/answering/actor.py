"""What answers on one GPU (or CPU): one model, the videos it has at hand, chunks of questions about one video."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from jobs.answering.answer_table import AnswerRow
from jobs.answering.questions import AskedRow
from jobs.cluster.process_limits import ended_by_a_lost_gpu, killed_after
from jobs.cluster.session import given_devices
from sttm.engine.batching import batches
from sttm.engine.ready_video import ReadyVideo
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ArtifactError, ModelError, QuestionError
from sttm.models.placement import is_gpu_lost
from sttm.query.cache_tier import CacheConfig
from sttm.query.checkpoint import open_checkpoint
from sttm.query.worker import Query, QueryWorker
from sttm.settings import Settings
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store


class AnswerConfig(Settings):
    """How questions are asked; all of it changes answers, and so counts in a row's key.

    Attributes:
        sampling: of every answer.
        stop: texts that end an answer.
    """

    sampling: SamplingConfig = Field(default_factory=SamplingConfig)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Asked:
    """A question to answer: the row of the table, its key, and the artifact it is about."""

    key: str
    row: AskedRow
    video_id: str
    identity: str

    def error(self, code: str, message: str, run_id: str) -> AnswerRow:
        """The row of a question that has no answer."""
        return replace(self.answered(run_id), status="error", error_code=code, error_message=message[:1000])

    def failed(self, error: Exception, run_id: str) -> AnswerRow:
        """The row of a question that raised."""
        code = "bad_question" if isinstance(error, QuestionError) else "failed"
        return self.error(code, f"{type(error).__name__}: {error}", run_id)

    def answered(self, run_id: str) -> AnswerRow:
        """The row with what is known before the answer."""
        row = self.row
        return AnswerRow(
            key=self.key,
            id=row.id,
            video=row.video,
            question=row.question,
            options=row.options,
            video_id=self.video_id,
            identity=self.identity,
            run_id=run_id,
        )


@dataclass(frozen=True)
class _Question:
    """A question that can be asked, as token ids."""

    asked: Asked
    query: Query
    ids: list[int]


_Answer = Callable[[ReadyVideo, list[_Question]], list[AnswerRow]]


class AnswerActor:
    """Two chunks at a time: one video is loaded while questions about the other are answered.

    Args:
        store_url: of the artifacts.
        identity: of an artifact whose model is taken.
        model: checkpoint, if not the one that artifact names.
        config: how questions are asked.
        run_id: of the job.
        batch_rows: questions answered at once.
        timeout_s: a chunk that takes longer kills the process.
        device_bytes: memory for videos.
    """

    def __init__(
        self,
        store_url: str,
        identity: str,
        model: str | None,
        config: AnswerConfig,
        run_id: str,
        batch_rows: int,
        timeout_s: float,
        device_bytes: int,
    ) -> None:
        self._store_url, self._identity, self._model, self._device_bytes = store_url, identity, model, device_bytes
        self._config, self._run_id, self._batch_rows, self._timeout_s = config, run_id, batch_rows, timeout_s
        self._computing = threading.Lock()

    def load(self) -> None:
        """Load the model."""
        store = Store.open(self._store_url)
        checkpoint = open_checkpoint(store.manifest(self._identity), self._model)
        cache = CacheConfig(device_gb=self._device_bytes / 1e9)
        self._worker = QueryWorker(store, checkpoint, given_devices(), cache)

    def answer(self, asked: Sequence[Asked]) -> list[AnswerRow]:
        """Rows for questions about one video, in any order. A bad artifact makes them all error rows."""
        with ended_by_a_lost_gpu():
            return self._answer(asked)

    def _answer(self, asked: Sequence[Asked]) -> list[AnswerRow]:
        started = time.perf_counter()
        try:
            video = self._worker.load(asked[0].identity)
        except (ArtifactError, MissingObjectError, ModelError) as error:
            code = "other_model" if isinstance(error, ModelError) else "bad_artifact"
            return [one.error(code, str(error), self._run_id) for one in asked]
        load_s = time.perf_counter() - started
        with self._computing, killed_after(self._timeout_s):
            rows = list(self._rows(video, asked))
        return [replace(row, load_s=load_s) for row in rows]

    def _rows(self, video: ReadyVideo, asked: Sequence[Asked]) -> Iterator[AnswerRow]:
        """What cannot be asked is found before it is in a batch with others; those with options go apart."""
        questions = []
        for one in asked:
            spoken = self._config.sampling.model_copy(update={"stop": self._config.stop})
            query = Query((one.row.question,), SamplingConfig(max_tokens=1) if one.row.options else spoken)
            try:
                questions.append(_Question(one, query, self._worker.question_ids(video, query)))
            except Exception as error:  # as in `_tried`
                if is_gpu_lost(error):
                    raise
                yield one.failed(error, self._run_id)
        for answer, group in (
            (self._say, [question for question in questions if not question.asked.row.options]),
            (self._choose, [question for question in questions if question.asked.row.options]),
        ):
            for batch in batches([len(question.ids) for question in group], self._batch_rows):
                yield from self._tried(answer, video, [group[row] for row in batch])

    def _tried(self, answer: _Answer, video: ReadyVideo, questions: list[_Question]) -> list[AnswerRow]:
        """Rows of one batch; if it fails, such as for want of memory, of its halves, down to an error row."""
        try:
            return answer(video, questions)
        except Exception as error:  # the boundary where one question's fault becomes its row
            if is_gpu_lost(error):
                raise
            if len(questions) == 1:
                return [questions[0].asked.failed(error, self._run_id)]
        half = len(questions) // 2
        return self._tried(answer, video, questions[:half]) + self._tried(answer, video, questions[half:])

    def _say(self, video: ReadyVideo, questions: list[_Question]) -> list[AnswerRow]:
        started = time.perf_counter()
        answers = self._worker.start(video, [one.query for one in questions], [one.ids for one in questions])
        took = [0.0] * len(questions)
        while answers.is_running:
            answers.step()
            now = time.perf_counter() - started
            took = [t or (now if answers.ended(row) else 0.0) for row, t in enumerate(took)]
        return [
            replace(
                one.asked.answered(self._run_id),
                text=answers.texts[row].strip(),
                reason=answers.ended(row) or "",
                prompt_tokens=answers.prompt_tokens[row],
                completion_tokens=answers.completion_tokens[row],
                kv_tokens=video.keys[-1].shape[1],
                answer_s=took[row],
            )
            for row, one in enumerate(questions)
        ]

    def _choose(self, video: ReadyVideo, questions: list[_Question]) -> list[AnswerRow]:
        started, asked = time.perf_counter(), [one.asked for one in questions]
        turns, options = [[one.row.question] for one in asked], [one.row.options for one in asked]
        choices = self._worker.choose(video, turns, options, self._batch_rows)
        took = time.perf_counter() - started
        return [
            replace(
                one.answered(self._run_id),
                text=one.row.options[choice.index],
                choice=choice.index,
                probabilities=choice.probabilities,
                reason="stop",
                prompt_tokens=choice.prompt_tokens,
                kv_tokens=video.keys[-1].shape[1],
                answer_s=took,
            )
            for one, choice in zip(asked, choices, strict=True)
        ]
