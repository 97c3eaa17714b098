"""The process that answers on one GPU (or CPU): it holds one model and a few videos and gets chunks of questions."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from jobs.answering.answer_table import AnswerRow
from jobs.answering.question_task import QuestionTask
from jobs.answering.settings import AnswerSections
from jobs.cluster.process_limits import ended_by_a_lost_gpu, killed_after
from jobs.cluster.session import given_devices
from sttm.engine.batching import batches
from sttm.engine.ready_video import ReadyVideo
from sttm.engine.sampling import SamplingConfig
from sttm.errors import ArtifactError, ModelError
from sttm.models.placement import is_gpu_lost
from sttm.query.checkpoint import open_checkpoint
from sttm.query.question import Query
from sttm.query.worker import QueryWorker
from sttm.store.storage import MissingObjectError
from sttm.store.store import Store


@dataclass(frozen=True)
class _PreparedQuestion:
    """A question that the model accepts, as token ids."""

    task: QuestionTask
    query: Query
    ids: list[int]


_Batch = list[_PreparedQuestion]
_AnswerBatch = Callable[[ReadyVideo, _Batch], list[AnswerRow]]


class AnswerActor:
    """Answers chunks of questions. Of two chunks at a time, one loads its video while the other one is answered.

    Args:
        store_url: URL of the store.
        identity: an artifact with a readable manifest, which names the model to load.
        settings: the settings of the job.
        run_id: the run that the rows are attributed to.
    """

    _worker: QueryWorker  # there is none before `load`

    def __init__(self, store_url: str, identity: str, settings: AnswerSections, run_id: str) -> None:
        self._store_url, self._identity, self._settings, self._run_id = store_url, identity, settings, run_id
        self._computing = threading.Lock()

    def load(self) -> None:
        """Load the language model onto the devices that Ray gave this actor.

        Raises:
            ModelError: the checkpoint cannot be loaded, or is not the one that made the artifact.
        """
        store = Store.open(self._store_url)
        checkpoint = open_checkpoint(store.manifest(self._identity), self._settings.model.path)
        self._worker = QueryWorker(store, checkpoint, given_devices(), self._settings.cache)

    def answer(self, tasks: Sequence[QuestionTask]) -> list[AnswerRow]:
        """One row for each of these questions about one video, in any order.

        Where the artifact is damaged, missing, or of another model, all rows are error rows.
        """
        with ended_by_a_lost_gpu():
            return self._answer(tasks)

    def _answer(self, tasks: Sequence[QuestionTask]) -> list[AnswerRow]:
        started = time.perf_counter()
        try:
            video = self._worker.load(tasks[0].identity)
        except (ArtifactError, MissingObjectError, ModelError) as error:
            code = "other_model" if isinstance(error, ModelError) else "bad_artifact"
            return [task.error_row(code, str(error), self._run_id) for task in tasks]
        load_s = time.perf_counter() - started
        with self._computing, killed_after(self._settings.answer.timeout_s):
            rows = list(self._rows(video, tasks))
        return [replace(row, load_s=load_s) for row in rows]

    def _rows(self, video: ReadyVideo, tasks: Sequence[QuestionTask]) -> Iterator[AnswerRow]:
        """Sort out questions that the model refuses; then answer the others, generated and chosen answers apart."""
        generated: _Batch = []
        chosen: _Batch = []
        for task in tasks:
            options = task.question.options
            query = Query((task.question.text,), SamplingConfig(max_tokens=1) if options else self._settings.sampling)
            try:
                prepared = _PreparedQuestion(task, query, self._worker.question_ids(video, query))
                (chosen if options else generated).append(prepared)
            except Exception as error:  # the boundary where one question's fault becomes its row
                if is_gpu_lost(error):
                    raise
                yield task.exception_row(error, self._run_id)
        for answer, questions in ((self._generate, generated), (self._choose, chosen)):
            for batch in batches([len(question.ids) for question in questions], self._settings.answer.batch_rows):
                yield from self._in_halves(answer, video, [questions[index] for index in batch])

    def _in_halves(self, answer: _AnswerBatch, video: ReadyVideo, questions: _Batch) -> list[AnswerRow]:
        """Answer a batch. If it fails (out of memory, say), answer its halves, down to one error row."""
        try:
            return answer(video, questions)
        except Exception as error:  # the boundary where one question's fault becomes its row
            if is_gpu_lost(error):
                raise
            if len(questions) == 1:
                return [questions[0].task.exception_row(error, self._run_id)]
        middle = len(questions) // 2
        halves = (questions[:middle], questions[middle:])
        return [row for half in halves for row in self._in_halves(answer, video, half)]

    def _generate(self, video: ReadyVideo, questions: _Batch) -> list[AnswerRow]:
        started = time.perf_counter()
        answers = self._worker.start(
            video, [question.query for question in questions], [question.ids for question in questions]
        )
        ended_s = [0.0] * len(questions)
        while answers.is_running:
            answers.step()
            now = time.perf_counter() - started
            ended_s = [before or (now if answers.ended(index) else 0.0) for index, before in enumerate(ended_s)]
        return [
            replace(
                question.task.row(self._run_id),
                answer=answers.texts[index].strip(),
                reason=answers.ended(index) or "",
                prompt_tokens=answers.prompt_tokens[index],
                completion_tokens=answers.completion_tokens[index],
                kv_tokens=video.keys[-1].shape[1],
                answer_s=ended_s[index],
            )
            for index, question in enumerate(questions)
        ]

    def _choose(self, video: ReadyVideo, questions: _Batch) -> list[AnswerRow]:
        started, tasks = time.perf_counter(), [question.task for question in questions]
        turns, options = [[task.question.text] for task in tasks], [task.question.options for task in tasks]
        choices = self._worker.choose(video, turns, options, self._settings.answer.batch_rows)
        answer_s = time.perf_counter() - started
        return [
            replace(
                task.row(self._run_id),
                answer=task.question.options[choice.index],
                choice=choice.index,
                probabilities=choice.probabilities,
                reason="stop",
                prompt_tokens=choice.prompt_tokens,
                kv_tokens=video.keys[-1].shape[1],
                answer_s=answer_s,
            )
            for task, choice in zip(tasks, choices, strict=True)
        ]
