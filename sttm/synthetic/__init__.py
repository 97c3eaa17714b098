"""Synthetic clips with questions: the training data of the built-in model, the demo's corpus, the benchmark.

scenes = sample_scenes(seed=HELD_OUT_SEED, count=4)   # plain values, the same for the same seed
clips = render(scenes, "cpu")                         # uint8 [4, 16, 392, 392, 3]
for question in questions(scenes[0]):                 # text, options, answer, task
    ...
"""

from sttm.synthetic.questions import Question, questions
from sttm.synthetic.render import render
from sttm.synthetic.scene import Scene, Thing, sample_scenes
from sttm.synthetic.vocabulary import HELD_OUT_SEED, TASKS

__all__ = ["HELD_OUT_SEED", "TASKS", "Question", "Scene", "Thing", "questions", "render", "sample_scenes"]
