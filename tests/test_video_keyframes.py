"""Key frames near the sampled times are taken in their place, at their own true times, and only they are decoded."""

import io
from pathlib import Path

import numpy as np
import pytest
from media import encode_video

import sttm
from jobs.explain import explain
from sttm.config import IndexConfig, index_recipe
from sttm.models.checkpoint import Checkpoint
from sttm.store.store import Store
from sttm.video.decode import VideoConfig, read_video
from sttm.video.keyframes import moved_to_entries
from sttm.video.pyav import read_index
from sttm.video.selection import select

# Key frames at 0, 0.8, 1.6, ...
CLIP = {"count": 60, "rate": 10, "options": {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2"}}


def clip(folder: Path) -> Path:
    path = folder / "clip.mp4"
    path.write_bytes(encode_video(**CLIP))
    return path


@pytest.mark.parametrize(
    ("tolerance_s", "expected"),
    [(0.1, [0, 1, 2, 3, 4, 5]), (0.25, [0, 0.8, 2, 3.2, 4, 4.8]), (5, [0, 0.8, 1.6, 3.2, 4, 4.8])],
)
def test_the_nearest_key_frame_is_taken_within_the_tolerance(
    tmp_path: Path, tolerance_s: float, expected: list[float]
) -> None:
    path = str(clip(tmp_path))
    exact = read_video(path, VideoConfig(fps=10))
    frames = read_video(path, VideoConfig(sampling="keyframes", keyframe_tolerance_s=tolerance_s))
    np.testing.assert_allclose(frames.seconds, expected, atol=1e-9)
    assert np.array_equal(frames.pixels, exact.pixels[np.round(frames.seconds * 10).astype(int)])
    assert (frames.asked, frames.left_out) == (6, 0)
    assert frames.shift is not None
    assert frames.shift.max_s <= tolerance_s


def test_only_the_key_frames_are_decoded() -> None:
    data = encode_video(**CLIP)
    index = read_index(io.BytesIO(data), "clip")
    taken, shift = moved_to_entries(index, np.arange(0, 60, 10), 0.5)
    spans = [s.packets for group in select(index, 0, index.pts[taken]) for s in group.segments]
    assert [len(packets) for packets in spans] == [1] * len(taken)
    assert shift.mean_s == pytest.approx((0 + 0.2 + 0.4 + 0.2 + 0 + 0.2) / 6)
    assert shift.max_s == pytest.approx(0.4)


def test_a_recipe_has_the_setting_only_if_it_is_on(qwen2_vl_folder: Path) -> None:
    config = IndexConfig.model_validate({"model": {"path": str(qwen2_vl_folder)}})
    checkpoint = Checkpoint.open(config.model)
    exact = index_recipe(config, checkpoint)["video"]
    assert not {"sampling", "keyframe_tolerance_s"} & exact.keys()
    video = VideoConfig(sampling="keyframes", keyframe_tolerance_s=2)
    by_keys = index_recipe(config.model_copy(update={"video": video}), checkpoint)["video"]
    assert by_keys == {**exact, "sampling": "keyframes", "keyframe_tolerance_s": 2.0}


def test_the_manifest_and_explain_say_how_far_the_frames_lie(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, store = clip(tmp_path), tmp_path / "store"
    keys = ["video.fps=1", "video.sampling=keyframes", "video.keyframe_tolerance_s=0.4"]
    row = sttm.index(path, store, overrides=keys)[0]
    sampling = Store.open(store).manifest(row.identity).facts.sampling
    assert (sampling.shift_mean_s, sampling.shift_max_s) == pytest.approx((1 / 6, 0.4))
    assert explain(str(path), str(store), set_=keys) == 0
    assert "which lie 0.17 s on average, 0.40 s at most away" in capsys.readouterr().out
