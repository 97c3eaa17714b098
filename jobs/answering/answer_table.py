"""The answers of a batch job under one URL: parts while the job runs, one table at the end.

<root>/parts/<run_id>-<number>.parquet     rows as they come; a stopped job is resumed from them
<root>/answers.parquet | .jsonl | .csv     the rows of all questions, in the order of the questions
"""

import csv
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from sttm.errors import ArtifactError
from sttm.store.artifact import utc_now
from sttm.store.catalog.arrow_rows import storable
from sttm.store.storage import Storage

_ROWS_PER_GROUP = 10_000


_OLD_NAMES = {"text": "answer"}  # columns that earlier programs wrote under another name


class FileFormat(StrEnum):
    """The formats of the final table, by the ending of its name."""

    PARQUET = "parquet"
    JSON_LINES = "jsonl"
    CSV = "csv"


@dataclass(frozen=True)
class AnswerRow:
    """What became of one question.

    Attributes:
        key: digest of the question, of the sampling settings and of the artifact. A row is made once per key.
        id: the question's own id, or its row number where the question table gives none.
        video, question, options: the cells of the question table.
        status: `ok` or `error`.
        answer: the text that was generated, or the chosen option.
        choice: index of the chosen option; None where the answer was generated.
        probabilities: the probability of each option; empty where the answer was generated.
        reason: why the answer ended: `stop` (the model or a stop text ended it) or `length` (`max_tokens` was reached).
        prompt_tokens, completion_tokens, kv_tokens: tokens of the question, of the answer, and of the cached video.
        load_s: seconds until the video was in memory; about 0 where it was there already.
        answer_s: seconds from then to the end of the answer. Questions about one video are answered together.
        video_id, identity: the artifact that was asked.
        error_code, error_message: why there is no answer; empty where there is one.
        run_id: the run that made the row.
        created_at: when the row was made; UTC, ISO 8601.
    """

    key: str
    id: str
    video: str
    question: str
    options: Sequence[str] = ()
    status: Literal["ok", "error"] = "ok"
    answer: str = ""
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
        **dict.fromkeys(("status", "answer"), pa.string()),
        "choice": pa.int32(),
        "probabilities": pa.list_(pa.float64()),
        "reason": pa.string(),
        **dict.fromkeys(("prompt_tokens", "completion_tokens", "kv_tokens"), pa.int64()),
        **dict.fromkeys(("load_s", "answer_s"), pa.float64()),
        **dict.fromkeys(("video_id", "identity", "error_code", "error_message", "run_id", "created_at"), pa.string()),
    }
)


class AnswerTable:
    """The answers under one URL: a local folder or an object store."""

    def __init__(self, url: str) -> None:
        self.storage = Storage(url)

    def add(self, name: str, rows: Sequence[AnswerRow]) -> None:
        """Write one part, whole or not at all."""
        self.storage.put(f"parts/{name}.parquet", _parquet(rows))

    def rows(self) -> dict[str, AnswerRow]:
        """The rows of all parts, by key. Of two rows with one key an answer wins over an error, then the newer row.

        Raises:
            ArtifactError: a part is damaged.
        """
        found: dict[str, AnswerRow] = {}
        for part in self.storage.keys("parts"):
            for row in self._read(part):
                old = found.get(row.key)
                if old is None or (row.status == "ok", row.created_at) > (old.status == "ok", old.created_at):
                    found[row.key] = row
        return found

    def finish(self, rows: Iterable[AnswerRow], file_format: FileFormat = FileFormat.PARQUET) -> str:
        """Write the one table of all answers and return its URL."""
        name = f"answers.{file_format}"
        self.storage.put(name, _WRITERS[file_format](list(rows)))
        return f"{self.storage.url}/{name}"

    def _read(self, key: str) -> list[AnswerRow]:
        try:
            table = pq.ParquetFile(io.BytesIO(self.storage.read(key))).read(use_threads=False)
            table = table.rename_columns([_OLD_NAMES.get(name, name) for name in table.column_names])
            return [AnswerRow(**row) for row in table.select(SCHEMA.names).to_pylist()]
        except (pa.ArrowException, KeyError, TypeError) as error:
            place = f"{self.storage.url}/{key}"
            raise ArtifactError(f"{place} is damaged: {error}; delete it, its questions are then asked again") from None


def _plain(row: AnswerRow) -> dict[str, Any]:
    """The cells of a row as every format can hold them: valid Unicode, lists instead of tuples."""
    cells = {name: storable(value) for name, value in asdict(row).items()}
    return cells | {
        "options": [storable(option) for option in row.options],
        "probabilities": list(row.probabilities),
    }


def _parquet(rows: Sequence[AnswerRow]) -> bytes:
    out = io.BytesIO()
    table = pa.Table.from_pylist([_plain(row) for row in rows], schema=SCHEMA)
    pq.write_table(table, out, compression="zstd", row_group_size=_ROWS_PER_GROUP)
    return out.getvalue()


def _json_lines(rows: Sequence[AnswerRow]) -> bytes:
    return "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: Sequence[AnswerRow]) -> bytes:
    """A list is written as JSON into its cell, which is also how a table of questions may hold its options."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, SCHEMA.names)
    writer.writeheader()
    for row in rows:
        cells = _plain(row).items()
        writer.writerow(
            {name: json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for name, cell in cells}
        )
    return out.getvalue().encode()


_WRITERS: dict[FileFormat, Callable[[Sequence[AnswerRow]], bytes]] = {
    FileFormat.PARQUET: _parquet,
    FileFormat.JSON_LINES: _json_lines,
    FileFormat.CSV: _csv,
}
