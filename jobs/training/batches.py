"""The scenes and questions of each training step as tensors. The pixels are drawn later, on the GPU."""

import random

from torch.utils.data import Dataset

from jobs.training.chat import PackedQuestions, QuestionPacker
from sttm.synthetic.questions import Question, questions
from sttm.synthetic.render import PackedScenes, pack
from sttm.synthetic.scene import Scene, sample_scenes
from sttm.synthetic.vocabulary import HELD_OUT_SEED


class Clips(Dataset[tuple[PackedScenes, PackedQuestions]]):
    """The batches of a training run, by the number of the step. Seed, step and process decide the batch.

    Args:
        packer: turns questions into tensors.
        size: side of a clip in pixels.
        batch: number of clips if they have 16 frames. Of longer clips there are fewer, so that all steps have the same
            number of visual tokens.
        frames: number of frames of a clip → share of steps.
        asked: questions for each clip.
        seed: the first seed. The seeds of all steps must stay below `HELD_OUT_SEED`.
        stride: (rank, world): the number of this process, and the number of processes.
    """

    def __init__(
        self,
        packer: QuestionPacker,
        size: int,
        batch: int,
        frames: dict[int, float],
        asked: int,
        seed: int,
        stride: tuple[int, int] = (0, 1),
    ) -> None:
        self.packer, self.size, self.batch, self.frames = packer, size, batch, frames
        self.asked, self.seed, self.stride = asked, seed, stride

    def __getitem__(self, step: int) -> tuple[PackedScenes, PackedQuestions]:
        """The batch of a step.

        Raises:
            ValueError: the seed of the step is held out.
        """
        rank, world = self.stride
        seed = self.seed + step * world + rank
        if not 0 <= seed < HELD_OUT_SEED:
            raise ValueError(
                f"step {step} would train on seed {seed}, but seeds from {HELD_OUT_SEED} on are held out; lower --seed"
            )
        drawn = random.Random(step).choices(list(self.frames), list(self.frames.values()))[0]  # noqa: S311
        scenes = sample_scenes(seed, max(1, self.batch * 16 // drawn), drawn, self.size)
        return pack(scenes), self.packer.pack([training_questions(s, self.asked) for s in scenes])


def training_questions(scene: Scene, count: int) -> list[Question]:
    """Draw `count` questions about a scene. Every task that the scene allows is equally likely."""
    rng = random.Random(f"training {scene.key}")  # noqa: S311
    by_task: dict[str, list[Question]] = {}
    for question in questions(scene, rng):
        by_task.setdefault(question.task, []).append(question)
    return [rng.choice(by_task[rng.choice(tuple(by_task))]) for _ in range(count)]


def held_out_questions(scene: Scene, count: int) -> list[Question]:
    """All questions about a scene, or a random `count` of them if there are more."""
    asked = questions(scene)
    rng = random.Random(f"held out {scene.key}")  # noqa: S311
    return asked if len(asked) <= count else rng.sample(asked, count)
