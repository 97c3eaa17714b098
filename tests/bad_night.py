"""The corpus of a bad night: 48 good videos, many of them awkward, and 12 that cannot be indexed."""

import json
from pathlib import Path

from media import CLIPS, TEXT, encode_audio, encode_video, flipped, truncated
from test_video import ODD_VIDEOS, remuxed, zeroed

REAL = ("bbb_12s_av1.mp4", "bbb_12s_h264.mp4", "bbb_12s_hevc.mp4", "bbb_12s_vp9.webm")
CODECS = {
    "av1.mp4": {"codec": "libsvtav1"},
    "av1.mkv": {"codec": "libsvtav1", "container": "matroska"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "vp9.webm": {"codec": "libvpx-vp9", "container": "webm"},
    "mpeg2.ts": {"codec": "mpeg2video", "container": "mpegts", "rate": 25},
    "prores.mov": {"codec": "prores_ks", "container": "mov", "pixel_format": "yuv422p10le"},
    "motion-jpeg.avi": {"codec": "mjpeg", "container": "avi", "pixel_format": "yuvj420p"},
    "windows.asf": {"codec": "wmv2", "container": "asf"},
    "spaces, % and ü#1.mp4": {},
    "one-frame.mp4": {"count": 1},
    "upright.mp4": {"size": (48, 128)},
}
HARMS = ("segv", "loop", "hang", "hog", "bug")
CAUSES = {
    "cut.mp4": "truncated",
    "index-lost.mp4": "truncated",
    "empty.mp4": "empty_file",
    "audio.mp4": "no_video_stream",
    "text.mp4": "not_a_video",
    "holes.mp4": "damaged",
    "gone.mp4": "missing",
    **{f"{harm}.mp4": "crashed" for harm in HARMS},
}


def good_videos() -> dict[str, bytes]:
    """48 files by name, no two alike."""
    real = {name: (CLIPS / name).read_bytes() for name in REAL}
    odd = {f"{kind.replace(' ', '-')}.mp4": encode_video(**{"count": 31, **a}) for kind, (_, a) in ODD_VIDEOS.items()}
    coded = {name: encode_video(**{"count": 30, **arguments}) for name, arguments in CODECS.items()}
    damaged = {
        "real.ts": remuxed(real["bbb_12s_h264.mp4"], "mpegts"),
        "read-around.webm": flipped(real["bbb_12s_vp9.webm"], seed=6, count=6, start_ratio=0.1),
        "grows.ts": encode_video(container="mpegts")
        + encode_video(container="mpegts", size=(128, 96), ticks_ms=range(3000, 6000, 100)),
    }
    found = {**real, **odd, **coded, **damaged}
    return found | {f"plain-{n}.mp4": encode_video(count=32 + n) for n in range(48 - len(found))}


def write_bad_night(folder: Path) -> tuple[Path, list[str]]:
    """Write all files into a folder, and a manifest that names all 60, good and bad mixed; its path, the good names."""
    folder.mkdir()
    good = good_videos()
    whole = good["bbb_12s_h264.mp4"]
    bad = {
        "cut.mp4": truncated(whole, 0.6),
        "index-lost.mp4": truncated(encode_video(movflags=""), 0.7),
        "empty.mp4": b"",
        "audio.mp4": encode_audio(),
        "text.mp4": TEXT,
        "holes.mp4": zeroed(encode_video(count=100, gop=1), 0.3),
    }
    for name, data in {**good, **bad}.items():
        (folder / name).write_bytes(data)
    uris = sorted({*good, *bad, "gone.mp4"}, key=lambda name: name[::-1])  # in no order of kind
    for position, harm in enumerate(HARMS):
        uris.insert(10 * position, f"poison://{harm}/{harm}.mp4")
    manifest = folder / "corpus.jsonl"
    manifest.write_text("\n".join(json.dumps({"uri": uri}) for uri in uris))
    return manifest, list(good)
