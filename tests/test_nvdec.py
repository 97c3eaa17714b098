"""Decoding on a GPU: the frames and times of a CPU, and a plain word about what a GPU leaves to a CPU."""

import ctypes
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from media import CLIPS, encode_video

import sttm
from jobs.indexing.actor import Device, PrefillActor
from sttm.config import IndexConfig, index_recipe
from sttm.errors import ConfigError
from sttm.indexer import Indexer
from sttm.models.checkpoint import Checkpoint
from sttm.models.frame_resizing import FrameResizing
from sttm.video.decode import VideoConfig, read_video
from sttm.video.nvdec import NotOnGpuError, cannot_decode_because, require_suitable
from sttm.video.pyav import read_index

CONFIG = VideoConfig(fps=3.0, max_frames=24)


def settings(decoder: str) -> IndexConfig:
    return IndexConfig(video=VideoConfig(decoder=decoder))


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def no_driver_for_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that sees its GPU, but was not given the capability `video`."""

    def fail(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", fail)


@pytest.mark.usefixtures("no_driver_for_video")
def test_a_container_without_the_video_capability_is_told_the_cure() -> None:
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in cannot_decode_because()


@pytest.mark.usefixtures("no_gpu")
def test_indexing_in_this_process_without_a_gpu_is_refused_before_any_video_is_read(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"never read")
    with pytest.raises(
        ConfigError, match=r"video\.decoder is nvdec, but there is no GPU; or set video\.decoder to auto"
    ):
        sttm.index(tmp_path / "clip.mp4", tmp_path / "store", settings("nvdec"))


def load(monkeypatch: pytest.MonkeyPatch, decoder: str) -> Device:
    """What an actor says whose model takes no time to load."""
    monkeypatch.setattr(Indexer, "__init__", lambda self, *args: None)
    return PrefillActor(settings(decoder), {}, "memory://store", "run", timeout_s=1).load()


@pytest.mark.usefixtures("no_gpu")
def test_an_actor_without_a_gpu_is_quiet_unless_it_must_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(monkeypatch, "auto") == load(monkeypatch, "pyav") == Device(0)
    with pytest.raises(ConfigError, match="there is no GPU"):
        load(monkeypatch, "nvdec")


@pytest.mark.usefixtures("no_driver_for_video")
def test_an_actor_with_a_gpu_that_cannot_decode_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    found = load(monkeypatch, "auto")
    assert (found.decodes, "libnvcuvid.so.1 is missing" in found.cannot_decode_because) == (0, True)
    assert load(monkeypatch, "pyav") == Device(0)
    with pytest.raises(ConfigError, match=r"libnvcuvid\.so\.1 is missing"):
        load(monkeypatch, "nvdec")


def test_one_recipe_whichever_processor_decodes() -> None:
    checkpoint = Checkpoint.open(IndexConfig().model)
    assert index_recipe(settings("nvdec"), checkpoint) == index_recipe(settings("auto"), checkpoint)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: (CLIPS / "bbb_12s_av1.mp4").read_bytes(), "the codec AV1"),
        (lambda: encode_video(codec="mpeg2video", container="mpegts"), "the codec mpeg2video"),
        (lambda: encode_video(size=(65, 47), pixel_format="yuv444p"), "an odd picture size"),
    ],
    ids=["AV1", "MPEG-2", "odd"],
)
def test_what_a_gpu_cannot_decode_is_known_from_the_index(data, reason: str) -> None:
    with pytest.raises(NotOnGpuError, match=reason):
        require_suitable(read_index(io.BytesIO(data()), "clip"))


def small(frames: int, height: int, width: int) -> FrameResizing:
    return FrameResizing((84, 140), (84, 140), 3)


@pytest.mark.gpu
@pytest.mark.parametrize("resizer", [None, small], ids=["full size", "resized"])
@pytest.mark.parametrize("name", ["bbb_12s_h264.mp4", "bbb_12s_hevc.mp4", "bbb_12s_vp9.webm"])
def test_a_gpu_gives_the_frames_and_times_of_a_cpu(name: str, resizer) -> None:
    cpu = read_video(str(CLIPS / name), CONFIG, resizer=resizer)
    gpu = read_video(str(CLIPS / name), CONFIG, resizer=resizer, on_gpu=True)
    assert (gpu.pixels.is_cuda, gpu.decoder) == (True, f"{cpu.decoder} on NVDEC")
    np.testing.assert_array_equal(gpu.pixels.cpu().numpy(), cpu.pixels)
    np.testing.assert_array_equal(gpu.seconds, cpu.seconds)


@pytest.mark.gpu
@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_turned_video_is_upright_on_a_gpu_too(tmp_path: Path, rotation: int) -> None:
    path = tmp_path / "turned.mp4"
    path.write_bytes(encode_video(size=(320, 192), rotation=rotation))
    cpu, gpu = (read_video(str(path), CONFIG, on_gpu=on_gpu) for on_gpu in (False, True))
    np.testing.assert_array_equal(gpu.pixels.cpu().numpy(), cpu.pixels)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {"pixel_format": "yuv420p10le"},
        {"pixel_format": "yuv444p"},
        {"options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
    ],
    ids=["10 bits", "4:4:4", "interlaced"],
)
def test_what_a_gpu_cannot_decode_exactly_is_left_to_a_cpu(tmp_path: Path, options: dict) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(encode_video(size=(320, 192), **options))
    with pytest.raises(NotOnGpuError):
        read_video(str(path), CONFIG, on_gpu=True)
