"""A damaged file of any container gives frames or a `VideoError`, never another exception, a hang or a dead process."""

import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from media import encode_video

from sttm.errors import VideoError
from sttm.video.decode import VideoConfig, read_video

SHORT = {"count": 12, "gop": 5, "rate": 25}
KINDS = {
    "mp4": {},
    "fragmented mp4": {"movflags": "frag_keyframe+empty_moov+dash+global_sidx"},
    "turned mp4": {"rotation": 90},
    "matroska": {"container": "matroska"},
    "webm": {"container": "webm", "codec": "libvpx-vp9"},
    "transport stream": {"container": "mpegts"},
    "program stream": {"container": "mpeg", "codec": "mpeg2video"},
    "avi": {"container": "avi", "options": {"bf": "2"}},
    "avi of mpeg4": {"container": "avi", "codec": "mpeg4"},
    "flv": {"container": "flv"},
    "asf": {"container": "asf", "codec": "wmv2"},
    "hevc": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
}

MORE_KINDS = {
    "dv": {"container": "dv", "codec": "dvvideo", "size": (720, 576), "count": 3},
    "hevc with start codes": {
        **{"codec": "libx265", "container": "mpegts", "count": 30},
        "options": {"x265-params": "log-level=none:open-gop=1:keyint=8:bframes=2"},
    },
    "h264 of open groups": {"container": "mpegts", "count": 30, "options": {"x264-params": "open-gop=1:keyint=8"}},
    "mpeg2 with start codes": {"container": "mpegts", "codec": "mpeg2video", "count": 30, "options": {"bf": "2"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12", "svtav1-params": "lp=1"}},
}


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The file with bytes changed, a piece cut out, doubled, zeroed or moved, or its end cut off."""
    size = len(data)
    start = int(rng.integers(size) * (1 if rng.random() < 0.5 else 0.05))
    stop = min(size, start + 1 + int(rng.integers(1, 1 + size // 4)))
    change = int(rng.integers(7))
    if change <= 2:
        damaged = bytearray(data)
        for at in rng.integers(start, stop, int(rng.integers(1, 40))):
            damaged[at] = int(rng.integers(256))
        return bytes(damaged)
    piece = data[start:stop]
    new = [b"", piece * 2, bytes(len(piece)), piece + data[: len(piece)]][change - 3]
    return data[:start] + new + (data[stop:] if rng.random() < 0.8 else b"")


def outcomes(kind: str, seeds: range) -> dict[str, int]:
    """How often reading a mutated file ended in which way; the keys are codes of errors, or `ok`."""
    data, found = encode_video(**{**SHORT, **{**KINDS, **MORE_KINDS}[kind]}), {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            path = Path(folder, f"{kind} {seed}.bin")
            path.write_bytes(mutated(data, np.random.default_rng(seed)))
            try:
                frames = read_video(str(path), VideoConfig(fps=25, max_frames=8))
                code = "ok" if len(frames.pixels) else "nothing"
            except VideoError as error:
                code = error.code
            except Exception as error:
                code = f"{type(error).__name__} with seed {seed}: {error}"
            found[code] = found.get(code, 0) + 1
    return found


def check(kind: str, seeds: range, timeout_s: float) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:  # which may crash or hang
        found = process.submit(outcomes, kind, seeds).result(timeout_s)
    known = {"ok", "not_a_video", "no_video_stream", "unsupported_codec", "too_many_pixels", "truncated", "no_frames"}
    assert found.keys() <= known | {"damaged", "encrypted"}, found
    assert sum(found.values()) == len(seeds)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_never_a_raw_exception(kind):
    check(kind, range(12), 120)


@pytest.mark.slow
@pytest.mark.parametrize("kind", {**KINDS, **MORE_KINDS})
def test_thousands_of_damaged_files_are_never_a_raw_exception(kind):
    check(kind, range(1000, 1170), 1200)
