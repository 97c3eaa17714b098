"""What the engine must know about a model family: preprocessing, vision tower, prompt and positions. No weights here.

Each family is one subclass of `Family` in a file of its own, listed in `sttm.models.families`. README.md in this folder
shows how to add one.

Shapes: F sampled frames; (T, H, W) the grid of visual tokens inside the LLM, N = T*H*W; P >= N places in the prompt
that the vision tower fills (grid cells and separators); L prefix tokens; A position axes (1 for RoPE, 3 for M-RoPE); C
hidden size.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jinja2 import TemplateError
from torch import Tensor, nn

from sttm.errors import ModelError, QuestionError
from sttm.models.frame_resizing import FrameResizing
from sttm.models.pixel_bounds import PixelBounds
from sttm.models.still_frames import first_alike
from sttm.models.video_inputs import VideoInputs

_QUESTION_MARK = "\x00question\x00"  # stands for the question while the chat template is rendered


@dataclass(frozen=True)
class Prompt:
    """The prefix that all questions about one video share, as the decoder takes it.

    Attributes:
        ids: int64 [L], token ids; the visual places hold the id of the video token.
        embeds: [L, C], embeddings, with the visual features at the visual places.
        positions: int64 [A, L], position ids.
        next_position: position of the first token after the prefix.
        visual: int64 [N], indices of the visual tokens in the prefix, in (t, y, x) raster order. They need not be
            contiguous.
        grid: (T, H, W), with T*H*W == N.
        frame_seconds: float64 [T], presentation time of each grid frame.
        deepstack: per level [N, C], features that are added to the visual tokens after decoder layer 0, 1, ...
            (Qwen3-VL).
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
                f"the parts of a Prompt do not fit together: {length} ids, embeds {tuple(self.embeds.shape)}, "
                f"positions {tuple(self.positions.shape)}, {len(self.visual)} visual tokens, grid {self.grid}"
            )


