"""Checkpoints in the layout of their first release give the same model, prompt and pixels as in today's layout."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES
from family_setup import HALF, Setup, video
from published import TEXT_TEMPLATE, write_published

from sttm.engine.answer import Continuation
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.engine.ready_video import ready
from sttm.errors import ConfigError, ModelError
from sttm.models.base import Family
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.pixel_bounds import PixelBounds

QWEN = tuple(name for name in FAMILIES if name.startswith("qwen"))
LLAVA = tuple(name for name in FAMILIES if name not in QWEN)
OF_IMAGES = ("qwen2_vl", "qwen2_5_vl")  # their checkpoints describe the preprocessing of images only
TOKEN = {"qwen2_vl": 28**2, "qwen2_5_vl": 28**2, "qwen3_vl": 32**2}  # pixels of one token


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("published")
    return {name: write_published(Setup.of(name).folder, home / name) for name in FAMILIES}


def opened(folder: Path, frame_pixels: int | None = None) -> Checkpoint:
    return Checkpoint.open(ModelConfig(path=str(folder), dtype="float32", frame_pixels=frame_pixels))


def side_tokens(family: Family, pixels: np.ndarray) -> int:
    """Number of tokens of one grid frame."""
    _, h, w = family.preprocess(pixels, np.arange(len(pixels)) / 2).grid
    return h * w


@pytest.mark.parametrize("name", FAMILIES)
def test_published_layout_equals_its_twin(name: str, folders: dict[str, Path]) -> None:
    twin, published = Setup.of(name), Setup(folders[name])
    ours, theirs = published.full.state_dict(), twin.full.state_dict()
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    question = twin.questions()[1]
    assert published.questions() == twin.questions()
    assert published.family.prefix_ids(twin.inputs) == twin.family.prefix_ids(twin.inputs)
    ends = twin.family.tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert published.stop == set(ends)

    family = twin.checkpoint.family()
    family.pixel_bounds = published.family.pixel_bounds
    expected = family.preprocess(twin.pixels, twin.inputs.seconds)
    assert published.inputs.grid == expected.grid
    assert np.array_equal(published.inputs.pixels, expected.pixels)
    pixels = published.family._normalised(published.inputs, published.full)
    assert torch.equal(pixels, family._normalised(expected, twin.full))

    logits = []
    for model in (published.checkpoint.load_language_model("cpu"), twin.model):
        cache = prefill(model, twin.prompt, HALF, PrefillConfig()).cache
        logits.append(Continuation(model, ready(model, cache), [question], 0).start())
    torch.testing.assert_close(*logits, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("text_files", [(), ("chat_template.jinja",)])
@pytest.mark.parametrize("vision_file", ["chat_template.json", "chat_template.jinja"])
def test_template_in_a_file_of_its_own_goes_before_others(
    folders: dict[str, Path], tmp_path: Path, vision_file: str, text_files: tuple[str, ...]
) -> None:
    """A template file goes before tokenizer_config.json, and JSON before Jinja, as in transformers' processors."""
    folder = Path(shutil.copytree(folders["qwen2_5_vl"], tmp_path / "copy"))
    whole = (folder / "chat_template.json").read_text()
    (folder / "chat_template.json").unlink()
    for name in text_files:
        (folder / name).write_text(TEXT_TEMPLATE)
    (folder / vision_file).write_text(whole if "json" in vision_file else json.loads(whole)["chat_template"])
    twin = Setup.of("qwen2_5_vl").family
    assert opened(folder).family(with_processor=False).question_ids("Why?") == twin.question_ids("Why?")


def test_template_of_text_alone_is_refused_before_any_video(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen2_5_vl"], tmp_path / "copy"))
    (folder / "chat_template.json").unlink()
    with pytest.raises(ModelError, match=rf"{folder}: the chat template .*TypeError.*folder as chat_template.json"):
        opened(folder).family(with_processor=False)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_limits_of_images_do_not_count_for_videos(folders: dict[str, Path], name: str) -> None:
    """Qwen's own bounds count: 128 to 768 tokens for two frames, and 24,576 for a video of up to 366 frames."""
    family = opened(folders[name]).family()
    assert 700 < side_tokens(family, np.zeros((2, 1080, 1920, 3), np.uint8)) <= 768
    assert 128 <= side_tokens(family, np.zeros((2, 60, 80, 3), np.uint8)) < 160
    assert family.pixel_bounds is not None
    for frames, most in ((64, 768), (128, 384), (256, 192), (1024, 134.4)):
        assert family.pixel_bounds.for_video(frames) == (128 * 28**2, int(most * 28**2))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_a_checkpoint_says_of_videos_counts(name: str) -> None:
    assert Setup.of(name).checkpoint.pixel_bounds is None


def test_processor_config_may_say_it_too(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["qwen2_vl"], tmp_path / "copy"))
    size = {"shortest_edge": 28**2, "longest_edge": 9 * 28**2}
    (folder / "processor_config.json").write_text(json.dumps({"video_processor": {"size": size}}))
    checkpoint = opened(folder)
    assert checkpoint.pixel_bounds is None
    assert side_tokens(checkpoint.family(), video(4, 300, 300)) == 9


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("frames", [2, 8])
def test_frame_pixels_go_before_what_the_checkpoint_says(folders: dict[str, Path], name: str, frames: int) -> None:
    for folder in (Setup.of(name).folder, folders[name]):
        family = opened(folder, frame_pixels=25 * TOKEN[name]).family()
        assert side_tokens(family, video(frames, 400, 400)) == 25


@pytest.mark.parametrize("name", LLAVA)
def test_frame_pixels_mean_nothing_where_frames_have_one_size(folders: dict[str, Path], name: str) -> None:
    with pytest.raises(ConfigError, match=r"model.frame_pixels=4096: .* one size"):
        opened(folders[name], frame_pixels=4096).family()


@pytest.mark.parametrize("name", QWEN)
def test_cap_of_transformers_is_what_the_checkpoint_says_and_off_by_default(
    folders: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The default of transformers is about to change, which would change the grids of an index."""
    assert opened(folders[name]).family().processor.cap_pixels_per_frame is False
    folder = Path(shutil.copytree(Setup.of(name).folder, tmp_path / "copy"))
    path = folder / "video_preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "cap_pixels_per_frame": True}))
    assert opened(folder).family().processor.cap_pixels_per_frame is True


def test_bounds_leave_a_frame_its_least() -> None:
    bounds = PixelBounds(100, 500, 2000)
    assert [bounds.for_video(frames) for frames in (1, 4, 8, 100)] == [(100, 500), (100, 500), (100, 250), (100, 105)]
    assert bounds.with_frame_pixels(60) == PixelBounds(60, 60)
    assert replace(bounds, total=None).for_video(100) == (100, 500)
