"""Frames resized one by one as they are decoded equal what the official processor makes of the whole video."""

import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, write_lmms_lab
from family_setup import Setup
from hypothesis import given
from hypothesis import strategies as st
from media import encode_video

from sttm.errors import VideoError
from sttm.models.base import Family
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.frame_resizing import resize_bicubic, resize_on_device
from sttm.models.pixel_bounds import PixelBounds
from sttm.video.decode import VideoConfig, read_video

ON_CPU = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32)  # all that normalising asks of a model
BOUNDS = PixelBounds(4 * 28**2, 64 * 28**2, 8 * 25 * 28**2)  # 8 frames are smaller than 7


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Family]:
    """All families, LLaVA in its original layout, one that crops, and two whose frames are smaller in long videos."""
    found = {name: Setup.of(name).checkpoint.family() for name in FAMILIES}
    folder = write_lmms_lab(Setup.of("llava_onevision").folder, tmp_path_factory.mktemp("lmms") / "original")
    found["lmms_lab"] = Checkpoint.open(ModelConfig(path=str(folder))).family()
    found["padded"] = Setup.of("llava_next_video").checkpoint.family()
    found["padded"].processor.size = type(found["padded"].processor.size)(shortest_edge=60)
    for name in ("qwen2_vl", "qwen3_vl"):
        found[f"{name} with bounds"] = Setup.of(name).checkpoint.family()
        found[f"{name} with bounds"].pixel_bounds = BOUNDS
    return found


def official(family: Family, pixels: np.ndarray) -> torch.Tensor:
    """What the official processor makes of all full-size frames in one call, normalised."""
    if len(pixels) == 1 and "qwen" in family.config.model_type:
        pixels = pixels.repeat(2, axis=0)
    frames = torch.from_numpy(pixels).permute(0, 3, 1, 2)
    size = getattr(family, "_size", lambda frames: {})(len(frames))
    batch = family.processor(videos=[frames], do_sample_frames=False, return_tensors="pt", **size)
    made = batch["pixel_values_videos"]
    return made[0] if made.dim() == 5 else made


def with_broken_packet(data: bytes, number: int) -> bytes:
    """The file with zeros in the place of one packet."""
    with av.open(io.BytesIO(data)) as video:
        packet = [packet for packet in video.demux(video=0) if packet.size][number]
    return data[: packet.pos] + bytes(packet.size) + data[packet.pos + packet.size :]


def grown(width: int, height: int) -> bytes:
    """A transport stream whose picture size changes in the middle."""
    second = encode_video(container="mpegts", size=(128, 96), ticks_ms=range(3000, 6000, 100))
    return encode_video(container="mpegts", size=(width, height)) + second


