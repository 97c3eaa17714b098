"""What answers on one GPU (or CPU): one model, the videos it has at hand, chunks of questions about one video."""

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from jobs.cluster import given_devices
from jobs.limits import killed_after
from jobs.question_table import AskedRow
from sttm.engine.answer import ReadyVideo
from sttm.engine.cache_tier import CacheConfig
from sttm.engine.sampling import SamplingConfig
from sttm.engine.worker import Query, QueryWorker, open_checkpoint
from sttm.errors import ArtifactError, ModelError, QuestionError
from sttm.settings import Settings
from sttm.store.answer_table import AnswerRow
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
        store = Store.open(store_url)
        checkpoint = open_checkpoint(store.manifest(identity), model)
        self._worker = QueryWorker(store, checkpoint, given_devices(), CacheConfig(device_bytes=device_bytes))
        self._config, self._run_id, self._batch_rows, self._timeout_s = config, run_id, batch_rows, timeout_s
        self._computing = threading.Lock()

    def ready(self) -> bool:
        """Returns once the model is loaded."""
        return True

    def answer(self, asked: Sequence[Asked]) -> list[AnswerRow]:
        """Rows for questions about one video, in any order. A bad artifact makes them all error rows."""
        started = time.perf_counter()
        try:
            video = self._worker.load(asked[0].identity)
        except (ArtifactError, MissingObjectError, ModelError) as error:
            code = "other_model" if isinstance(error, ModelError) else "bad_artifact"
            return [one.error(code, str(error), self._run_id) for one in asked]
        load_s = time.perf_counter() - started
        with self._computing, killed_after(self._timeout_s):
            rows = [row for batch in self._batches(asked) for row in self._answered(video, batch)]
        return [replace(row, load_s=load_s) for row in rows]

    def _batches(self, asked: Sequence[Asked]) -> Iterator[list[Asked]]:
        """Questions of similar length together, those with options apart."""
        ordered = sorted(asked, key=lambda one: (bool(one.row.options), len(one.row.question)))
        for _, group in itertools.groupby(ordered, key=lambda one: bool(one.row.options)):
            yield from _batched(group, self._batch_rows)

    def _answered(self, video: ReadyVideo, asked: list[Asked]) -> list[AnswerRow]:
        """Rows of one batch; if it fails, each question is asked alone, and what fails then is an error row."""
        try:
            return self._choose(video, asked) if asked[0].row.options else self._say(video, asked)
        except Exception as error:  # the boundary where one question's fault becomes its row
            if len(asked) == 1:
                code = "bad_question" if isinstance(error, QuestionError) else "failed"
                return [asked[0].error(code, f"{type(error).__name__}: {error}", self._run_id)]
        return [row for one in asked for row in self._answered(video, [one])]

    def _say(self, video: ReadyVideo, asked: list[Asked]) -> list[AnswerRow]:
        started = time.perf_counter()
        queries = [Query((one.row.question,), self._config.sampling, self._config.stop) for one in asked]
        answers = self._worker.start(video, queries)
        took = [0.0] * len(asked)
        while answers.is_running:
            answers.step()
            now = time.perf_counter() - started
            took = [t or (now if answers.ended(row) else 0.0) for row, t in enumerate(took)]
        return [
            replace(
                one.answered(self._run_id),
                text=answers.texts[row].strip(),
                reason=answers.ended(row) or "",
                prompt_tokens=answers.prompt_tokens[row],
                completion_tokens=answers.completion_tokens[row],
                kv_tokens=video.keys[-1].shape[1],
                answer_s=took[row],
            )
            for row, one in enumerate(asked)
        ]

    def _choose(self, video: ReadyVideo, asked: list[Asked]) -> list[AnswerRow]:
        started = time.perf_counter()
        choices = self._worker.choose(video, [[one.row.question] for one in asked], [one.row.options for one in asked])
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


def _batched(asked: Iterator[Asked], size: int) -> Iterator[list[Asked]]:
    while batch := list(itertools.islice(asked, size)):
        yield batch
