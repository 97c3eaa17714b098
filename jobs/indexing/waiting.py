"""The videos of a run that wait for their turn."""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobs.cluster.retry import Tries
from sttm.corpus.listing import VideoRef


@dataclass(eq=False, slots=True)
class Video:
    """One video on its way through the job.

    Attributes:
        ref: the video.
        tries: how it has fared so far.
        decoded: the cluster's handle of the decoded video, until an actor gets it.
        frame_bytes: bytes of its decoded frames that the cluster holds.
        is_undecoded: whether the actor that has it was given it undecoded.
    """

    ref: VideoRef
    tries: Tries = field(default_factory=Tries)
    decoded: Any = None
    frame_bytes: int = 0
    is_undecoded: bool = False

    @property
    def crashes(self) -> int:
        """How many processes have died of it so far."""
        return self.tries.crashes


class WaitingVideos:
    """Videos in the order of their turn: those that a GPU has refused to decode, new ones, then those tried before.

    Args:
        refs: the new videos, in order.
    """

    def __init__(self, refs: Sequence[VideoRef] = ()) -> None:
        self._new, self._new_left = iter(refs), len(refs)
        self._refused: deque[Video] = deque()
        self._tried: list[tuple[float, int, Video]] = []
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._refused) + self._new_left + len(self._tried)

    def next_new(self) -> Video | None:
        """Take the next new video; None if there is none."""
        if not self._new_left:
            return None
        self._new_left -= 1
        return Video(next(self._new))

    def next_for_cpu(self, now: float, with_new: bool = True) -> Video | None:
        """Take the next video that a CPU may decode now; None if there is none.

        Args:
            now: the present time by the clock of `Tries.not_before`; a video whose back-off is not over stays.
            with_new: whether a new video may be taken.
        """
        if self._refused:
            return self._refused.popleft()
        if with_new and (video := self.next_new()):
            return video
        if self._tried and self._tried[0][0] <= now:
            return heapq.heappop(self._tried)[2]
        return None

    def put_back_tried(self, video: Video) -> None:
        """Put back a video that has to be tried again, not before `video.tries.not_before`."""
        heapq.heappush(self._tried, (video.tries.not_before, next(self._numbers), video))

    def put_back_refused(self, video: Video) -> None:
        """Put back a video that a GPU cannot decode."""
        self._refused.append(video)
