"""The training loop of the built-in model."""

import json
import math
import os
import time
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from jobs.training.architecture import build_config, build_model
from jobs.training.batches import Clips, held_out_questions
from jobs.training.chat import PackedQuestions, QuestionPacker, build_tokenizer
from jobs.training.packed_model import PackedModel
from sttm.errors import ModelError
from sttm.synthetic.render import PackedScenes, draw, pack
from sttm.synthetic.scene import sample_scenes
from sttm.synthetic.vocabulary import HELD_OUT_SEED, TASKS


@dataclass(frozen=True)
class Stage:
    """One part of a training run.

    Attributes:
        size: side of the clips in pixels.
        steps: number of steps.
        batch: clips of 16 frames in a step, for each process.
    """

    size: int
    steps: int
    batch: int

    @classmethod
    def parse(cls, text: str) -> "Stage":
        """Read a stage written as `size:steps:batch`."""
        size, steps, batch = (int(part) for part in text.split(":"))
        return cls(size, steps, batch)


@dataclass(frozen=True)
class TrainingConfig:
    """One training run.

    Attributes:
        out: folder for the weights.
        plan: stages, one after the other.
        resume: file with the weights to start from; None starts with random weights.
        tokenizer: folder of a tokenizer built before; None builds it.
        frames: number of frames of a clip → share of steps.
        questions: questions for each clip.
        rate: peak learning rate.
        warmup: steps of linear warm-up.
        seed: the first seed of the data.
        minutes: time limit of the run.
        save_minutes: time between two checkpoints.
        log_every: steps between two lines of output.
        workers: processes that make the data, for each training process; 0 makes it in the training process.
        evaluate: number of held-out clips.
        evaluate_batch: held-out clips in a batch.
        evaluate_size: side of the held-out clips in pixels.
        evaluate_frames: numbers of frames with which the held-out clips are evaluated.
    """

    out: str
    plan: list[Stage]
    resume: str | None = None
    tokenizer: str | None = None
    frames: dict[int, float] = field(default_factory=lambda: {16: 1.0})
    questions: int = 30
    rate: float = 2e-3
    warmup: int = 300
    seed: int = 0
    minutes: float = 1e9
    save_minutes: float = 1.5
    log_every: int = 50
    workers: int = 0
    evaluate: int = 2048
    evaluate_batch: int = 16
    evaluate_size: int = 392
    evaluate_frames: list[int] = field(default_factory=lambda: [16])


@dataclass(frozen=True)
class Work:
    """This process among all training processes.

    Attributes:
        rank: number of this process.
        world: number of processes.
        device: device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @classmethod
    def join(cls) -> "Work":
        """Join the process group if torchrun started this process; otherwise be the only process."""
        cuda = torch.cuda.is_available()
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        device = torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(device)
        if world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
        return cls(rank, world, device)

    def average(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replace a tensor by its mean over all processes."""
        if self.world > 1:
            dist.all_reduce(tensor)
            tensor /= self.world
        return tensor


def to_device(asked: PackedQuestions, device: torch.device) -> PackedQuestions:
    """Move questions to a device."""
    return PackedQuestions(*(getattr(asked, f.name).to(device, non_blocking=True) for f in fields(asked)))


