"""What a run of the answer job has to do: each question is looked up in the catalog and among the stored answers."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from jobs.answering.answer_table import AnswerRow, AnswerTable
from jobs.answering.question_task import QuestionTask
from jobs.answering.questions import Question
from sttm.engine.sampling import SamplingConfig
from sttm.errors import StoreError
from sttm.store.catalog.lookup import NamedRows
from sttm.store.key import canonical_json
from sttm.store.store import Store

_PLACE = "the store"  # for messages, which go into a table


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        questions: the rows of the question table, in order.
        keys: the key of each question; equal questions share a key.
        rows: the rows that exist, by key: answers of earlier runs and errors found while planning. The run adds to it.
        todo: the questions to ask, each key once.
    """

    questions: list[Question]
    keys: list[str]
    rows: dict[str, AnswerRow]
    todo: list[QuestionTask]

    def rows_in_order(self) -> list[AnswerRow | None]:
        """The row of each question under the question's own id, in the order of the table; None where there is none."""
        found = [self.rows.get(key) for key in self.keys]
        return [row and replace(row, id=question.id) for row, question in zip(found, self.questions, strict=True)]


def make_plan(
    questions: list[Question],
    store: Store,
    table: AnswerTable,
    sampling: SamplingConfig,
    run_id: str,
    recipe_digest: str | None = None,
    retry_errors: bool = False,
) -> Plan:
    """Look up every question in the catalog and among the stored answers. No artifact is read.

    Args:
        questions: the rows of the question table.
        store: the store that is asked.
        table: the answers of earlier runs.
        sampling: how answers are generated; answers under other settings are not taken.
        run_id: the run that error rows are attributed to.
        recipe_digest: only artifacts of this recipe are asked; None takes the newest artifact of each video.
        retry_errors: whether questions that failed in an earlier run are asked again. Those that were `lost` always
            are, because an outage says nothing about the question.
    """
    named = store.catalog.reader().named_any((question.video for question in questions if not question.fault), _PLACE)
    stored = {
        key: row
        for key, row in table.rows().items()
        if row.status == "ok" or not (retry_errors or row.error_code == "lost")
    }
    keys: list[str] = []
    todo: dict[str, QuestionTask] = {}
    for question in questions:
        task, fault = _resolve(question, named, sampling, recipe_digest)
        keys.append(task.key)
        if fault is not None:
            stored[task.key] = task.error_row(*fault, run_id)
        elif task.key not in stored:
            todo[task.key] = task
    return Plan(questions, keys, stored, list(todo.values()))


def _resolve(
    question: Question, named: NamedRows, sampling: SamplingConfig, recipe_digest: str | None
) -> tuple[QuestionTask, tuple[str, str] | None]:
    """The question with its artifact, or with the code and message that say why there is none."""
    video_id = identity = ""
    fault = ("bad_row", question.fault) if question.fault else None
    if fault is None:
        try:
            found = named.find(question.video, recipe_digest)
            video_id, identity = found.video_id, found.identity
        except StoreError as error:
            under = f" (asked under recipe {recipe_digest[:12]})" if recipe_digest else ""
            fault = ("no_video", f"{error}{under}")
    key = _key(question, sampling, identity, row_id=question.id if fault else "")
    return QuestionTask(key, question, video_id, identity), fault


def _key(question: Question, sampling: SamplingConfig, identity: str, row_id: str) -> str:
    """Digest of everything that an answer depends on. It must never change: stored answers are found by it."""
    config = {"sampling": sampling.model_dump(mode="json", exclude={"stop"}), "stop": list(sampling.stop)}
    about: dict[str, Any] = {"video": question.video, "question": question.text, "options": question.options}
    about |= {"config": config, "identity": identity, "row": row_id}
    return hashlib.sha256(canonical_json(about)).hexdigest()
