"""Synthetic clips with questions, for training and testing the built-in model and for the demo and the benchmarks."""

from sttm.synthetic.questions import Question, questions
from sttm.synthetic.render import render
from sttm.synthetic.scene import Scene, Thing, sample_scenes
from sttm.synthetic.vocabulary import HELD_OUT_SEED, TASKS

__all__ = ["HELD_OUT_SEED", "TASKS", "Question", "Scene", "Thing", "questions", "render", "sample_scenes"]