class Family(ABC):
    """The adapter of one model family.

    Subclasses say how to preprocess a video, run the vision tower, lay out the prefix and number its positions.

    Attributes:
        model_types: values of `model_type` in config.json that this adapter serves.
        processor_class: name of the transformers class that resizes and lays out the videos of this family.
        default_bounds: bounds of a frame's pixels for checkpoints that do not say how videos are preprocessed. None if
            the checkpoints always say it, or if all frames have one size.
        prefix_end: the special token that ends the prefix after the video; None if the video itself ends the prefix.
            In both cases the prefix ends with a special token, so that BPE cannot join the question to it.

    Args:
        config: the checkpoint's transformers config.
        tokenizer: the checkpoint's tokenizer, with a chat template that renders a video.
        processor: the checkpoint's video processor; only indexing needs it.
        pixel_bounds: bounds of a frame's pixels; None keeps those of the processor.
        still_levels: the most levels (of 255) by which a block of pixels may differ on average from the frame whose
            features are taken in its place; 0 asks for equal pixels.

    Raises:
        ModelError: a decoder layer does not use full attention.
    """

    model_types: ClassVar[tuple[str, ...]]
    processor_class: ClassVar[str]
    default_bounds: ClassVar[PixelBounds | None] = None
    prefix_end: ClassVar[str | None] = None

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        processor: Any = None,
        pixel_bounds: PixelBounds | None = None,
        still_levels: float = 0.0,
    ) -> None:
        self.config, self.tokenizer, self.processor = config, tokenizer, processor
        self.pixel_bounds, self.still_levels = pixel_bounds, still_levels
        kinds = _attention_kinds(config.get_text_config())
        if kinds - {"full_attention"}:
            raise ModelError(
                f"{config.model_type} checkpoint has {', '.join(sorted(kinds))} layers; "
                "a stored KV cache needs full attention in every layer (disable sliding windows in its config)"
            )

    @abstractmethod
    def resizing(self, frames: int, height: int, width: int) -> FrameResizing:
        """How the official processor resizes the frames of a video.

        Args:
            frames: number of frames; with some processors, more frames are smaller.
            height: height of each frame.
            width: width of each frame.

        Raises:
            ValueError: the processor refuses frames of this shape.
        """

    @property
    def frames_a_token(self) -> int:
        """Number of sampled frames that one visual token covers, and so one grid frame."""
        return 1

    @abstractmethod
    def cells(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of visual tokens of a resized frame with this height and width."""

    def inputs(self, pixels: np.ndarray | Tensor, seconds: np.ndarray) -> VideoInputs:
        """Make the inputs of the vision tower from frames that are resized already.

        Args:
            pixels: uint8 [F, H', W', 3], RGB, resized by `resizing(F, ...)`; on a CPU or on a GPU.
            seconds: float64 [F], presentation times of the frames.
        """
        first = np.arange(0, len(seconds), self.frames_a_token)
        grid = (len(first), *self.cells(pixels.shape[1], pixels.shape[2]))
        alike = first_alike(pixels, self.frames_a_token, self.still_levels)
        return VideoInputs(pixels, grid, seconds, seconds[first], alike)

    def preprocess(self, pixels: np.ndarray, seconds: np.ndarray) -> VideoInputs:
        """Resize frames on the CPU, and make the inputs of the vision tower from them.

        Args:
            pixels: uint8 [F, H, W, 3], RGB frames as decoded.
            seconds: float64 [F], presentation times of the frames.

        Raises:
            ValueError: the official processor refuses frames of this shape.
        """
        resizing = self.resizing(*pixels.shape[:3])
        return self.inputs(np.stack([resizing.resize(frame) for frame in pixels]), seconds)

    @abstractmethod
    def encode(self, model: Any, inputs: VideoInputs) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the vision tower of the whole model `model` on one video, once for grid frames that look the same.

        Returns:
            Embeddings of all places [P, C], cells and separators in the order of the prompt; and the deepstack levels
            of the cells, each [N, C], or an empty tuple if the family has no deepstack.
        """

    @abstractmethod
    def position_ids(self, ids: Tensor, inputs: VideoInputs) -> tuple[Tensor, int]:
        """Number the tokens of the prefix.

        Args:
            ids: int64 [L], token ids of the prefix.
            inputs: the video in this prefix.

        Returns:
            Position ids int64 [A, L] on the device of `ids`; and the next free position, which is the largest position
            plus one.
        """

    @property
    @abstractmethod
    def video_token(self) -> str:
        """The text of the placeholder token that stands for one visual token in the prompt."""

    @staticmethod  # noqa: B027 (an adapter need not override this)
    def prepare(model: nn.Module) -> None:
        """Replace slow modules in the vision tower of a model that was just loaded. Its outputs must not change."""

    def is_cell(self, inputs: VideoInputs) -> Tensor:
        """bool [P]: which places hold a cell of the grid, in raster order. The other places hold separators.

        Separators are prompt tokens like text: they are never merged.
        """
        return torch.ones(inputs.tokens, dtype=torch.bool)

    def prefix_ids(self, inputs: VideoInputs) -> list[int]:
        """Token ids of the prompt up to and including the video and `prefix_end`."""
        before, after, _ = self._template()
        video = [self._id(self.video_token)] * len(self.is_cell(inputs))
        return self._opening(before) + video + self._encode_after(self.video_token, self._split(after)[0])

    def question_ids(self, question: str) -> list[int]:
        """Token ids that follow the prefix: the question, the end of the user's turn and the start of the answer.

        Raises:
            QuestionError: the question contains a control token, which would end the user's turn or stand for a video.
        """
        if control := [token for token in self.tokenizer.get_added_vocab() if token in question]:
            raise QuestionError(f"the question contains the control token {control[0]!r}; leave it out")
        _, after, end = self._template()
        return self._encode_after(self.prefix_end or self.video_token, self._split(after)[1] + question + end)

    def stop_ids(self, generation_config: Any) -> frozenset[int]:
        """Token ids that end an answer, from the checkpoint's generation config (may be None) and its tokenizer."""
        ids = generation_config.eos_token_id if generation_config is not None else None
        ids = list(ids) if isinstance(ids, Sequence) else [ids]
        return frozenset(int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None)

    @torch.inference_mode()
    def prompt(self, model: Any, inputs: VideoInputs) -> Prompt:
        """Run the vision tower on one video and build the prefix on the model's device.

        Raises:
            ModelError: the vision tower made another number of embeddings than the prompt has visual places.
        """
        embed_tokens = model.get_input_embeddings()
        device = embed_tokens.weight.device
        features, deepstack = self.encode(model, inputs)
        ids = torch.tensor(self.prefix_ids(inputs), device=device)
        places = torch.nonzero(ids == self._id(self.video_token)).squeeze(1)
        if len(places) != len(features):
            raise ModelError(
                f"{self.config.model_type}: the vision tower made {len(features)} embeddings for {len(places)} places "
                f"in the prompt (grid {inputs.grid}); the checkpoint's processor and config do not fit together, take "
                "both from the same release"
            )
        # The embedding table may have no row for the video token's id.
        embeds = embed_tokens(ids.masked_fill(ids == self._id(self.video_token), 0))
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
            ModelError: the chat template does not; the message names the folder and the cure.
        """
        self._template()

    def _template(self) -> tuple[str, str, str]:
        """Render the chat template and cut it at the video and at the question.

        Returns:
            The text before the video, between video and question, and after the question.
        """
        content = [{"type": "video"}, {"type": "text", "text": _QUESTION_MARK}]
        try:
            text = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        except (TemplateError, TypeError, ValueError, KeyError) as error:  # a template for text alone raises these
            raise self._template_error(f"{type(error).__name__}: {error}") from error
        before, video, rest = text.partition(self.video_token)
        after, question, end = rest.partition(_QUESTION_MARK)
        if not video or not question or self.video_token in rest:
            raise self._template_error(f"it renders {text[:200]!r}")
        return before, after, end

    def _template_error(self, cause: str) -> ModelError:
        return ModelError(
            f"{self.tokenizer.name_or_path}: the chat template does not render one video and one question as "
            f"{self.video_token!r} ... question ({cause}); put the template of this {self.config.model_type} "
            "checkpoint's processor into the folder as chat_template.json or chat_template.jinja"
        )

    def _split(self, after: str) -> tuple[str, str]:
        """Cut the text between video and question into the part of the prefix and the part of the question."""
        if self.prefix_end is None:
            return "", after
        head, end, tail = after.partition(self.prefix_end)
        return (head + end, tail) if end else ("", after)

    def _opening(self, before: str) -> list[int]:
        """Token ids of the text before the video, with the BOS token if the tokenizer starts every text with it."""
        bos = self.tokenizer.bos_token
        adds_bos = bos and self._id(bos) in self.tokenizer("")["input_ids"] and not before.startswith(bos)
        return self._encode((bos if adds_bos else "") + before)

    def _encode_after(self, token: str, text: str) -> list[int]:
        """Token ids of `text` after the special token `token`. Without it, some tokenizers would add a space first."""
        return self._encode(token + text)[1:]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _id(self, token: str) -> int:
        return int(self.tokenizer.convert_tokens_to_ids(token))


def _attention_kinds(text_config: Any) -> set[str]:
    """Kinds of attention in the decoder layers; empty if the config does not say.

    Configs like Mistral's list no kinds and only give the size of a sliding window. A window as long as all positions
    hides nothing.
    """
    if kinds := getattr(text_config, "layer_types", None):
        return set(kinds)
    window = getattr(text_config, "sliding_window", None)
    has_window = window is not None and getattr(text_config, "use_sliding_window", None) is not False
    return {"sliding_attention"} if has_window and window < text_config.max_position_embeddings else set()
