"""Training batches: a step's number → its scenes and questions as tensors. Pixels are drawn later, on the device."""

import random

from torch.utils.data import Dataset

from jobs.training.chat import PackedQuestions, QuestionPacker
from sttm.synthetic.questions import Question, questions
from sttm.synthetic.render import PackedScenes, pack
from sttm.synthetic.scene import Scene, sample_scenes
from sttm.synthetic.vocabulary import HELD_OUT_SEED


class Clips(Dataset[tuple[PackedScenes, PackedQuestions]]):
    """The batch of a step, the same for the same (seed, step, process).

    Args:
        size: side in pixels.
        batch: clips of 16 frames; of longer clips there are fewer, so that a step's visual tokens stay equally many.
        frames: number of frames → share of steps.
        asked: questions a clip.
        seed: with every step's offset below `HELD_OUT_SEED`.
        stride: (rank, world) of this process.
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
        """Raises ValueError when the step would reach the held-out seeds."""
        rank, world = self.stride
        seed = self.seed + step * world + rank
        if not 0 <= seed < HELD_OUT_SEED:
            raise ValueError(f"step {step} would train on seed {seed}; seeds from {HELD_OUT_SEED} on are held out")
        drawn = random.Random(step).choices(list(self.frames), list(self.frames.values()))[0]  # noqa: S311
        scenes = sample_scenes(seed, max(1, self.batch * 16 // drawn), drawn, self.size)
        return pack(scenes), self.packer.pack([training_questions(s, self.asked) for s in scenes])


def training_questions(scene: Scene, count: int) -> list[Question]:
    """`count` questions, every task of the scene equally often."""
    rng = random.Random(f"training {scene.key}")  # noqa: S311
    by_task: dict[str, list[Question]] = {}
    for question in questions(scene, rng):
        by_task.setdefault(question.task, []).append(question)
    return [rng.choice(by_task[rng.choice(tuple(by_task))]) for _ in range(count)]


def held_out_questions(scene: Scene, count: int) -> list[Question]:
    """All questions of a scene, or `count` of them drawn; fewer are not repeated."""
    asked = questions(scene)
    rng = random.Random(f"held out {scene.key}")  # noqa: S311
    return asked if len(asked) <= count else rng.sample(asked, count)
