"""The table of answers of a batch job: parts while it runs, one file at the end, all under one URL.

<root>/parts/<run_id>-<number>.parquet   rows as they come; a stopped job is resumed from them
<root>/answers.parquet                   the rows of all questions, in their order
"""

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sttm.errors import ArtifactError
from sttm.store.artifact import utc_now
from sttm.store.catalog.row import storable
from sttm.store.storage import Storage

FINAL = "answers.parquet"
_ROWS_PER_GROUP = 10_000


@dataclass(frozen=True)
class AnswerRow:
    """What became of one question.

    Attributes:
        key: digest of the question, how it was asked, and the artifact; a row with the same key is never made twice.
        id: of the question; its row number where the table names none.
        video, question, options: as the table has them.
        status: `ok` or `error`.
        text: the answer, or the chosen option.
        choice: index of the chosen option; None where there were none.
        probabilities: of the options.
        reason: why the text ended: `stop` or `length`.
        prompt_tokens, completion_tokens, kv_tokens: of the question, the answer, and the video in the cache.
        load_s, answer_s: seconds until the video was at hand (0 if it was), and until the answer from there on;
            questions about one video are answered together.
        video_id, identity: the artifact, which leads to everything that shaped it.
        error_code, error_message: of an error row.
        run_id, created_at: the run that made the row, and when (UTC, ISO 8601).
    """

    key: str
    id: str
    video: str
    question: str
    options: Sequence[str] = ()
    status: Literal["ok", "error"] = "ok"
    text: str = ""
    choice: int | None = None
    probabilities: Sequence[float] = ()
    reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    kv_tokens: int = 0
    load_s: float = 0.0
    answer_s: float = 0.0
    video_id: str = ""
    identity: str = ""
    error_code: str = ""
    error_message: str = ""
    run_id: str = ""
    created_at: str = field(default_factory=utc_now)


SCHEMA = pa.schema(
    {
        **dict.fromkeys(("key", "id", "video", "question"), pa.string()),
        "options": pa.list_(pa.string()),
        **dict.fromkeys(("status", "text"), pa.string()),
        "choice": pa.int32(),
        "probabilities": pa.list_(pa.float64()),
        "reason": pa.string(),
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "kv_tokens"), pa.int64()),
        **dict.fromkeys(("load_s", "answer_s"), pa.float64()),
        **dict.fromkeys(("video_id", "identity", "error_code", "error_message", "run_id", "created_at"), pa.string()),
    }
)


class AnswerTable:
    """Answers under one URL: a local folder or an object store."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)

    def add(self, name: str, rows: Sequence[AnswerRow]) -> None:
        """Write one part, whole or not at all."""
        self.storage.put(f"parts/{name}.parquet", _parquet(rows))

    def rows(self) -> dict[str, AnswerRow]:
        """All rows of all parts by key; of two with one key the newer, but an answer before an error.

        Raises:
            ArtifactError: a part is damaged.
        """
        found: dict[str, AnswerRow] = {}
        for key in self.storage.keys("parts"):
            for row in self._read(key):
                old = found.get(row.key)
                if old is None or (row.status == "ok", row.created_at) > (old.status == "ok", old.created_at):
                    found[row.key] = row
        return found

    def finish(self, rows: Iterable[AnswerRow]) -> None:
        """Write the one file of all answers."""
        self.storage.put(FINAL, _parquet(list(rows)))

    def _read(self, key: str) -> list[AnswerRow]:
        try:
            table = pq.ParquetFile(io.BytesIO(self.storage.read(key))).read(use_threads=False)
            return [AnswerRow(**row) for row in table.select(SCHEMA.names).to_pylist()]
        except (pa.ArrowException, KeyError, TypeError) as error:
            place = f"{self.storage.url}/{key}"
            raise ArtifactError(f"{place} is damaged: {error}; delete it, its questions are then asked again") from None


def _parquet(rows: Sequence[AnswerRow]) -> bytes:
    columns = {name: [storable(getattr(row, name)) for row in rows] for name in SCHEMA.names}
    columns["options"] = [[storable(option) for option in row.options] for row in rows]
    columns["probabilities"] = [list(row.probabilities) for row in rows]
    out = io.BytesIO()
    pq.write_table(pa.table(columns, schema=SCHEMA), out, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    return out.getvalue()
