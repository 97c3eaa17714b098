"""Checkpoints in the layout of the original LLaVA code equal their twins in transformers' layout."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import write_checkpoint, write_lmms_lab
from family_setup import HALF, NO_MERGE, QUESTIONS, Setup, video
from published import TEXT_TEMPLATE, write_tokenizer_parts

from sttm.engine.answer import Continuation
from sttm.engine.prefill import PrefillConfig, prefill
from sttm.engine.ready_video import ready
from sttm.errors import ModelError
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.llava_onevision import LlavaOnevision


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Setup, Setup]:
    """The same weights in the original layout and in transformers'."""
    home = tmp_path_factory.mktemp("twins")
    rope = {"rope_type": "default", "rope_theta": 50000.0}
    source = write_checkpoint("llava_onevision", home / "hf", text_config={"rope_parameters": rope})
    return Setup(write_lmms_lab(source, home / "original")), Setup(source)


def test_weights_equal_the_twins(twins: tuple[Setup, Setup]) -> None:
    original, hf = (setup.full.state_dict() for setup in twins)
    assert set(original) == set(hf)
    assert all(torch.equal(original[name], hf[name]) for name in hf)


def test_logits_equal_the_twins_on_the_same_tokens(twins: tuple[Setup, Setup]) -> None:
    """Both run prefill, merge, cache and question. Only chat template and pixel statistics differ between the two."""
    _, hf = twins
    question = hf.questions()[0]
    logits = []
    for setup in twins:
        cache = prefill(setup.model, hf.prompt, HALF, PrefillConfig()).cache
        logits.append(Continuation(setup.model, ready(setup.model, cache), [question], 0).start())
    torch.testing.assert_close(*logits, rtol=1e-5, atol=2e-6)  # BLAS sums differently where weights lie differently


def test_video_features_equal_the_twins_on_the_same_pixels(twins: tuple[Setup, Setup]) -> None:
    _, hf = twins
    with torch.inference_mode():
        pixels = hf.family._normalised(hf.inputs, hf.full)  # type: ignore[attr-defined]
        features = [setup.family.features(setup.full, pixels) for setup in twins]  # type: ignore[attr-defined]
    torch.testing.assert_close(*features, rtol=1e-5, atol=2e-6)


def test_language_model_alone_equals_the_one_inside(twins: tuple[Setup, Setup]) -> None:
    original, _ = twins
    alone = original.checkpoint.load_language_model("cpu")
    inside = original.model
    assert torch.equal(alone.head.weight, inside.head.weight)
    for ours, theirs in zip(alone.text.parameters(), inside.text.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_pixels_are_siglips(twins: tuple[Setup, Setup]) -> None:
    """Frames become squares of the tower's size with values from -1 to 1."""
    original, _ = twins
    inputs = original.family.preprocess(video(2, 120, 50), np.arange(2.0))
    assert inputs.pixels.shape == (2, 98, 98, 3)
    black, white = (
        original.family._normalised(  # type: ignore[attr-defined]
            original.family.preprocess(np.full((1, 98, 98, 3), value, np.uint8), np.zeros(1)), original.full
        )
        for value in (0, 255)
    )
    torch.testing.assert_close((black.unique(), white.unique()), (torch.tensor([-1.0]), torch.tensor([1.0])))


def test_prompt_is_the_original_qwen_conversation(twins: tuple[Setup, Setup]) -> None:
    family = twins[0].family
    text = family.tokenizer.decode([i for i in twins[0].prompt.ids.tolist() if i != family._id("<video>")])
    assert text == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    question = family.tokenizer.decode(family.question_ids("What is it?"))
    assert question == "\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"


def test_newline_position_comes_from_the_original_config(twins: tuple[Setup, Setup], tmp_path: Path) -> None:
    grid = Setup(write_lmms_lab(twins[1].folder, tmp_path / "grid", mm_newline_position="grid"))
    assert isinstance(grid.family, LlavaOnevision)
    t, h, w = grid.inputs.grid
    assert len(grid.family.is_cell(grid.inputs)) == t * h * (w + 1)
    assert len(twins[0].family.is_cell(twins[0].inputs)) == t * h * w + 1
    assert grid.prefill(NO_MERGE).cache.tokens == (len(grid.prompt.ids), len(grid.prompt.ids))
    kept = len(grid.prompt.ids) - t * h * w // 2
    assert grid.prefill(HALF).cache.tokens == (len(grid.prompt.ids), kept)


@pytest.mark.parametrize("model_type", ["llava", "llava_qwen"])
def test_tokenizer_may_lack_its_json(twins: tuple[Setup, Setup], tmp_path: Path, model_type: str) -> None:
    original = twins[0].folder
    folder = Path(shutil.copytree(original, tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": model_type}))
    write_tokenizer_parts(original, folder, tokenizer_class="Qwen2Tokenizer", chat_template=TEXT_TEMPLATE)
    (folder / "tokenizer.json").unlink()
    family = Checkpoint.open(ModelConfig(path=str(folder))).family()
    assert family.prefix_ids(twins[0].inputs) == twins[0].family.prefix_ids(twins[0].inputs)
    assert [family.question_ids(text) for text in QUESTIONS] == twins[0].questions()


@pytest.mark.parametrize("name", ["mm_spatial_pool_stride", "mm_patch_merge_type", "rope_scaling"])
def test_null_is_the_default_where_the_original_code_has_it_so(
    twins: tuple[Setup, Setup], tmp_path: Path, name: str
) -> None:
    folder = twins[0].folder
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, name: None}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    silent, plain = (Checkpoint.open(ModelConfig(path=str(path))).config.to_dict() for path in (tmp_path, folder))
    assert silent == plain


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architectures": ["LlavaLlamaForCausalLM"]}, "LlavaLlamaForCausalLM.*only LlavaQwenForCausalLM"),
        ({"mm_vision_tower": "openai/clip-vit-large-patch14-336"}, "clip-vit-large.*is not google/siglip"),
        ({"mm_spatial_pool_stride": 4}, "mm_spatial_pool_stride 4 is not supported, only 2"),
        ({"mm_spatial_pool_mode": None}, "mm_spatial_pool_mode None is not supported, only 'bilinear'"),
        ({"mm_spatial_pool_mode": "average"}, "mm_spatial_pool_mode 'average' is not supported, only 'bilinear'"),
        ({"add_faster_video": True}, "add_faster_video"),
    ],
)
def test_other_models_of_the_original_code_are_refused(
    twins: tuple[Setup, Setup], tmp_path: Path, settings: dict, message: str
) -> None:
    raw = json.loads((twins[0].folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, **settings}))
    (tmp_path / "model.safetensors").write_bytes((twins[0].folder / "model.safetensors").read_bytes())
    with pytest.raises(ModelError, match=message):
        Checkpoint.open(ModelConfig(path=str(tmp_path))).family_class  # noqa: B018
