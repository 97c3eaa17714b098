"""From frames to prompt: pixels equal the official processor's, ids equal those of the whole text, positions fit."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import transformers
from checkpoints import FAMILIES
from family_setup import QUESTIONS, Setup, video

from sttm.errors import ModelError
from sttm.models.mrope import mrope_positions
from sttm.models.qwen2_5_vl import Qwen25VL
from sttm.models.qwen3_vl import Qwen3VL

LLAVA = tuple(name for name in FAMILIES if name.startswith("llava"))
QWEN = tuple(name for name in FAMILIES if name.startswith("qwen"))


@pytest.fixture(scope="module", params=FAMILIES)
def setup(request: pytest.FixtureRequest) -> Setup:
    return Setup.of(request.param)


@pytest.mark.parametrize(("frames", "height", "width"), [(8, 112, 140), (5, 61, 200), (2, 200, 90)])
def test_pixels_equal_the_official_processors(setup: Setup, frames: int, height: int, width: int) -> None:
    """Resizing in uint8 and normalising later gives bit for bit what the processor computes in one step."""
    pixels = video(frames, height, width)
    inputs = setup.family.preprocess(pixels, np.arange(frames) / 2.0)
    official = setup.family.processor(
        videos=[torch.from_numpy(pixels).permute(0, 3, 1, 2)], do_sample_frames=False, return_tensors="pt"
    )["pixel_values_videos"]
    assert inputs.pixels.dtype == np.uint8
    ours = setup.family._normalised(inputs, setup.full)
    assert torch.equal(ours, official.view(ours.shape))
    assert setup.family.prompt(setup.full, inputs).grid == inputs.grid


def test_one_frame_is_a_video(setup: Setup) -> None:
    inputs = setup.family.preprocess(video(2)[:1], np.zeros(1))
    prompt = setup.family.prompt(setup.full, inputs)
    assert prompt.grid[0] == len(prompt.frame_seconds) == 1
    assert len(prompt.visual) == inputs.tokens


@pytest.mark.parametrize("name", LLAVA)
def test_frames_in_several_passes_equal_one_pass(name: str) -> None:
    setup = Setup.of(name)
    inputs = setup.family.preprocess(video(70), np.arange(70.0))
    with torch.inference_mode():
        ours, _ = setup.family.encode(setup.full, inputs)
        whole = setup.family.features(setup.full, setup.family._normalised(inputs, setup.full))
    torch.testing.assert_close(ours[: len(whole)], whole, rtol=1e-5, atol=1e-5)


def test_prefix_and_question_ids_equal_those_of_the_whole_text(setup: Setup) -> None:
    family, inputs = setup.family, setup.inputs
    for question in QUESTIONS:
        content = [{"type": "video"}, {"type": "text", "text": question}]
        text = family.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        if isinstance(family, Qwen3VL):
            whole = "<|vision_start|>" + family.video_token + "<|vision_end|>"
            text = text.replace(whole, _qwen3_video(setup))
        else:
            text = text.replace(family.video_token, family.video_token * len(family.is_cell(inputs)))
        ids = family.prefix_ids(inputs) + family.question_ids(question)
        assert ids == family.tokenizer(text)["input_ids"]


def _qwen3_video(setup: Setup) -> str:
    """The official processor's text for the video, sampled at 2 fps."""
    image_processor = transformers.Qwen2VLImageProcessor()
    processor = transformers.Qwen3VLProcessor(image_processor, setup.family.tokenizer, setup.family.processor)
    metadata = transformers.video_utils.VideoMetadata(
        total_num_frames=8, fps=2.0, frames_indices=list(range(8)), duration=4.0
    )
    t, h, w = setup.inputs.grid
    grid = torch.tensor([[t, 2 * h, 2 * w]])
    return processor.replace_video_token({"video_grid_thw": grid, "video_metadata": [metadata]}, 0)


def test_visual_places_are_the_cells_of_the_grid(setup: Setup) -> None:
    prompt, family = setup.prompt, setup.family
    assert len(prompt.visual) == setup.inputs.tokens
    assert set(prompt.ids[prompt.visual].tolist()) == {family.tokenizer.convert_tokens_to_ids(family.video_token)}