VIDEOS: dict[str, Callable[[], bytes]] = {
    "odd sizes": lambda: encode_video(count=8, size=(197, 131), pixel_format="yuv444p"),
    "odd number of frames": lambda: encode_video(count=5, size=(320, 180)),
    "one frame": lambda: encode_video(count=1, size=(90, 200)),
    "turned": lambda: encode_video(count=4, size=(320, 180), rotation=90),
    "upside down": lambda: encode_video(count=4, size=(320, 180), rotation=180),
    "another size in the middle": lambda: grown(320, 180),
    "a lost frame": lambda: with_broken_packet(
        encode_video(count=8, size=(640, 480), codec="mjpeg", pixel_format="yuvj420p"), 3
    ),
    "smaller than a patch": lambda: encode_video(count=2, size=(20, 18)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("videos")
    for name, make in VIDEOS.items():
        (home / name).write_bytes(make())
    return {name: home / name for name in VIDEOS}


@pytest.mark.parametrize("decoder", ["auto", "decord"])
@pytest.mark.parametrize("name", VIDEOS)
def test_frames_resized_when_decoded_equal_the_processors(
    name: str, decoder: str, files: dict[str, Path], families: dict[str, Family]
) -> None:
    config = VideoConfig(fps=10 if name != "another size in the middle" else 1, decoder=decoder)
    full = read_video(str(files[name]), config)
    assert ("1 sampled frames are lost" in full.warnings) == (name == "a lost frame")
    for key, family in families.items():
        small = read_video(str(files[name]), config, resizer=family.resizing)
        inputs = family.inputs(small.pixels, small.seconds)
        expected = official(family, full.pixels)
        ours = family._normalised(inputs, ON_CPU)
        assert torch.equal(ours, expected), key
        assert (small.warnings, small.seconds.tolist()) == (full.warnings, full.seconds.tolist())


def test_a_lost_frame_changes_the_size_that_was_planned(families: dict[str, Family]) -> None:
    """So that the test above does decode a video again."""
    for name in ("qwen2_vl with bounds", "qwen3_vl with bounds"):
        family = families[name]
        assert family.resizing(8, 480, 640).size != family.resizing(7, 480, 640).size


def test_a_shape_that_the_processor_refuses_is_an_error_of_the_video(
    tmp_path: Path, families: dict[str, Family]
) -> None:
    (tmp_path / "strip.mkv").write_bytes(encode_video(count=2, size=(2048, 8), codec="mpeg4", container="matroska"))
    with pytest.raises(VideoError, match=r"strip.mkv: absolute aspect ratio must be smaller than 200"):
        read_video(str(tmp_path / "strip.mkv"), VideoConfig(), resizer=families["qwen2_vl"].resizing)


def test_the_cap_counts_the_frames_as_they_are_kept(tmp_path: Path, families: dict[str, Family]) -> None:
    (tmp_path / "a.mp4").write_bytes(encode_video(count=4, size=(320, 240)))
    resizer = families["llava_onevision"].resizing
    kept = 4 * 98 * 98 * 3
    config = VideoConfig(fps=10, max_decoded_bytes=kept)
    assert read_video(str(tmp_path / "a.mp4"), config, resizer=resizer).pixels.nbytes == kept
    for least, given_resizer in ((kept, resizer), (4 * 320 * 240 * 3, None)):
        with pytest.raises(VideoError, match=f"take {least} bytes, over max_decoded_bytes") as raised:
            read_video(str(tmp_path / "a.mp4"), VideoConfig(fps=10, max_decoded_bytes=least - 1), resizer=given_resizer)
        assert raised.value.code == "too_many_pixels"


sizes = st.tuples(st.integers(2, 70), st.integers(2, 70))  # torch refuses some pictures of one pixel


@given(sizes, sizes, st.integers(0, 2**32), st.booleans())
def test_bicubic_integers_equal_torchvisions_on_a_cpu(
    size: tuple[int, int], resized: tuple[int, int], seed: int, is_black_and_white: bool
) -> None:
    frames = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (2, 3, *size), dtype=np.uint8))
    frames = (frames > 127).to(torch.uint8) * 255 if is_black_and_white else frames  # which overshoots most
    assert torch.equal(resize_bicubic(frames, resized), resize_on_device(frames, resized, resample=3))


FILM = [((1080, 1920), (392, 728)), ((1920, 1080), (728, 392)), ((240, 426), (308, 560)), ((720, 1280), (384, 384))]


@pytest.mark.parametrize(("size", "resized"), FILM)
def test_bicubic_integers_equal_torchvisions_at_the_sizes_of_film(
    size: tuple[int, int], resized: tuple[int, int]
) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, *size), dtype=np.uint8))
    assert torch.equal(resize_bicubic(frames, resized), resize_on_device(frames, resized, resample=3))


@pytest.mark.gpu
@pytest.mark.parametrize(("size", "resized"), FILM)
def test_a_gpu_resizes_as_a_cpu(size: tuple[int, int], resized: tuple[int, int]) -> None:
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 3, *size), dtype=np.uint8))
    on_gpu = resize_on_device(frames.cuda(), resized, resample=3)
    assert on_gpu.is_cuda
    assert torch.equal(on_gpu.cpu(), resize_on_device(frames, resized, resample=3))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl", "llava_next_video"])
def test_frames_on_a_gpu_make_the_same_prompt(name: str) -> None:
    setup = Setup.of(name)
    full = setup.checkpoint.load_model("cuda")
    frames = torch.from_numpy(setup.pixels).permute(0, 3, 1, 2).cuda()
    small = setup.family.resizing(*setup.pixels.shape[:3]).on_device(frames).permute(0, 2, 3, 1)
    inputs = setup.family.inputs(small, setup.inputs.seconds)
    assert inputs.page_locked() is inputs
    expected = setup.family.prompt(full, setup.inputs.page_locked())
    assert torch.equal(setup.family.prompt(full, inputs).embeds, expected.embeds)
