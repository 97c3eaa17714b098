"""What a person sees while a run lasts: one live line in a terminal, a plain line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from sttm.store.catalog.frame_counts import FrameCounts
from sttm.store.catalog.row import CatalogRow

PLAIN_EVERY_S = 5.0


class Progress:
    """Counts videos and shows the counts; use it as a context manager.

    Args:
        total: how many videos the run has to index.

    Attributes:
        done: videos that this run has stored.
        failed: videos that cannot be indexed.
        skipped: videos that turned out to be stored already.
        frames: lengths and frames of the videos that this run has stored.
        bytes_written: bytes of the artifacts that this run has stored.
        tokens_before: visual tokens entering the merge, over all videos stored.
        tokens_after: visual tokens leaving the merge, over all videos stored.
    """

    def __init__(self, total: int) -> None:
        self.total, self.done, self.failed, self.skipped = total, 0, 0, 0
        self.frames = FrameCounts()
        self.bytes_written = self.tokens_before = self.tokens_after = 0
        self.started = self._printed = time.monotonic()
        self._console = Console()
        self._live = Live(console=self._console, refresh_per_second=4) if self._console.is_terminal else None

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self.started

    @property
    def retained_ratio(self) -> float:
        """Share of the visual tokens that the merge kept, over all videos stored so far."""
        return self.tokens_after / self.tokens_before if self.tokens_before else 0.0

    def add(self, row: CatalogRow) -> None:
        """Count a video that this run has stored."""
        self.done += 1
        self.frames.add(row)
        self.bytes_written += row.kv_bytes + row.tokens_bytes
        self.tokens_before += row.tokens_before
        self.tokens_after += row.tokens_after

    def show(self) -> None:
        """Show the present counts: at once in a terminal, every few seconds elsewhere."""
        if self._live:
            self._live.update(Text(self.line()))
        elif time.monotonic() - self._printed >= PLAIN_EVERY_S:
            self._printed = time.monotonic()
            print(self.line(), flush=True)

    def line(self) -> str:
        """All counts in one line."""
        ended = self.done + self.failed + self.skipped
        rate = ended / max(self.seconds, 1e-9)
        left = (self.total - ended) / rate if ended else float("inf")
        eta = f"{int(left // 60)}:{int(left % 60):02d}" if ended else "-"
        return (
            f"{ended}/{self.total} videos  {self.done} done  {self.failed} failed  {rate:.2f} videos/s  "
            f"{self._frames_text()}  "
            f"retained {self.retained_ratio:.1%}  {self.bytes_written / 1e9:.3f} GB written  ETA {eta}"
        )

    def _frames_text(self) -> str:
        """For example `2.4 h of video  1,280 frames of 8,640 asked for, one in 6.75 s  3 thinned`."""
        counts = self.frames
        length = f"{counts.duration_s / 3600:.3g} h" if counts.duration_s >= 3600 else f"{counts.duration_s:.0f} s"
        every = "" if counts.seconds_per_frame is None else f", one in {counts.seconds_per_frame:.3g} s"
        frames = f"{counts.frames:,} frames of {counts.asked:,} asked for{every}"
        return f"{length} of video  {frames}  {counts.thinned} thinned"

    def __enter__(self) -> "Progress":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live:
            self._live.update(Text(self.line()))
            self._live.stop()
        else:
            print(self.line(), flush=True)