@pytest.mark.parametrize("name", QWEN)
@pytest.mark.parametrize("fps", [1.0, 2.0])
def test_positions_equal_transformers_up_to_the_end_of_the_video(name: str, fps: float) -> None:
    """After the video, transformers 5 continues at start + max(H, W), and we continue at the largest position plus one.

    Both are the same for a block of one frame, so that all positions of Qwen3-VL are equal. If a grid frame takes less
    than one second, Qwen2.5-VL in transformers 5.17 truncates the time step to 0, so that is not tested here.
    """
    setup = Setup.of(name)
    family = setup.family
    inputs = family.preprocess(setup.pixels, np.arange(8) / fps)
    ids = torch.tensor(family.prefix_ids(inputs))
    ours, next_position = family.position_ids(ids, inputs)
    is_video = ids == family.tokenizer.convert_tokens_to_ids(family.video_token)
    t, h, w = inputs.grid
    extra = {"second_per_grid_ts": [2 / fps]} if name == "qwen2_5_vl" else {}
    grid = torch.tensor([[t, 2 * h, 2 * w]])
    theirs, _ = setup.plain.model.get_rope_index(ids[None], 2 * is_video[None].int(), video_grid_thw=grid, **extra)
    end = int(is_video.nonzero()[-1]) + 1
    assert torch.equal(ours[:, :end], theirs[:, 0, :end])
    assert next_position == int(ours.max()) + 1
    after = int(ours[:, :end].max()) + 1
    assert torch.equal(ours[:, end:], torch.arange(after, after + len(ids) - end).expand(3, -1))
    if name == "qwen3_vl":
        assert torch.equal(ours, theirs[:, 0])


def test_qwen2_5_steps_through_time_in_fractions_of_a_second() -> None:
    setup = Setup.of("qwen2_5_vl")
    assert isinstance(setup.family, Qwen25VL)
    for fps, times in ((2.0, [0, 2, 4, 6]), (4.0, [0, 1, 2, 3]), (8.0, [0, 0, 1, 1]), (1.0, [0, 4, 8, 12])):
        inputs = setup.family.preprocess(setup.pixels, np.arange(8) / fps)
        positions, _ = setup.family.position_ids(torch.tensor(setup.family.prefix_ids(inputs)), inputs)
        of_video = positions[0, setup.prompt.visual].view(inputs.grid)[:, 0, 0]
        assert (of_video - of_video[0]).tolist() == times


def test_uneven_frame_times_do_not_shift_a_step() -> None:
    """Frame times at 29.97 fps are divided and multiplied back; rounding must not lose a position."""
    is_visual = torch.ones(200, dtype=torch.bool)
    positions, _ = mrope_positions(is_visual, (200, 1, 1), time_step=1.9999999999)
    assert positions[0].tolist() == list(range(0, 400, 2))


def test_mrope_numbers_text_and_blocks() -> None:
    is_visual = torch.tensor([False, False, True, True, False])
    positions, next_position = mrope_positions(is_visual, (1, 1, 2))
    assert positions.tolist() == [[0, 1, 2, 2, 4], [0, 1, 2, 2, 4], [0, 1, 2, 3, 4]]
    assert next_position == 5


def test_mrope_refuses_a_run_that_is_no_block() -> None:
    with pytest.raises(ValueError, match="a run of 3 visual tokens is not a block of 1x1x2"):
        mrope_positions(torch.ones(3, dtype=torch.bool), (1, 1, 2))


@pytest.fixture
def onevision() -> Iterator[Setup]:
    setup = Setup.of("llava_onevision")
    yield setup
    del setup.family.config.mm_newline_position


@pytest.mark.parametrize(("mode", "newlines"), [("grid", 8 * 4), ("frame", 8), ("one_token", 1), ("no_token", 0)])
def test_newlines_stand_where_the_config_says(onevision: Setup, mode: str, newlines: int) -> None:
    onevision.family.config.mm_newline_position = mode
    prompt = onevision.family.prompt(onevision.full, onevision.inputs)
    start = int(prompt.visual[0])
    places = prompt.embeds[start:]
    assert len(places) == onevision.inputs.tokens + newlines
    is_newline = (places == onevision.full.model.image_newline).all(1)
    expected = {
        "grid": (torch.arange(len(places)) + 1) % 5 == 0,
        "frame": (torch.arange(len(places)) + 1) % 17 == 0,
        "one_token": torch.arange(len(places)) == len(places) - 1,
        "no_token": torch.zeros(len(places), dtype=torch.bool),
    }[mode]
    assert torch.equal(is_newline, expected)
    assert torch.equal(places[~is_newline], onevision.prompt.embeds[onevision.prompt.visual])
    assert torch.equal(prompt.visual - start, (~expected).nonzero()[:, 0])


def test_unknown_newline_position_is_refused(onevision: Setup) -> None:
    onevision.family.config.mm_newline_position = "row"
    with pytest.raises(ModelError, match=r"'row'.*grid, frame, one_token or no_token"):
        onevision.family.prefix_ids(onevision.inputs)


def test_bos_is_written_once() -> None:
    family = Setup.of("llava_next_video").family
    bos = family.tokenizer.bos_token_id
    assert family.prefix_ids(Setup.of("llava_next_video").inputs).count(bos) == 1
    assert bos not in family.question_ids("Why?")


def test_template_without_a_video_is_refused() -> None:
    family = Setup.of("qwen2_vl").checkpoint.family(with_processor=False)
    family.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(ModelError, match="chat template"):
        family.question_ids("Why?")
