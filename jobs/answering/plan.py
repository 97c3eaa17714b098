"""What a run of the answer job has to do: every question looked up in the catalog and among the answers there are."""

import hashlib
from dataclasses import dataclass
from typing import Any

from jobs.answering.actor import AnswerConfig, Asked
from jobs.answering.answer_table import AnswerRow, AnswerTable
from jobs.answering.questions import AskedRow
from sttm.errors import StoreError
from sttm.store.catalog.view import CatalogView
from sttm.store.key import canonical_json
from sttm.store.store import Store


@dataclass(frozen=True)
class Plan:
    """What a run has to do.

    Attributes:
        keys: of every question, in order; equal questions share a key.
        known: rows that exist by key, errors found while planning included; the run adds to it.
        todo: questions to ask, each key once.
    """

    keys: list[str]
    known: dict[str, AnswerRow]
    todo: list[Asked]


def make_plan(
    rows: list[AskedRow], store: Store, table: AnswerTable, config: AnswerConfig, retry_errors: bool, run_id: str
) -> Plan:
    """Look every question up in the catalog and among the answers there are; reads no artifact."""
    catalog = CatalogView(store.storage, max_age_s=float("inf"))
    # `lost`: an outage, which says nothing of the question.
    known = {
        key: row
        for key, row in table.rows().items()
        if row.status == "ok" or not (retry_errors or row.error_code == "lost")
    }
    keys: list[str] = []
    todo: dict[str, Asked] = {}
    for row in rows:
        asked, fault = _resolve(row, catalog, config)
        keys.append(asked.key)
        if fault is not None:
            known[asked.key] = asked.error(*fault, run_id)
        elif asked.key not in known:
            todo[asked.key] = asked
    return Plan(keys, known, list(todo.values()))


def _resolve(row: AskedRow, catalog: CatalogView, config: AnswerConfig) -> tuple[Asked, tuple[str, str] | None]:
    """The question with its artifact, or the code and message of why there is none."""
    video_id = identity = ""
    fault = ("bad_row", row.error) if row.error else None
    if fault is None:
        try:
            found = catalog.find(row.video)
            video_id, identity = found.video_id, found.identity
        except StoreError as error:
            fault = ("no_video", str(error))
    about: dict[str, Any] = {"video": row.video, "question": row.question, "options": row.options}
    about |= {"config": config.model_dump(mode="json"), "identity": identity, "row": row.id if fault else ""}
    key = hashlib.sha256(canonical_json(about)).hexdigest()
    return Asked(key, row, video_id, identity), fault
