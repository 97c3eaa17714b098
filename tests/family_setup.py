"""One small checkpoint a family, loaded by us and by plain transformers, with one video; shared by several tests."""

import atexit
import shutil
import tempfile
from copy import copy
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from checkpoints import write_checkpoint
from torch import Tensor, nn

from sttm.engine.prefill import PrefillConfig, Prefilled, prefill
from sttm.merging import MergeConfig
from sttm.models.base import Prompt
from sttm.models.checkpoint import Checkpoint, ModelConfig
from sttm.models.language_model import LanguageModel

NO_MERGE = MergeConfig(method="none")
HALF = MergeConfig(budget=0.5)
QUESTIONS = ("What is it?", "the colour of the sea, please?", "Why")


def video(frames: int = 8, height: int = 112, width: int = 140) -> np.ndarray:
    """Noise whose second half resembles its first, uint8 [F, H, W, 3]: something to merge."""
    pixels = np.random.default_rng(0).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)
    half = frames // 2
    pixels[-half:] = pixels[:half] // 2 + pixels[half - 1] // 2
    return pixels


class Setup:
    """A checkpoint folder, our model, the plain one, and a prefix made from one video."""

    def __init__(self, folder: Path, dtype: str = "float32") -> None:
        self.folder = folder
        self.checkpoint = Checkpoint.open(ModelConfig(path=str(folder), dtype=dtype))
        self.family = self.checkpoint.family()
        self.full = self.checkpoint.load_model("cpu")
        self.model = LanguageModel.of(self.full)
        self.pixels = video()
        self.inputs = self.family.preprocess(self.pixels, np.arange(len(self.pixels)) / 2.0)
        self.prompt: Prompt = self.family.prompt(self.full, self.inputs)
        self.stop = self.family.stop_ids(self.checkpoint.generation_config)

    @staticmethod
    @cache
    def of(family: str, dtype: str = "float32", **settings: bool) -> "Setup":
        """The setup of one of `checkpoints.FAMILIES`, made once a test run."""
        home = Path(tempfile.mkdtemp(prefix="sttm-test-"))
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        return Setup(write_checkpoint(family, home / family, **settings), dtype)

    @cached_property
    def plain(self) -> nn.Module:
        """The same checkpoint as transformers alone loads it."""
        from transformers import AutoModelForImageTextToText

        return AutoModelForImageTextToText.from_pretrained(
            self.folder, dtype=self.model.dtype, attn_implementation="sdpa"
        ).eval()

    @property
    def official(self) -> dict[str, Tensor]:
        """The video as the official processor prepares it for the plain model."""
        frames = torch.from_numpy(self.pixels).permute(0, 3, 1, 2)
        return dict(self.family.processor(videos=[frames], do_sample_frames=False, return_tensors="pt"))

    def prefill(self, merging: MergeConfig, **settings: object) -> Prefilled:
        return prefill(self.model, self.prompt, merging, PrefillConfig(**settings))  # type: ignore[arg-type]

    def questions(self) -> list[list[int]]:
        return [self.family.question_ids(q) for q in QUESTIONS]

    def plain_logits(self, question: list[int]) -> Tensor:
        """The plain model's own forward over video, prefix and question, given our positions; [L + Q, V]."""
        ids = torch.cat([self.prompt.ids, torch.tensor(question, dtype=torch.long)])
        positions = torch.cat([self.prompt.positions, self._after(self.prompt.next_position, question)], dim=1)
        with torch.inference_mode():
            return self.plain(
                input_ids=ids[None], position_ids=_as_transformers_wants(positions), **self.official
            ).logits[0]

    def plain_cache(self) -> list[tuple[Tensor, Tensor]]:
        """Rotated keys and values [heads, L, D] of each layer from the plain model's own forward over the prefix."""
        positions = _as_transformers_wants(self.prompt.positions)
        with torch.inference_mode():
            out = self.plain(input_ids=self.prompt.ids[None], position_ids=positions, use_cache=True, **self.official)
        return [(layer.keys[0], layer.values[0]) for layer in out.past_key_values.layers]

    def plain_merged_logits(self, prefilled: Prefilled, question: list[int]) -> Tensor:
        """Logits [V] after the question by transformers' own decoder, cut in two at the merge layer.

        Takes from `prefilled` the decision who merges with whom, the positions and how often each token counts, and
        nothing else.
        """
        prompt, cached, merged, k = self.prompt, prefilled.cache, prefilled.merged, prefilled.cache.merge_layer
        with torch.inference_mode():
            asked = self.plain.get_input_embeddings()(torch.tensor(question))
            full = torch.cat([prompt.positions, self._after(cached.next_position, question)], dim=1)
            head = self._layers(0, k, torch.cat([prompt.embeds, asked]), full, prompt.visual, prompt.deepstack[:k])
            first_cells = prompt.visual[merged.index]
            head[first_cells] = merged.apply(head[prompt.visual])
            keep = torch.ones(len(head), dtype=torch.bool)
            keep[prompt.visual] = False
            keep[first_cells] = True
            reduced = torch.cat([cached.reduced_positions, self._after(cached.reduced_next_position, question)], dim=1)
            levels = tuple(merged.apply(level) for level in prompt.deepstack[k:])
            depth = len(self.model.text.layers)
            bias = torch.cat([cached.multiplicity.float().log(), torch.zeros(len(question))])
            tail = self._layers(k, depth, head[keep], reduced.long(), cached.visual.long(), levels, bias)
            return self.plain.lm_head(self.plain.model.language_model.norm(tail[-1]))

    def _layers(
        self,
        first: int,
        last: int,
        embeds: Tensor,
        positions: Tensor,
        visual: Tensor,
        deepstack: tuple[Tensor, ...],
        bias: Tensor | None = None,
    ) -> Tensor:
        """Some layers of the plain decoder, through its own forward, without the final norm.

        `bias` [tokens] is added to the attention logits of the keys, by way of a full mask.
        """
        text = self.plain.model.language_model
        part = copy(text)
        layers = nn.ModuleList(list(text.layers)[first:last])
        part._modules = {**text._modules, "layers": layers, "norm": nn.Identity()}
        extra = {}
        if deepstack:
            is_visual = torch.zeros(1, len(embeds), dtype=torch.bool)
            is_visual[0, visual] = True
            extra = {"visual_pos_masks": is_visual, "deepstack_visual_embeds": list(deepstack)}
        # Without a mask transformers would take gaps between positions for borders between packed sequences.
        mask = torch.ones(1, len(embeds), dtype=torch.long)
        if bias is not None and bias.any():
            mask = (torch.ones(len(embeds), len(embeds)).tril().log() + bias)[None, None]
        positions = _as_transformers_wants(positions)
        out = part(inputs_embeds=embeds[None], position_ids=positions, attention_mask=mask, use_cache=False, **extra)
        return out.last_hidden_state[0].clone()

    def _after(self, start: int, question: list[int]) -> Tensor:
        return torch.arange(start, start + len(question)).expand(len(self.prompt.positions), -1)


def _as_transformers_wants(positions: Tensor) -> Tensor:
    return positions[:, None] if len(positions) == 3 else positions
