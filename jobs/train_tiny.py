"""Train the built-in model from scratch on synthetic clips drawn on the device.

    torchrun --nproc_per_node=4 -m jobs.train_tiny --out runs/a --plan 224:3500:64 392:1700:32 --workers 13
    torchrun --nproc_per_node=4 -m jobs.train_tiny --out runs/b --plan 392:2200:32 \\
        --resume runs/a/weights.safetensors --seed 100000000 --frames 16:0.6,8:0.2,32:0.2 \\
        --rate 8e-4 --warmup 100 --workers 13 --folder
    python -m jobs.train_tiny --out runs/toy --plan 112:60:2 --questions 8 --evaluate 16      # a CPU, minutes

One process a GPU; gradients are averaged over processes. The data follow from --seed and the step alone. The weights
are saved every --save-minutes; --minutes ends a run early, so that it fits a time limit.
"""

import argparse
import json
import math
import os
import time
from dataclasses import dataclass, fields
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from jobs.training.architecture import build_config, build_model, save_folder
from jobs.training.batches import Clips, held_out_questions
from jobs.training.chat import PackedQuestions, QuestionPacker, build_tokenizer
from jobs.training.packed_model import PackedModel
from sttm.synthetic.render import PackedScenes, draw, pack
from sttm.synthetic.scene import sample_scenes
from sttm.synthetic.vocabulary import HELD_OUT_SEED, TASKS


@dataclass(frozen=True)
class Stage:
    """`steps` steps of `batch` clips a process at `size` pixels."""

    size: int
    steps: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Stage":
        """`size:steps:batch`."""
        size, steps, batch = (int(part) for part in text.split(":"))
        return cls(size, steps, batch)


