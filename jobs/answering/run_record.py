"""What one run of the answer job did so far: rows of answers in parts, counts, and lines for a person."""

import sys
import time
from typing import Any

from jobs.answering.answer_table import AnswerRow, AnswerTable
from jobs.answering.plan import Plan
from sttm.errors import StoreError

FLUSH_EVERY_S, PRINT_EVERY_S = 10.0, 5.0


class AnswerRecord:
    """Hears rows, keeps them in parts, counts them, and tells a person now and then."""

    def __init__(self, table: AnswerTable, run_id: str, plan: Plan) -> None:
        self._table, self._run_id, self._plan = table, run_id, plan
        self._rows: list[AnswerRow] = []
        self._heard = self._parts = self._tokens = 0
        self._started = self._flushed = self._printed = time.monotonic()

    def hear(self, rows: list[AnswerRow]) -> None:
        """Take finished rows; if they cannot be written now, they wait for the next time."""
        for row in rows:
            self._plan.known[row.key] = row
            self._heard += 1
            self._tokens += row.completion_tokens
        self._rows += rows
        now = time.monotonic()
        if now - self._flushed >= FLUSH_EVERY_S:
            try:
                self.flush()
            except StoreError as error:
                print(f"{len(self._rows)} answers wait to be written: {error}", file=sys.stderr, flush=True)
            self._flushed = time.monotonic()
        if now - self._printed >= PRINT_EVERY_S:
            self._printed = now
            print(f"{self._heard} of {len(self._plan.todo)}  {self._heard / (now - self._started):.1f}/s", flush=True)

    def flush(self) -> None:
        """Write what has gathered.

        Raises:
            StoreError: it cannot be written.
        """
        if self._rows:
            self._table.add(f"{self._run_id}-{self._parts:06d}", self._rows)
            self._rows, self._parts = [], self._parts + 1

    def summary(self) -> dict[str, Any]:
        """How each row of the table ended: answered by this run (`done`) or before (`skipped`), failed, or left."""
        rows = [self._plan.known.get(key) for key in self._plan.keys]
        answered = [row for row in rows if row is not None and row.status == "ok"]
        done = sum(row.run_id == self._run_id for row in answered)
        return {
            "run_id": self._run_id,
            "total": len(rows),
            "done": done,
            "skipped": len(answered) - done,
            "failed": sum(row is not None and row.status == "error" for row in rows),
            "left": rows.count(None),
            "completion_tokens": self._tokens,
            "seconds": round(time.monotonic() - self._started, 3),
        }
