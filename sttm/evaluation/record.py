"""What an evaluation has found so far: it prints the progress, and becomes the report and the files of the results."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from sttm.evaluation.evaluator import VideoOutcome
from sttm.evaluation.markdown import tables
from sttm.evaluation.plot import plot
from sttm.evaluation.questions import RowError, VideoQuestions
from sttm.evaluation.reducers import Reducer
from sttm.evaluation.summary import Row, unreadable
from sttm.models.checkpoint import Checkpoint

PROGRESS_EVERY_S = 10.0


@dataclass
class Record:
    """The outcomes of the videos that are done.

    Attributes:
        reducers: what is compared.
        total: number of videos.
        outcomes: what became of each video that could be asked about.
        errors: the questions that could not be asked, with the reason.
        failed: number of videos that could not be used.
        started: when the evaluation began, on the clock of `time.monotonic`.
    """

    reducers: list[Reducer]
    total: int
    outcomes: list[VideoOutcome] = field(default_factory=list)
    errors: list[RowError] = field(default_factory=list)
    failed: int = 0
    started: float = field(default_factory=time.monotonic)
    _printed: float = field(default_factory=time.monotonic)

    def add(self, video: VideoQuestions, outcome: VideoOutcome | str) -> None:
        """Take the outcome of one video, or the reason why it failed."""
        if isinstance(outcome, str):
            self.failed += 1
            self.errors += [RowError(question.row, video.name, outcome) for question in video.questions]
        else:
            self.outcomes.append(outcome)
            self.errors += outcome.errors
        if time.monotonic() - self._printed >= PROGRESS_EVERY_S:
            self._printed = time.monotonic()
            done, seconds = len(self.outcomes) + self.failed, time.monotonic() - self.started
            left = (self.total - done) * seconds / done
            print(f"{done}/{self.total} videos  {self.failed} failed  {seconds:.0f} s, {left:.0f} s to go", flush=True)

    def report(
        self, name: str, checkpoint: Checkpoint, device: str, settings: dict[str, Any], rows: Sequence[Row]
    ) -> dict[str, Any]:
        """The results as plain values for JSON.

        Args:
            name: name of the benchmark.
            checkpoint: the model.
            device: torch's name of the device.
            settings: the settings that were in force, as plain values.
            rows: one row for each reducer.
        """
        return {
            "benchmark": name,
            "model": checkpoint.name,
            "commit": checkpoint.commit,
            "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
            "torch": str(torch.__version__),
            "settings": settings,
            "videos": len(self.outcomes),
            "failed_videos": self.failed,
            "errors": len(self.errors),
            "warnings": unreadable(rows),
            "seconds": round(time.monotonic() - self.started, 1),
            "rows": [row.as_json() for row in rows],
        }


def write_results(folder: Path, report: dict[str, Any], rows: Sequence[Row], record: Record) -> None:
    """Write `report.json`, `table.md`, `answers.jsonl` and, where matplotlib is installed, `plot.png`."""
    errors = [asdict(error) for error in record.errors]
    (folder / "report.json").write_text(json.dumps({**report, "error_rows": errors}, indent=1))
    paragraphs = [tables(rows), *report["warnings"]] if rows else []
    (folder / "table.md").write_text("\n\n".join(paragraphs) + "\n" if rows else "")
    with (folder / "answers.jsonl").open("w") as file:
        for video in record.outcomes:
            file.writelines(json.dumps(line) + "\n" for line in _answers(video, record.reducers))
    if not rows:
        return
    try:
        plot(rows, folder / "plot.png", f"{report['benchmark']}, {report['model']}")
    except ImportError:
        print("no plot: matplotlib is not installed (pip install 'sttm[eval]')")


def _answers(video: VideoOutcome, reducers: Sequence[Reducer]) -> list[dict[str, Any]]:
    """One line for each question about a video, with the answer under each reducer."""
    return [
        {
            "video": video.name,
            "row": question.row,
            "task": question.task,
            "question": question.prompt,
            "right_answer": question.answer,
            "answers": {r.label: o.replies[i] for r, o in zip(reducers, video.outcomes, strict=True)},
        }
        for i, question in enumerate(video.asked)
    ]