@dataclass(frozen=True)
class Work:
    """Where this process stands among the others, and its device."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls) -> "Work":
        """Joins the process group when started by torchrun."""
        cuda = torch.cuda.is_available()
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank, world, device)

    def average(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
            tensor /= self.world
        return tensor


def to_device(asked: PackedQuestions, device: torch.device) -> PackedQuestions:
    """The same questions on a device."""
    return PackedQuestions(*(getattr(asked, f.name).to(device, non_blocking=True) for f in fields(asked)))


def optimizer_for(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW; matrices decay, the embedding and vectors do not."""
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1 and "embed_tokens" not in n]
    rest = [p for n, p in named if not (p.dim() > 1 and "embed_tokens" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=named[0][1].is_cuda)


def rate_at(step: int, total: int, warmup: int) -> float:
    """Share of the peak learning rate: linear warm-up, then cosine to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def average_gradients(model: torch.nn.Module, work: Work) -> None:
    """One all-reduce over all gradients."""
    if work.world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = work.average(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Trainer:
    """The state of one run."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.began = time.monotonic()
        self.saved = self.began
        self.work = Work.join()
        torch.manual_seed(args.seed)
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.automatic_dynamic_shapes = False  # every shape its own fast kernels
        known = args.tokenizer
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(known) if known else build_tokenizer()
        packer = QuestionPacker(self.tokenizer, TASKS)
        self.model = build_model(build_config(self.tokenizer)).to(self.work.device)
        if args.resume:
            # strict=False: the tied head is stored once
            missing = self.model.load_state_dict(load_file(args.resume), strict=False)
            if missing.unexpected_keys or set(missing.missing_keys) - {"lm_head.weight"}:
                raise SystemExit(f"{args.resume} is not a checkpoint of this architecture: {missing}")
        cuda = self.work.device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        self.packed = PackedModel(self.model, packer.prefix, packer.prefix_end, dtype, compiled=cuda)
        self.packer = packer
        self.optimizer = optimizer_for(self.model, args.rate)
        self.total = sum(stage.steps for stage in args.plan)

    def say(self, text: str) -> None:
        """One line from the first process, with the time since the start."""
        if self.work.rank == 0:
            print(f"[{time.monotonic() - self.began:6.1f}s] {text}", flush=True)

    def run(self) -> None:
        """All stages, then the held-out table and the checkpoint folder."""
        step = 0
        for stage in self.args.plan:
            self.say(f"{stage.steps} steps of {self.work.world} × {stage.batch} clips at {stage.size} px")
            step += self._stage(stage, step)
            if self._out_of_time():
                break
        self.save(step)
        self.evaluate(step)

    def _stage(self, stage: Stage, first: int) -> int:
        """Steps made: all of the stage's, or fewer when time runs out."""
        args, stride = self.args, (self.work.rank, self.work.world)
        clips = Clips(self.packer, stage.size, stage.batch, args.frames, args.questions, args.seed, stride)
        workers = args.workers
        loader = DataLoader(
            clips,
            batch_size=None,
            sampler=range(first, first + stage.steps),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=False,
        )
        mark, losses, seen, hits = time.monotonic(), [], 0, []
        for step, (scenes, asked) in enumerate(loader, first):
            loss, hit = self._step(step, scenes, to_device(asked, self.work.device))
            losses.append(loss)
            hits.append(hit)
            seen += scenes.take.shape[0] * self.work.world
            if (step + 1) % self.args.log_every == 0:
                took = time.monotonic() - mark
                mean, right = torch.stack(losses).mean(), torch.stack(hits).mean()
                self.say(f"step {step + 1:5d} loss {mean:.4f} right {right:.4f} {seen / took:6.0f} clips/s")
                mark, losses, seen, hits = time.monotonic(), [], 0, []
                self._save_now_and_then(step + 1)
                if self._out_of_time():
                    self.say(f"out of time at step {step + 1}")
                    return step + 1 - first
        return stage.steps

    def _step(self, step: int, scenes: PackedScenes, asked: PackedQuestions) -> tuple[torch.Tensor, torch.Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.rate * rate_at(step, self.total, self.args.warmup)
        with torch.no_grad():
            clips = draw(scenes.to(self.work.device))
        logits = self.packed(clips, asked)
        loss = functional.cross_entropy(logits.flatten(0, 2).float(), asked.answer.flatten())
        loss.backward()
        average_gradients(self.model, self.work)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach(), (logits.argmax(-1) == asked.answer).all(-1).float().mean()

    def _out_of_time(self) -> bool:
        late = torch.tensor(float(time.monotonic() - self.began > self.args.minutes * 60), device=self.work.device)
        return self.work.average(late).item() > 0

    def _save_now_and_then(self, step: int) -> None:
        if time.monotonic() - self.saved > self.args.save_minutes * 60:
            self.save(step)
            self.saved = time.monotonic()

    def save(self, step: int) -> None:
        """The checkpoint folder and, for --resume, its weights; whole or not at all."""
        if self.work.rank:
            return
        out = Path(self.args.out)
        out.mkdir(parents=True, exist_ok=True)
        weights = {n: p.detach().to(torch.bfloat16).cpu().contiguous() for n, p in self.model.named_parameters()}
        save_file(weights, out / "weights.partial", metadata={"step": str(step), "format": "pt"})
        (out / "weights.partial").replace(out / "weights.safetensors")

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Exact-match accuracy a task on held-out scenes, all visual tokens, at each of --evaluate-frames."""
        for frames in self.args.evaluate_frames:
            table = self._accuracy(frames)
            self.say(f"held out, {self.args.evaluate_size} px, {frames} frames, step {step}: {json.dumps(table)}")

    def _accuracy(self, frames: int) -> dict[str, float]:
        right, count = torch.zeros(2, len(TASKS), device=self.work.device)
        Q, batch = self.args.questions, self.args.evaluate_batch
        for index in range(self.args.evaluate // (batch * self.work.world)):
            seed = HELD_OUT_SEED + index * self.work.world + self.work.rank
            scenes = sample_scenes(seed, batch, frames, self.args.evaluate_size)
            rows = [held_out_questions(s, Q) for s in scenes]
            real = torch.tensor([[i < len(row) for i in range(Q)] for row in rows], device=self.work.device)
            padded = [row + row[:1] * (Q - len(row)) for row in rows]
            asked = to_device(self.packer.pack(padded), self.work.device)
            logits = self.packed(draw(pack(scenes).to(self.work.device)), asked)
            hit = (logits.argmax(-1) == asked.answer).all(-1)[real]
            right.index_add_(0, asked.task[real], hit.float())
            count.index_add_(0, asked.task[real], torch.ones_like(hit, dtype=torch.float))
        right, count = self.work.average(right), self.work.average(count)
        # Eight frames are too few for questions on order: a task without questions has no accuracy.
        table = {task: round((r / c).item(), 4) for task, r, c in zip(TASKS, right, count, strict=True) if c}
        return table | {
            "all": round((right.sum() / count.sum()).item(), 4),
            "questions": round(count.sum().item() * self.work.world),
        }


def _frames(text: str) -> dict[int, float]:
    return {int(f): float(s) for f, s in (part.split(":") for part in text.split(","))}


def command() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--plan", nargs="+", type=Stage.parse, required=True, help="size:steps:batch a process")
    parser.add_argument("--resume", help="weights to start from; the optimizer starts afresh")
    parser.add_argument("--tokenizer", help="folder of one built before; else it is built, which takes seconds")
    parser.add_argument("--frames", type=_frames, default={16: 1.0}, help="frames:share,…; e.g. 16:0.7,8:0.15,32:0.15")
    parser.add_argument("--questions", type=int, default=30, help="a clip")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="a run with --resume needs another one for other data")
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--save-minutes", type=float, default=1.5)
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--evaluate", type=int, default=2048, help="held-out clips")
    parser.add_argument("--evaluate-batch", type=int, default=16)
    parser.add_argument("--evaluate-size", type=int, default=392)
    parser.add_argument("--evaluate-frames", type=int, nargs="+", default=[16])
    parser.add_argument("--folder", action="store_true", help="write the whole Hugging Face folder too")
    args = parser.parse_args()
    if not 0 <= args.seed < HELD_OUT_SEED - 100_000_000:
        parser.error(f"--seed must be below {HELD_OUT_SEED - 100_000_000}: from {HELD_OUT_SEED} on seeds are held out")
    trainer = Trainer(args)
    trainer.run()
    if args.folder and trainer.work.rank == 0:
        save_folder(trainer.model.to(torch.bfloat16), trainer.tokenizer, Path(args.out))
    if trainer.work.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    command()
