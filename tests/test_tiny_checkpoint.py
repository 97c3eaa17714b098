"""The built-in model is small enough to ship, loads like any checkpoint, and answers held-out questions."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.training.chat import CHAT_TEMPLATE, QuestionPacker, build_tokenizer
from jobs.training.packed_model import PackedModel, patchify
from sttm.models.processor import import_torchvision, load_video_processor
from sttm.synthetic import HELD_OUT_SEED, TASKS, questions, render, sample_scenes

FOLDER = Path(__file__).parents[1] / "sttm" / "models" / "tiny"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> Any:
    import_torchvision()
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32, local_files_only=True).eval()


@pytest.fixture(scope="module")
def packed(model: Any, tokenizer: Any) -> tuple[PackedModel, QuestionPacker]:
    packer = QuestionPacker(tokenizer, TASKS)
    return PackedModel(model, packer.prefix, packer.prefix_end, torch.float32, compiled=False), packer


def test_it_is_small_enough_to_ship(model: Any) -> None:
    assert sum(p.numel() for p in model.parameters()) <= 8_000_000
    assert (FOLDER / "model.safetensors").stat().st_size <= 16_000_000
    assert type(model).__name__ == "Qwen2VLForConditionalGeneration"


def test_the_tokenizer_is_what_the_training_job_builds_and_reads_any_text(tokenizer: Any) -> None:
    built = build_tokenizer()
    assert tokenizer.get_vocab() == built.get_vocab()
    assert tokenizer.chat_template == CHAT_TEMPLATE
    for text in ("What colour is the star?", "héllo 世界 🙂\t\n", "", "\x00\ufffd"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_frames_of_the_training_size_stay_as_they_are_and_patches_agree() -> None:
    processor = load_video_processor(FOLDER, "Qwen2VLVideoProcessor")
    clips = render(sample_scenes(HELD_OUT_SEED, 1, frames=8))
    out = processor(videos=[clips[0].permute(0, 3, 1, 2)], return_tensors="pt")
    assert out["video_grid_thw"].tolist() == [[4, 28, 28]]
    ours, _ = patchify(clips, torch.float32)
    torch.testing.assert_close(ours.flatten(0, 2), out["pixel_values_videos"], atol=2e-5, rtol=1e-4)
    wide = processor(videos=[torch.zeros(2, 3, 360, 640, dtype=torch.uint8)], return_tensors="pt")
    assert wide["video_grid_thw"][0].prod() <= 1.1 * 28 * 28


def test_held_out_questions_are_answered(packed: tuple[PackedModel, QuestionPacker]) -> None:
    """The accuracy over 4,096 held-out clips is 99.8 %. A bound of 95 % on two clips leaves room for one error."""
    forward, packer = packed
    right = count = 0
    for scene in sample_scenes(HELD_OUT_SEED + 700, 2):
        asked = questions(scene)
        answers = packer.pack([asked])
        with torch.no_grad():
            said = forward(render([scene]), answers).argmax(-1)
        right += int((said == answers.answer).all(-1).sum())
        count += len(asked)
    assert count > 30
    assert right / count >= 0.95


def test_the_library_answers_as_the_training_forward_does(
    packed: tuple[PackedModel, QuestionPacker], model: Any, tokenizer: Any
) -> None:
    """The prompt comes from the chat template. At 8 frames transformers' positions equal those of the training."""
    forward, packer = packed
    (scene,) = sample_scenes(HELD_OUT_SEED + 701, 1, frames=8)
    clips, asked = render([scene]), questions(scene)[:3]
    answers = packer.pack([asked])
    turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": asked[0].text}]}
    prompt = tokenizer.apply_chat_template([turn], add_generation_prompt=True, tokenize=False) + asked[0].answer
    inputs = tokenizer(prompt.replace("<|video_pad|>", "<|video_pad|>" * (4 * 14 * 14)), return_tensors="pt")
    patches, grid = patchify(clips, torch.float32)
    with torch.no_grad():
        packed_logits = forward(clips, answers)[0, 0]
        logits = model(
            **inputs,
            pixel_values_videos=patches.flatten(0, 2),
            video_grid_thw=torch.tensor([[4, grid, grid]]),
            mm_token_type_ids=(inputs["input_ids"] == model.config.video_token_id).int() * 2,
        ).logits[0, -2:]
    torch.testing.assert_close(packed_logits, logits, atol=2e-3, rtol=1e-3)


def test_generation_ends_after_the_answer(model: Any) -> None:
    settings = json.loads((FOLDER / "generation_config.json").read_text())
    assert settings["eos_token_id"] == model.config.text_config.eos_token_id
    assert not settings.get("do_sample", False)
