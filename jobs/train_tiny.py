"""Train the built-in model from scratch on synthetic clips.

The weights in sttm/models/tiny come from these two runs on four GPUs:

    torchrun --nproc_per_node=4 -m jobs.train_tiny --out runs/a --plan 224:3500:64 392:1700:32 --workers 13
    torchrun --nproc_per_node=4 -m jobs.train_tiny --out runs/b --plan 392:2200:32 \\
        --resume runs/a/weights.safetensors --seed 100000000 --frames 16:0.6,8:0.2,32:0.2 \\
        --rate 8e-4 --warmup 100 --workers 13 --folder

A run of minutes on a CPU, to see how it works:

    python -m jobs.train_tiny --out runs/toy --plan 112:60:2 --questions 8 --evaluate 16

Each GPU has one process, and gradients are averaged over all processes. The clips are drawn on the GPU. The data of a
step follow from --seed and the number of the step alone.
"""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

import torch
import torch.distributed as dist

from jobs.command import EXIT_ERROR
from jobs.training.architecture import save_folder
from jobs.training.trainer import Stage, Trainer, TrainingConfig
from sttm.errors import SttmError
from sttm.synthetic.vocabulary import HELD_OUT_SEED

_LAST_SEED = HELD_OUT_SEED - 100_000_000  # leaves room for the seeds of all steps of a run


def _frames(text: str) -> dict[int, float]:
    return {int(f): float(s) for f, s in (part.split(":") for part in text.split(","))}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", required=True, help="folder for the weights")
    add(
        "--plan",
        nargs="+",
        type=Stage.parse,
        required=True,
        metavar="SIZE:STEPS:BATCH",
        help="stages: side of a clip in pixels, number of steps, and clips in a step for each GPU",
    )
    add("--resume", metavar="FILE", help="weights to start from; the optimizer starts new; default: random weights")
    add("--tokenizer", metavar="FOLDER", help="tokenizer built before; default: build it, which takes seconds")
    add(
        "--frames",
        type=_frames,
        default={16: 1.0},
        metavar="FRAMES:SHARE,...",
        help="lengths of the clips and how often each occurs, such as 16:0.7,8:0.15,32:0.15; default: 16:1",
    )
    add("--questions", type=int, default=30, help="questions for each clip; default: %(default)s")
    add("--rate", type=float, default=2e-3, help="peak learning rate; default: %(default)s")
    add("--warmup", type=int, default=300, help="steps of linear warm-up; default: %(default)s")
    add("--seed", type=int, default=0, help="first seed of the data; a resumed run needs another one; default: 0")
    add("--minutes", type=float, default=1e9, help="end the run after this time; default: no limit")
    add("--save-minutes", type=float, default=1.5, help="time between two checkpoints; default: %(default)s")
    add("--log-every", type=int, default=50, help="steps between two lines of output; default: %(default)s")
    add("--workers", type=int, default=0, help="processes that make data, for each GPU; default: %(default)s")
    add("--evaluate", type=int, default=2048, help="number of held-out clips; default: %(default)s")
    add("--evaluate-batch", type=int, default=16, help="held-out clips in a batch; default: %(default)s")
    add("--evaluate-size", type=int, default=392, help="side of held-out clips in pixels; default: %(default)s")
    add("--evaluate-frames", type=int, nargs="+", default=[16], help="lengths of held-out clips; default: 16")
    add("--folder", action="store_true", help="also write a whole Hugging Face checkpoint into --out")
    return parser


def command() -> None:
    """Entry point."""
    parser = _parser()
    args = parser.parse_args()
    if not 0 <= args.seed < _LAST_SEED:
        parser.error(f"--seed {args.seed} is not in 0..{_LAST_SEED - 1}; seeds from {HELD_OUT_SEED} on are held out")
    try:
        trainer = Trainer(TrainingConfig(**{f.name: getattr(args, f.name) for f in fields(TrainingConfig)}))
    except SttmError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_ERROR)
    trainer.run()
    if args.folder and trainer.work.rank == 0:
        save_folder(trainer.model.to(torch.bfloat16), trainer.tokenizer, Path(args.out))
    if trainer.work.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    command()