def optimizer_for(model: torch.nn.Module, rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, but not on the embedding and on vectors."""
    named = list(model.named_parameters())
    decayed = [p for n, p in named if p.dim() > 1 and "embed_tokens" not in n]
    rest = [p for n, p in named if not (p.dim() > 1 and "embed_tokens" not in n)]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=named[0][1].is_cuda)


def rate_at(step: int, total: int, warmup: int) -> float:
    """Learning rate as a share of its peak: a linear warm-up, then a cosine down to 2 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def average_gradients(model: torch.nn.Module, work: Work) -> None:
    """Average the gradients over all processes with a single all-reduce."""
    if work.world == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = work.average(torch.cat([g.flatten() for g in gradients]))
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


class Trainer:
    """The state of one training run.

    Args:
        config: the run.

    Raises:
        ModelError: `config.resume` is not a checkpoint of this architecture.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.began = time.monotonic()
        self.saved = self.began
        self.work = Work.join()
        torch.manual_seed(config.seed)
        torch.set_float32_matmul_precision("high")
        torch._dynamo.config.automatic_dynamic_shapes = False  # compile fast kernels for each shape separately
        known = config.tokenizer
        self.tokenizer = PreTrainedTokenizerFast.from_pretrained(known) if known else build_tokenizer()
        packer = QuestionPacker(self.tokenizer, TASKS)
        self.model = build_model(build_config(self.tokenizer)).to(self.work.device)
        if config.resume:
            # strict=False, because the tied output head is not stored
            keys = self.model.load_state_dict(load_file(config.resume), strict=False)
            if wrong := [*keys.unexpected_keys, *(set(keys.missing_keys) - {"lm_head.weight"})]:
                raise ModelError(
                    f"{config.resume} does not fit the built-in model: {len(wrong)} weights are missing or unknown, "
                    f"such as {wrong[0]!r}; give weights.safetensors of an earlier run"
                )
        cuda = self.work.device.type == "cuda"
        dtype = torch.bfloat16 if cuda else torch.float32
        self.packed = PackedModel(self.model, packer.prefix, packer.prefix_end, dtype, compiled=cuda)
        self.packer = packer
        self.optimizer = optimizer_for(self.model, config.rate)
        self.total = sum(stage.steps for stage in config.plan)

    def say(self, text: str) -> None:
        """Print one line with the time since the start, in the first process only."""
        if self.work.rank == 0:
            print(f"[{time.monotonic() - self.began:6.1f}s] {text}", flush=True)

    def run(self) -> None:
        """Run all stages, save the weights, and print the accuracy on held-out clips."""
        step = 0
        for stage in self.config.plan:
            self.say(f"{stage.steps} steps of {self.work.world} × {stage.batch} clips at {stage.size} px")
            step += self._stage(stage, step)
            if self._out_of_time():
                break
        self.save(step)
        self.evaluate(step)

    def _stage(self, stage: Stage, first: int) -> int:
        """Run one stage. Returns the number of steps made, which is smaller than planned if time runs out."""
        config, stride = self.config, (self.work.rank, self.work.world)
        clips = Clips(self.packer, stage.size, stage.batch, config.frames, config.questions, config.seed, stride)
        workers = config.workers
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
            if (step + 1) % self.config.log_every == 0:
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
            group["lr"] = self.config.rate * rate_at(step, self.total, self.config.warmup)
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
        late = torch.tensor(float(time.monotonic() - self.began > self.config.minutes * 60), device=self.work.device)
        return self.work.average(late).item() > 0

    def _save_now_and_then(self, step: int) -> None:
        if time.monotonic() - self.saved > self.config.save_minutes * 60:
            self.save(step)
            self.saved = time.monotonic()

    def save(self, step: int) -> None:
        """Write the weights, for `resume`. The file is replaced only when the new one is complete."""
        if self.work.rank:
            return
        out = Path(self.config.out)
        out.mkdir(parents=True, exist_ok=True)
        weights = {n: p.detach().to(torch.bfloat16).cpu().contiguous() for n, p in self.model.named_parameters()}
        save_file(weights, out / "weights.partial", metadata={"step": str(step), "format": "pt"})
        (out / "weights.partial").replace(out / "weights.safetensors")

    @torch.no_grad()
    def evaluate(self, step: int) -> None:
        """Print the exact-match accuracy of each task on held-out clips, for each of `evaluate_frames`."""
        for frames in self.config.evaluate_frames:
            table = self._accuracy(frames)
            self.say(f"held out, {self.config.evaluate_size} px, {frames} frames, step {step}: {json.dumps(table)}")

    def _accuracy(self, frames: int) -> dict[str, float]:
        right, count = torch.zeros(2, len(TASKS), device=self.work.device)
        Q, batch = self.config.questions, self.config.evaluate_batch
        for index in range(self.config.evaluate // (batch * self.work.world)):
            seed = HELD_OUT_SEED + index * self.work.world + self.work.rank
            scenes = sample_scenes(seed, batch, frames, self.config.evaluate_size)
            rows = [held_out_questions(s, Q) for s in scenes]
            real = torch.tensor([[i < len(row) for i in range(Q)] for row in rows], device=self.work.device)
            padded = [row + row[:1] * (Q - len(row)) for row in rows]
            asked = to_device(self.packer.pack(padded), self.work.device)
            logits = self.packed(draw(pack(scenes).to(self.work.device)), asked)
            hit = (logits.argmax(-1) == asked.answer).all(-1)[real]
            right.index_add_(0, asked.task[real], hit.float())
            count.index_add_(0, asked.task[real], torch.ones_like(hit, dtype=torch.float))
        right, count = self.work.average(right), self.work.average(count)
        # A task without questions has no accuracy: clips of eight frames are too short for questions about order.
        table = {task: round((r / c).item(), 4) for task, r, c in zip(TASKS, right, count, strict=True) if c}
        return table | {
            "all": round((right.sum() / count.sum()).item(), 4),
            "questions": round(count.sum().item() * self.work.world),
        }
