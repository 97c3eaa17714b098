"""What the engine must know of a model family: prompt, positions, preprocessing, vision. No weights live here.

A family is one subclass of `Family` in one file, listed in `sttm.models.families`. Shapes: F sampled frames, (T, H, W)
the grid of visual tokens inside the LLM, N = T*H*W, P >= N places the vision tower fills in the prompt (grid cells and
separators), L prefix tokens, A position axes (1 for RoPE, 3 for M-RoPE), C hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from sttm.errors import ModelError, QuestionError
from sttm.models.pixel_bounds import PixelBounds

_QUESTION_MARK = "\x00question\x00"  # stands for the question while the chat template is rendered


@dataclass(frozen=True)
class VideoInputs:
    """A video as the vision tower takes it, still in uint8 so that it is small to send.

    Attributes:
        pixels: uint8, resized and laid out by the family's official processor (patches or frames).
        grid: (T, H, W) of the visual tokens inside the LLM.
        seconds: float64 [F], presentation times of the sampled frames.
        frame_seconds: float64 [T], presentation time of the first sampled frame of each grid frame.
    """

    pixels: np.ndarray
    grid: tuple[int, int, int]
    seconds: np.ndarray
    frame_seconds: np.ndarray

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or len(self.frame_seconds) != self.grid[0] or min(self.grid) < 1:
            raise ValueError(
                f"pixels {self.pixels.dtype}, grid {self.grid}, {len(self.frame_seconds)} frame times do not fit"
            )

    @property
    def tokens(self) -> int:
        """Visual tokens before the merge."""
        t, h, w = self.grid
        return t * h * w

    def page_locked(self) -> "VideoInputs":
        """The same, with pixels in memory from which a GPU takes them at the full rate of the bus."""
        pixels = torch.empty(self.pixels.shape, dtype=torch.uint8, pin_memory=True).numpy()
        np.copyto(pixels, self.pixels)
        return replace(self, pixels=pixels)

    def pixels_on(self, device: torch.device) -> Tensor:
        """The pixels on a device; page-locked ones arrive there before later work of its current stream."""
        # Ray's object store gives out read-only memory, which torch shares only with a warning.
        pixels = torch.from_numpy(self.pixels) if self.pixels.flags.writeable else torch.tensor(self.pixels)
        return pixels.to(device, non_blocking=True)


@dataclass(frozen=True)
class Prompt:
    """The prefix of every question about one video, as the decoder takes it.

    Attributes:
        ids: int64 [L] token ids; the visual places hold the video token's id.
        embeds: [L, C] embeddings with the visual features in place.
        positions: int64 [A, L] position ids.
        next_position: position of the first token after the prefix.
        visual: int64 [N], where the visual tokens sit, in (t, y, x) raster order. Not always one run.
        grid: (T, H, W), T*H*W == N.
        frame_seconds: float64 [T].
        deepstack: per level [N, C], added to the visual tokens after decoder layer 0, 1, ... (Qwen3-VL).
    """

    ids: Tensor
    embeds: Tensor
    positions: Tensor
    next_position: int
    visual: Tensor
    grid: tuple[int, int, int]
    frame_seconds: Tensor
    deepstack: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        length, (t, h, w) = len(self.ids), self.grid
        if self.embeds.shape[0] != length or self.positions.shape[1] != length or len(self.visual) != t * h * w:
            raise ValueError(
                f"{length} ids, embeds {tuple(self.embeds.shape)}, positions {tuple(self.positions.shape)}, "
                f"{len(self.visual)} visual tokens for grid {self.grid}"
            )


class Family(ABC):
    """One model family, made from a checkpoint's config, tokenizer and (when indexing) video processor.

    Subclasses say how to preprocess, encode, lay out the prefix and number its positions.
    """

    model_types: ClassVar[tuple[str, ...]]
    # transformers' class that resizes and lays out this family's videos.
    processor_class: ClassVar[str]
    # Of frames where a checkpoint describes no videos; None where it always does, or its frames have one size.
    default_bounds: ClassVar[PixelBounds | None] = None
    # The last piece of the prefix after the video, None where the video itself is last. Either way a special token, so
    # that BPE cannot join the question to it.
    prefix_end: ClassVar[str | None] = None

    def __init__(
        self, config: Any, tokenizer: Any, processor: Any = None, pixel_bounds: PixelBounds | None = None
    ) -> None:
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.pixel_bounds = pixel_bounds  # None: the processor's own
        kinds = _attention_kinds(config.get_text_config())
        if kinds - {"full_attention"}:
            raise ModelError(
                f"{config.model_type} checkpoint has {', '.join(sorted(kinds))} layers; "
                "a stored KV cache needs full attention in every layer (disable sliding windows in its config)"
            )

    @abstractmethod
    def preprocess(self, pixels: np.ndarray, seconds: np.ndarray) -> VideoInputs:
        """Resize and lay out frames uint8 [F, H, W, 3] shown at `seconds` float64 [F], on the CPU."""

    @abstractmethod
    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the vision tower: embeddings of all places [P, C], deepstack levels of the grid cells, each [N, C]."""

    @abstractmethod
    def position_ids(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """Position ids int64 [A, L] of the prefix, and the next free position (largest used plus one)."""

    @property
    @abstractmethod
    def video_token(self) -> str:
        """The placeholder of one visual token."""

    @staticmethod  # noqa: B027 (most families need nothing)
    def prepare(model: nn.Module) -> None:
        """Called once on a loaded model, to make its vision tower faster; the outputs stay the same."""

    def is_cell(self, inputs: VideoInputs) -> Tensor:
        """Bool [P]: which places hold a cell of the grid, in raster order; the others are separators, never merged."""
        return torch.ones(inputs.tokens, dtype=torch.bool)

    def prefix_ids(self, inputs: VideoInputs) -> list[int]:
        """Ids of the prompt up to and including the video and `prefix_end`."""
        before, after, _ = self._template()
        video = [self._id(self.video_token)] * len(self.is_cell(inputs))
        return self._opening(before) + video + self._encode_after(self.video_token, self._split(after)[0])

    def question_ids(self, question: str) -> list[int]:
        """Ids that follow the prefix: the question, the end of the user's turn, the start of the answer.

        Raises:
            QuestionError: the text holds a control token, which would end the user's turn or stand for a video.
        """
        if control := [token for token in self.tokenizer.get_added_vocab() if token in question]:
            raise QuestionError(f"the question holds the control token {control[0]!r}; leave it out")
        _, after, end = self._template()
        return self._encode_after(self.prefix_end or self.video_token, self._split(after)[1] + question + end)

    def stop_ids(self, generation_config: Any) -> frozenset[int]:
        """Ids that end an answer."""
        ids = generation_config.eos_token_id if generation_config is not None else None
        ids = list(ids) if isinstance(ids, Sequence) else [ids]
        return frozenset(int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @torch.inference_mode()
    def prompt(self, model: Any, inputs: VideoInputs) -> Prompt:
        """Encode one video and build its prefix on the model's device."""
        embed_tokens = model.get_input_embeddings()
        device = embed_tokens.weight.device
        features, deepstack = self.encode(model, inputs)
        ids = torch.tensor(self.prefix_ids(inputs), device=device)
        places = torch.nonzero(ids == self._id(self.video_token)).squeeze(1)
        if len(places) != len(features):
            raise ModelError(
                f"{self.config.model_type}: the vision tower made {len(features)} tokens for {len(places)} places "
                f"(grid {inputs.grid}); the checkpoint's processor and config disagree"
            )
        embeds = embed_tokens(ids.masked_fill(ids == self._id(self.video_token), 0))  # its id may have no row
        embeds[places] = features.to(embeds)
        positions, next_position = self.position_ids(ids, inputs)
        return Prompt(
            ids,
            embeds,
            positions,
            next_position,
            places[self.is_cell(inputs).to(device)],
            inputs.grid,
            torch.from_numpy(inputs.frame_seconds),
            tuple(level.to(embeds) for level in deepstack),
        )

    def require_template(self) -> None:
        """Check that the chat template renders a video and a question.

        Raises:
            ModelError: it does not; names the folder and the cure.
        """
        self._template()

    def _template(self) -> tuple[str, str, str]:
        """The chat template cut at the video and at the question: text before, between and after."""
        content = [{"type": "video"}, {"type": "text", "text": _QUESTION_MARK}]
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # what a template of text alone comes to
            raise self._template_error(f"{type(error).__name__}: {error}") from error
        before, video, rest = text.partition(self.video_token)
        after, question, end = rest.partition(_QUESTION_MARK)
        if not video or not question or self.video_token in rest:
            raise self._template_error(f"it gives {text[:200]!r}")
        return before, after, end

    def _template_error(self, cause: str) -> ModelError:
        return ModelError(
            f"{self.tokenizer.name_or_path}: the chat template does not render one video and one question as "
            f"{self.video_token!r} ... question ({cause}); put the template of this {self.config.model_type} "
            "checkpoint's processor into the folder as chat_template.json or chat_template.jinja"
        )

    def _split(self, after: str) -> tuple[str, str]:
        """Text between video and question, cut into the prefix's share and the question's."""
        if self.prefix_end is None:
            return "", after
        head, end, tail = after.partition(self.prefix_end)
        return (head + end, tail) if end else ("", after)

    def _opening(self, before: str) -> list[int]:
        """Ids of the text before the video, with the BOS that some tokenizers put before everything (Llama)."""
        bos = self.tokenizer.bos_token
        adds_bos = bos and self._id(bos) in self.tokenizer("")["input_ids"] and not before.startswith(bos)
        return self._encode((bos if adds_bos else "") + before)

    def _encode_after(self, token: str, text: str) -> list[int]:
        """Ids of `text` as it follows a special token; alone, some tokenizers would put a space before it."""
        return self._encode(token + text)[1:]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _attention_kinds(text_config: Any) -> set[str]:
    """Kinds of attention in the decoder's layers, where its config tells; Mistral's names its one window only."""
    if kinds := getattr(text_config, "layer_types", None):
        return set(kinds)
    window = getattr(text_config, "sliding_window", None)
    has_window = window is not None and getattr(text_config, "use_sliding_window", None) is not False
    return {"sliding_attention"} if has_window and window < text_config.max_position_embeddings else set()
