"""Grid frames that look like an earlier one are found, and take its features instead of being encoded."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES
from family_setup import Setup, video
from hypothesis import given
from hypothesis import strategies as st

from sttm.config import IndexConfig, index_recipe
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.still_frames import first_alike

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 30, 31, 3), dtype=np.uint8)


def alike(shown: list[int], frames_a_token: int, levels: float = 0.0) -> list[int]:
    return first_alike(PICTURES[shown], frames_a_token, levels).tolist()


def test_a_frame_takes_the_features_of_the_first_equal_one() -> None:
    assert alike([0, 0, 1, 1, 0, 2], 1) == [0, 0, 2, 2, 0, 5]
    assert alike([0, 1, 0, 1, 1, 0, 0, 1], 2) == [0, 0, 2, 0]
    assert alike([0, 1, 1, 1, 1], 2) == [0, 1, 1], "the last frame is repeated"
    assert alike([3], 2) == alike([3], 1) == [0]


shown_pictures = st.lists(st.integers(0, 3), min_size=1, max_size=12)


@given(shown_pictures, st.integers(1, 3))
def test_equal_frames_are_those_that_a_plain_comparison_finds(shown: list[int], frames_a_token: int) -> None:
    padded = shown + shown[-1:] * (-len(shown) % frames_a_token)
    groups = [padded[at : at + frames_a_token] for at in range(0, len(padded), frames_a_token)]
    assert alike(shown, frames_a_token) == [groups.index(group) for group in groups]
    assert first_alike(torch.from_numpy(PICTURES[shown]), frames_a_token).tolist() == alike(shown, frames_a_token)


def test_nearly_equal_frames_are_measured_in_their_worst_block() -> None:
    still = np.full((6, 60, 90, 3), 100, np.uint8)
    still[1:] += 1  # brighter by one level
    still[3, :14, :28] += 8  # half of one block brighter by eight more
    assert first_alike(still, 1, 1.0).tolist() == [0, 0, 0, 3, 0, 0]
    assert first_alike(still, 1, 5.0).tolist() == [0, 0, 0, 0, 0, 0]
    assert first_alike(still, 1, 0.9).tolist() == [0, 1, 1, 3, 1, 1]
    assert first_alike(still, 2, 2.0).tolist() == [0, 1, 1]
    assert first_alike(torch.from_numpy(still), 2, 2.0).tolist() == [0, 1, 1]


def test_a_slow_change_is_noticed_in_the_end() -> None:
    fading = np.arange(10, 20, dtype=np.uint8)[:, None, None, None].repeat(30, 1).repeat(30, 2).repeat(3, 3)
    assert first_alike(fading, 1, 2.0).tolist() == [0, 0, 0, 3, 3, 3, 6, 6, 6, 9]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("frames", [8, 7])
def test_reused_features_are_those_that_the_tower_gives(name: str, frames: int) -> None:
    setup = Setup.of(name)
    family, size = setup.family, setup.family.frames_a_token
    pictures = video(2 * size)
    pixels = np.concatenate([pictures[:size], pictures[:size], pictures[size:], pictures[:size]] * 4)[:frames]
    inputs = family.preprocess(pixels, np.arange(frames) / 2.0)
    encoded = np.unique(inputs.features_from)
    assert len(encoded) < inputs.grid[0]
    alone = replace(inputs, features_from=np.arange(inputs.grid[0]))
    with torch.inference_mode():
        reused, levels = family.encode(setup.full, inputs)
        expected, expected_levels = family.encode(setup.full, alone)
    for ours, theirs in zip((reused, *levels), (expected, *expected_levels), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * max(1.0, float(theirs.abs().max())))
    cells = reused[family.is_cell(inputs)].unflatten(0, (inputs.grid[0], -1))
    assert torch.equal(cells, cells[torch.from_numpy(inputs.features_from)])
    rows = [len(family._normalised(x, setup.full)) for x in (inputs, alone)]
    assert rows[0] * inputs.grid[0] == rows[1] * len(encoded), "the tower gets the encoded frames only"


def test_features_of_encoded_frames_are_those_of_a_video_of_these_frames_bit_for_bit() -> None:
    setup = Setup.of("qwen3_vl")
    pixels = video(4)
    twice = setup.family.preprocess(pixels[[0, 1, 0, 1, 2, 3]], np.arange(6.0))
    once = setup.family.preprocess(pixels, np.arange(4.0))
    assert twice.features_from.tolist() == [0, 0, 2]
    once = replace(once, pixels=twice.pixels[[0, 1, 4, 5]], grid=(2, *twice.grid[1:]))  # of the size of six frames
    with torch.inference_mode():
        (features, levels), (others, other_levels) = (setup.family.encode(setup.full, x) for x in (twice, once))
    for ours, theirs in zip((features, *levels), (others, *other_levels), strict=True):
        assert torch.equal(ours.unflatten(0, (3, -1))[[0, 2]].flatten(0, 1), theirs)


def test_equal_frames_change_no_recipe_and_nearly_equal_ones_do() -> None:
    def recipe(**settings: float) -> dict:
        config = IndexConfig(model=ModelConfig(path="tiny", **settings))
        return index_recipe(config, Checkpoint.open(config.model))

    assert recipe(still_levels=0) == recipe()
    assert "still_levels" not in recipe().get("preprocess", {})
    assert recipe(still_levels=2)["preprocess"]["still_levels"] == 2
    family = Checkpoint.open(ModelConfig(path="tiny", still_levels=2)).family()
    grey = np.full((4, 112, 112, 3), 90, np.uint8)
    grey[2:] += 2
    assert family.preprocess(grey, np.arange(4.0)).features_from.tolist() == [0, 0]


@pytest.mark.gpu
@pytest.mark.parametrize("name", FAMILIES)
def test_a_gpu_reuses_features_as_a_cpu(name: str) -> None:
    setup = Setup.of(name)
    full = setup.checkpoint.load_model("cuda")
    pixels = video(8)[[0, 1, 2, 3, 0, 1, 0, 1]]
    inputs = setup.family.preprocess(pixels, np.arange(8) / 2.0)
    on_gpu = setup.family.inputs(torch.from_numpy(inputs.pixels).cuda(), inputs.seconds)
    assert on_gpu.features_from.tolist() == inputs.features_from.tolist()
    with torch.inference_mode():
        ours, _ = setup.family.encode(full, on_gpu)
        expected, _ = setup.family.encode(setup.full, inputs)
    torch.testing.assert_close(ours.cpu(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
