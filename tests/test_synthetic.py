"""Synthetic clips: the same seed gives the same clip, and every answer follows from the drawn scene."""

import collections
import random

import pytest
import torch

from jobs.training.batches import Clips, training_questions
from jobs.training.chat import ANSWER_TOKENS, QuestionPacker, build_tokenizer
from jobs.training.packed_model import positions_of
from sttm.synthetic import HELD_OUT_SEED, TASKS, Scene, questions, render, sample_scenes
from sttm.synthetic.questions import Question
from sttm.synthetic.vocabulary import COLOURS, SHAPES

SIZE = 112


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return sample_scenes(HELD_OUT_SEED + 500, 60, size=SIZE)


def test_one_seed_is_one_clip_to_the_bit() -> None:
    once, again = (render(sample_scenes(7, 2, frames=8, size=SIZE)) for _ in range(2))
    assert torch.equal(once, again)
    assert once.shape == (2, 8, SIZE, SIZE, 3)
    assert once.dtype == torch.uint8
    assert not torch.equal(once, render(sample_scenes(8, 2, frames=8, size=SIZE)))


def test_a_longer_list_begins_with_the_shorter_one() -> None:
    assert sample_scenes(3, 2) == sample_scenes(3, 5)[:2]


def test_a_clip_does_not_depend_on_its_batch(scenes: list[Scene]) -> None:
    together = render(scenes[:3])
    for index in range(3):
        assert (together[index].int() - render([scenes[index]])[0].int()).abs().max() <= 1


@pytest.mark.parametrize(("frames", "size"), [(7, 392), (16, 390), (16, 0)])
def test_sizes_that_cannot_be_drawn_are_refused(frames: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"frames|multiple"):
        sample_scenes(0, 1, frames, size)


@pytest.mark.parametrize("frames", [8, 17, 32])
def test_other_lengths_work(frames: int) -> None:
    scene = sample_scenes(1, 1, frames, SIZE)
    assert render(scene).shape[1] == frames
    assert questions(scene[0])


def test_every_task_is_asked_and_questions_are_reproducible(scenes: list[Scene]) -> None:
    asked = [questions(scene) for scene in scenes]
    assert asked == [questions(scene) for scene in scenes]
    assert {q.task for row in asked for q in row} == set(TASKS)
    assert len({q.text for row in asked for q in row}) > 200


def test_counts_equal_the_objects(scenes: list[Scene]) -> None:
    checked = 0
    for scene in scenes:
        for q in (q for q in questions(scene) if q.task == "count"):
            words = q.text.rstrip("?").split()
            colour = next((w for w in words if w in COLOURS), None)
            shape = next((s for s in SHAPES if {s + "s", s + "es"} & set(words)), None)
            fits = [o for o in scene.objects if o.colour == (colour or o.colour) and o.sprite == (shape or o.sprite)]
            assert q.answer == str(len(fits)), q
            checked += 1
    assert checked > 100


def test_directions_follow_the_path(scenes: list[Scene]) -> None:
    for scene in scenes:
        for thing in scene.objects:
            (x0, y0), (x1, y1) = thing.centre(thing.start), thing.centre(thing.stop - 1)
            expected = {"left": x1 < x0, "right": x1 > x0, "up": y1 < y0, "down": y1 > y0}
            assert [d for d, moved in expected.items() if moved] == ([thing.direction] if thing.direction else [])


def test_answers_about_a_scene_agree_with_each_other(scenes: list[Scene]) -> None:
    for scene in scenes:
        by_text = collections.defaultdict(set)
        for seed in range(3):
            for q in questions(scene, random.Random(seed)):
                by_text[q.text].add(q.answer)
        assert all(len(answers) == 1 for answers in by_text.values())


def test_a_question_whose_answer_is_no_option_is_refused() -> None:
    with pytest.raises(ValueError, match="not among"):
        Question("Is it?", ("yes", "no"), "maybe", "presence")


def test_the_flash_is_seen_in_its_frames_only() -> None:
    scene = next(
        s
        for s in sample_scenes(HELD_OUT_SEED, 80, size=SIZE)
        if s.flash and len(s.takes) == 1 and not s.noise and s.scroll == (0, 0) and s.drift == (0, 0)
    )
    assert scene.flash
    clip = render([scene])[0].float()
    x, y = (round(v * SIZE) for v in scene.flash.centre(scene.flash.start))
    reach = int(scene.flash.radius * SIZE * 0.8)
    corner = clip[:, max(0, y - reach) : y - reach + 3, max(0, x - reach) : x - reach + 3].mean(dim=(1, 2, 3))
    assert corner[scene.flash.start] > 200  # the white plate
    assert corner[scene.flash.start - 1] < 200
    assert corner[scene.flash.stop] < 200


def test_still_scenes_stay_equal_from_frame_to_frame() -> None:
    """The simulated codec depends on the frame alone, so equal frames stay equal and can be merged."""
    for scene in sample_scenes(11, 60, size=SIZE):
        calm = not scene.noise and scene.drift == (0, 0) and scene.scroll == (0, 0) and len(scene.takes) == 1
        if calm and all(not o.direction and o.start == 0 and o.stop == 16 for o in scene.objects):
            first, last = render([scene])[0][[0, -1]].int()
            if not scene.glyph or (scene.glyph.start, scene.glyph.stop) == (0, 16):
                assert torch.equal(first, last)
                return
    pytest.fail("no calm scene among 60")


def test_training_never_reaches_held_out_seeds() -> None:
    packer = QuestionPacker(build_tokenizer(), TASKS)
    clips = Clips(packer, SIZE, 2, {32: 1.0}, 4, HELD_OUT_SEED - 2)
    scenes, asked = clips[1]
    assert scenes.take.shape == (1, 32)
    assert asked.answer.shape == (1, 4, ANSWER_TOKENS)
    with pytest.raises(ValueError, match="held out"):
        clips[2]


def test_training_draws_tasks_evenly(scenes: list[Scene]) -> None:
    counts = collections.Counter(q.task for scene in scenes for q in training_questions(scene, 30))
    assert min(counts[t] for t in TASKS if t != "order") > 0.07 * sum(counts.values())


def test_positions_continue_at_the_maximum_plus_one() -> None:
    positions = positions_of(T=9, side=4, start=4, before=4 + 9 * 16 + 1, L=200)
    assert positions[:, 3].tolist() == [3, 3, 3]
    assert positions[:, 4 + 9 * 16 - 1].tolist() == [12, 7, 7]
    assert positions[:, 4 + 9 * 16].tolist() == [13, 13, 13]  # <|vision_end|>, then each question's first token
    assert positions[:, 4 + 9 * 16 + 1].tolist() == positions[:, 4 + 9 * 16 + 21].tolist() == [14, 14, 14]
