"""What one run of the answer job has done so far: it writes rows in parts, counts them, and prints the progress."""

import sys
import time
from typing import Any

from jobs.answering.answer_table import AnswerRow, AnswerTable
from jobs.answering.plan import Plan
from sttm.errors import StoreError

FLUSH_EVERY_S, PRINT_EVERY_S = 10.0, 5.0


class AnswerRecord:
    """Takes rows as they are finished and adds them to the plan and to the table."""

    def __init__(self, table: AnswerTable, run_id: str, plan: Plan) -> None:
        self._table, self._run_id, self._plan = table, run_id, plan
        self._unwritten: list[AnswerRow] = []
        self._finished = self._parts = self._tokens = 0
        self._started = self._flushed = self._printed = time.monotonic()

    def on_rows(self, rows: list[AnswerRow]) -> None:
        """Take finished rows. Rows that cannot be written now are kept and written with the next ones."""
        for row in rows:
            self._plan.rows[row.key] = row
            self._finished += 1
            self._tokens += row.completion_tokens
        self._unwritten += rows
        now = time.monotonic()
        if now - self._flushed >= FLUSH_EVERY_S:
            try:
                self.flush()
            except StoreError as error:
                print(f"{len(self._unwritten)} answers wait to be written: {error}", file=sys.stderr, flush=True)
            self._flushed = time.monotonic()
        if self._finished and now - self._printed >= PRINT_EVERY_S:
            self._printed, per_second = now, self._finished / (now - self._started)
            print(f"{self._finished} of {len(self._plan.todo)}  {per_second:.1f}/s", flush=True)

    def flush(self) -> None:
        """Write the rows that are not written yet.

        Raises:
            StoreError: they cannot be written.
        """
        if self._unwritten:
            self._table.add(f"{self._run_id}-{self._parts:06d}", self._unwritten)
            self._unwritten, self._parts = [], self._parts + 1

    def failed_rows(self) -> list[AnswerRow]:
        """The error row of each question that has one, under the id of that question, in the order of the table."""
        return [row for row in self._plan.rows_in_order() if row is not None and row.status == "error"]

    def summary(self) -> dict[str, Any]:
        """Counts of questions: answered by this run (`done`) or an earlier one (`skipped`), `failed`, and `left`."""
        rows = self._plan.rows_in_order()
        answered = [row for row in rows if row is not None and row.status == "ok"]
        done = sum(row.run_id == self._run_id for row in answered)
        return {
            "run_id": self._run_id,
            "total": len(rows),
            "done": done,
            "skipped": len(answered) - done,
            "failed": len(self.failed_rows()),
            "left": rows.count(None),
            "completion_tokens": self._tokens,
            "seconds": round(time.monotonic() - self._started, 3),
        }
