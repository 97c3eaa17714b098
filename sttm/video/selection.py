"""Which packets of a video must be decoded so that the wanted frames come out exactly, and where a decoder starts anew.

    wanted frames ──► entry point before each ──► segments ──► groups of segments that one plain decode would cover

1. A segment begins at an entry point and ends with the last packet of the last wanted frame, in decoding order.
2. A wanted picture that is shown before its entry point leads it, and its segment begins one entry point earlier.
3. Inside a segment a packet that no other picture needs is left out, unless its own frame is wanted.

The rules hold for every decoder, because they only look at packets. Encoders may break them, and damage does: whoever
decodes a segment checks what comes out, and decodes the whole group in its place if something is odd.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from sttm.video.coded_picture import Entry
from sttm.video.index import VideoIndex
from sttm.video.timeline import HIDDEN

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """Packets of one part that a decoder gets one after the other, after it was started anew.

    Attributes:
        packets: int64 [K], positions of the packets among those of the part, increasing.
        wanted: int64 [W], time stamps of the frames that are wanted of this segment, increasing.
        shown_from: a frame with an earlier time stamp is passed over. It was given by the group before, or it is shown
            before the entry point, though it follows in the file, and may be wrong or missing.
        shown_to: no frame with a later time stamp is wanted of this segment.
    """

    packets: Positions
    wanted: NDArray[np.int64]
    shown_from: int
    shown_to: int


@dataclass(frozen=True)
class Group:
    """Segments that begin at or after the same certain entry point, and before the next certain one.

    A certain entry point is one where the standard or the container promises exact frames (`Entry.OPEN` and above), not
    only the encoder.

    Attributes:
        segments: the packets that suffice if the stream is as its headers say; none if the headers say too little.
        whole: all packets from the certain entry point up to the first certain one behind the last segment.
    """

    segments: tuple[Segment, ...]
    whole: Segment


def select(index: VideoIndex, part: int, wanted: NDArray[np.int64]) -> list[Group]:
    """Find the packets of one part that the wanted frames need.

    Args:
        index: the index of the video.
        part: position in `index.parts`.
        wanted: int64 [T], time stamps of the wanted frames, increasing.

    Returns:
        Groups in the order of the file; none if the part has no wanted frame. The segments of a group follow each other
        in file order and in presentation order.
    """
    here = index.packet_part == part
    pts, entry = index.packet_pts[here], index.packet_entry[here]
    # An edit list may hide an entry point, and not the pictures that lead it: they need the entry point before.
    entry = np.where((pts == HIDDEN) & (entry != Entry.START), Entry.NONE, entry)
    is_wanted = np.isin(pts, wanted)
    if not is_wanted.any() and not index.is_counted:
        return []
    if not index.is_selectable:
        return _wholes(pts, entry, is_wanted | index.is_counted, int(index.pts[-1]))
    picture = index.packet_picture[here]
    last_of = np.searchsorted(picture, picture, "right") - 1
    is_wanted = np.isin(picture, picture[is_wanted])
    keep = is_wanted | ~index.packet_is_disposable[here]
    segments = []
    for start, stop in _spans(pts, entry, np.flatnonzero(is_wanted & (pts != HIDDEN)), last_of):
        inside = pts[start:stop]
        of_span = np.unique(inside[np.isin(inside, wanted)])
        packets = start + np.flatnonzero(keep[start:stop])
        shown_from = HIDDEN if entry[start] == Entry.START else int(pts[start])
        segments.append(Segment(packets, of_span, shown_from, int(of_span[-1])))
    if any(later.wanted[0] <= earlier.shown_to for earlier, later in pairwise(segments)):
        return _wholes(pts, entry, is_wanted, int(index.pts[-1]))
    return _groups(segments, pts, entry)


def _wholes(pts: NDArray[np.int64], entry: NDArray[np.int8], is_wanted: NDArray[np.bool_], end: int) -> list[Group]:
    """A group of all packets for each stretch between two starts that has a wanted one."""
    starts = [*np.flatnonzero(entry == Entry.START).tolist(), len(pts)]
    return [
        Group((), Segment(np.arange(start, stop), np.unique(pts[start:stop][is_wanted[start:stop]]), HIDDEN, end))
        for start, stop in pairwise(starts)
        if is_wanted[start:stop].any()
    ]


def _spans(pts: NDArray[np.int64], entry: NDArray[np.int8], wanted: Positions, last_of: Positions) -> list[list[int]]:
    """The runs of packets [first, end) that decode the wanted packets; runs that touch become one.

    A decoder has to start anew at an `Entry.START`, so a run never goes on beyond one.
    """
    entries = np.flatnonzero(entry != Entry.NONE)
    found = []
    for position in wanted.tolist():
        at = int(np.searchsorted(entries, position, "right")) - 1
        while pts[position] < pts[entries[at]] and entry[entries[at]] != Entry.START:
            at -= 1
        found.append((int(entries[at]), int(last_of[position]) + 1))
    spans: list[list[int]] = []
    for start, stop in sorted(found):
        if spans and (start == spans[-1][0] or (start <= spans[-1][1] and entry[start] != Entry.START)):
            spans[-1][1] = max(spans[-1][1], stop)
        else:
            spans.append([start, stop])
    return spans


def _groups(segments: list[Segment], pts: NDArray[np.int64], entry: NDArray[np.int8]) -> list[Group]:
    """Group the segments by the last certain entry point at or before their first packet."""
    certain = np.flatnonzero(entry >= Entry.OPEN)
    starts = [int(certain[np.searchsorted(certain, s.packets[0], "right") - 1]) for s in segments]
    groups: list[Group] = []
    for start in sorted(set(starts)):
        of_group = tuple(s for s, own in zip(segments, starts, strict=True) if own == start)
        after = int(np.searchsorted(certain, of_group[-1].packets[-1], "right"))
        packets = np.arange(start, certain[after] if after < len(certain) else len(pts))
        done = groups[-1].whole.shown_to + 1 if groups else HIDDEN
        shown_from = HIDDEN if entry[start] == Entry.START else max(int(pts[start]), done)
        wanted = np.concatenate([s.wanted for s in of_group])
        groups.append(Group(of_group, Segment(packets, wanted, shown_from, int(wanted[-1]))))
    return groups
