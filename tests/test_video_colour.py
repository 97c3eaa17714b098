"""RGB made on a device: the very bytes that swscale makes on a CPU."""

import av
import numpy as np
import pytest
import torch

from sttm.video.colour import colour_matrix, to_rgb

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SPACES = [1, 2, 4, 5, 6, 7, 9]
SIZES = [(256, 256), (1366, 768), (62, 34), (854, 480), (18, 10)]  # width, height


def planes(width: int, height: int, seed: int) -> tuple[np.ndarray, torch.Tensor, torch.Tensor]:
    """Random planes as PyAV takes them (yuv420p), and as a GPU decoder gives them (Y, and U beside V)."""
    picture = np.random.default_rng(seed).integers(0, 256, (height * 3 // 2, width), dtype=np.uint8)
    u, v = picture[height:].reshape(2, height // 2, width // 2)
    return picture, torch.from_numpy(picture[:height]), torch.from_numpy(np.stack([u, v], -1))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("colour_range", [1, 2], ids=["limited", "full"])
@pytest.mark.parametrize("space", SPACES)
def test_colours_are_those_of_swscale(space: int, colour_range: int, device: str) -> None:
    for width, height in SIZES:
        picture, luma, chroma = planes(width, height, space)
        frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
        frame.colorspace, frame.color_range = space, colour_range
        matrix = colour_matrix(space, is_full_range=colour_range == 2)
        assert matrix is not None
        rgb = to_rgb(luma.to(device), chroma.to(device), matrix).cpu().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(rgb, frame.to_ndarray(format="rgb24"))


def test_a_colour_space_without_a_table_has_no_matrix() -> None:
    assert colour_matrix(8, is_full_range=False) is None  # YCgCo
