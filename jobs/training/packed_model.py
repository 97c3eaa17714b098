"""A fast forward pass of a Qwen2-VL model for training, over many questions about each clip at once.

It uses the parameters of the transformers model, but differs from its forward: all frames share one attention call, the
patch embedding is a matrix product, the prefix with the clip is computed once for all questions, and there are logits
only where an answer is learned. The layers are pure functions of tensors, so that one compiled graph serves all layers.

Shapes: B clips, F frames, S side of a frame in pixels, T grid frames, N patches of a grid frame, L tokens, Q questions,
A answer tokens, C channels.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from jobs.training.chat import SLOT_TOKENS, PackedQuestions

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
LANE = 128
"""Sequences are padded to a multiple of this number, which is the tile size of the block mask."""

Weights = dict[str, torch.Tensor]


def _weights(module: nn.Module, dtype: torch.dtype) -> Weights:
    return {name: p.to(dtype) for name, p in module.named_parameters()}


class PackedModel(nn.Module):
    """A Qwen2-VL model that answers all questions of its clips in one pass.

    Args:
        model: a `Qwen2VLForConditionalGeneration` with the patch sizes of `build_config`.
        prefix: token ids before the tokens of the video.
        prefix_end: token ids after the tokens of the video.
        dtype: dtype of the arithmetic; the parameters keep their own dtype.
        compiled: whether to compile the two layer functions. This needs CUDA, because of the kernel of the block mask.
    """

    def __init__(
        self, model: Any, prefix: list[int], prefix_end: list[int], dtype: torch.dtype, compiled: bool
    ) -> None:
        super().__init__()
        self.model = model
        self.prefix, self.prefix_end = prefix, prefix_end
        self.dtype = dtype
        self.vision_layer: Callable[..., torch.Tensor] = torch.compile(vision_layer) if compiled else vision_layer
        self.decoder_layer: Callable[..., torch.Tensor] = torch.compile(decoder_layer) if compiled else decoder_layer
        self.compiled = compiled

    def forward(self, clips: torch.Tensor, questions: PackedQuestions) -> torch.Tensor:
        """Logits [B, Q, A, vocabulary] of the answer tokens, for clips uint8 [B, frames, S, S, 3]."""
        visual = self.see(clips)
        B, seen, _ = visual.shape
        Q = questions.tokens.shape[1]
        before = len(self.prefix) + seen + len(self.prefix_end)
        L = -(-(before + Q * SLOT_TOKENS) // LANE) * LANE
        embed = self.model.model.language_model.embed_tokens.weight.to(self.dtype)
        pad = L - before - Q * SLOT_TOKENS
        tail = functional.pad(questions.tokens.flatten(1), (0, pad))
        ends = [torch.tensor(ids, device=clips.device).expand(B, -1) for ids in (self.prefix, self.prefix_end)]
        hidden = torch.cat((embed[ends[0]], visual, embed[ends[1]], embed[tail]), dim=1)
        hidden = self._read(hidden, clips, before)
        at = before + torch.arange(Q, device=clips.device)[:, None] * SLOT_TOKENS + questions.answer_at
        picked = hidden.gather(1, at.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1]))
        return (picked @ embed.T).unflatten(1, (Q, -1))

    def see(self, clips: torch.Tensor) -> torch.Tensor:
        """Run the vision tower on clips uint8 [B, F, S, S, 3]: visual tokens [B, T·N/4, C] in transformers' order."""
        visual = self.model.model.visual
        patches, grid = patchify(clips, self.dtype)
        B = patches.shape[0]
        weight = visual.patch_embed.proj.weight
        x = patches.flatten(0, 1) @ weight.flatten(1).T.to(self.dtype)
        heads = visual.config.num_heads
        cos, sin = vision_rotary(grid, x.shape[-1] // heads, clips.device)
        for block in visual.blocks:
            x = self.vision_layer(x, _weights(block, self.dtype), cos, sin, heads)
        w = _weights(visual.merger, self.dtype)
        x = functional.layer_norm(x, x.shape[-1:], w["ln_q.weight"], w["ln_q.bias"], 1e-6)
        x = x.reshape(B, -1, 4 * x.shape[-1])
        x = functional.gelu(functional.linear(x, w["mlp.0.weight"], w["mlp.0.bias"]))
        return functional.linear(x, w["mlp.2.weight"], w["mlp.2.bias"])

    def _read(self, hidden: torch.Tensor, clips: torch.Tensor, before: int) -> torch.Tensor:
        language = self.model.model.language_model
        T, side = clips.shape[1] // 2, clips.shape[2] // 28
        L = hidden.shape[1]
        positions = positions_of(T, side, len(self.prefix), before, L).to(hidden.device)
        cos, sin = language.rotary_emb(hidden[:1].float(), positions[:, None])
        mask = _mask(before, L, hidden.device, self.compiled)
        heads = language.config.num_attention_heads
        eps = language.config.rms_norm_eps
        for layer in language.layers:
            hidden = self.decoder_layer(hidden, _weights(layer, self.dtype), cos, sin, mask, heads, eps)
        return rms_norm(hidden, language.norm.weight.to(self.dtype), eps)


def patchify(clips: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, int]:
    """Cut clips uint8 [B, F, S, S, 3] into patches.

    Returns:
        Normalised patches [B, T, N, 1176] in the order of transformers, and the number of patches on a side of a frame.
    """
    B, frames, S, _, _ = clips.shape
    if frames % 2:
        clips = torch.cat((clips, clips[:, -1:]), dim=1)
    mean = torch.tensor(_MEAN, device=clips.device) * 255
    std = torch.tensor(_STD, device=clips.device) * 255
    pixels = ((clips - mean) / std).to(dtype)
    grid = S // 14
    cut = pixels.reshape(B, -1, 2, grid // 2, 2, 14, grid // 2, 2, 14, 3).permute(0, 1, 3, 6, 4, 7, 9, 2, 5, 8)
    return cut.reshape(B, -1, grid * grid, 3 * 2 * 14 * 14), grid


@lru_cache(maxsize=8)
def vision_rotary(grid: int, head_dim: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotary embedding of the vision tower for a frame of grid × grid patches in the order of 2 × 2 merging.

    Returns:
        Cosines and sines, float32 [N, head_dim] each.
    """
    frequencies = 10000.0 ** (-torch.arange(0, head_dim // 2, 2, dtype=torch.float32) / (head_dim // 2))
    line = torch.arange(grid, dtype=torch.float32)
    y, x = torch.meshgrid(line, line, indexing="ij")
    y, x = (a.reshape(grid // 2, 2, grid // 2, 2).transpose(1, 2).flatten() for a in (y, x))
    angles = torch.cat((y[:, None] * frequencies, x[:, None] * frequencies), dim=-1).repeat(1, 2)
    return angles.cos().to(device), angles.sin().to(device)


def positions_of(T: int, side: int, start: int, before: int, L: int) -> torch.Tensor:
    """M-RoPE positions int64 [3, L] of the prefix with the video and of all slots.

    The video starts at position `start`. The text after it continues at the largest position plus one, and every slot
    starts at the end of the prefix.

    Args:
        T: grid frames.
        side: visual tokens on a side of a frame.
        start: tokens before the video.
        before: tokens of the whole prefix.
        L: tokens of the whole sequence.
    """
    t, y, x = torch.meshgrid(torch.arange(T), torch.arange(side), torch.arange(side), indexing="ij")
    video = torch.stack((t, y, x)).flatten(1) + start
    after = int(video.max()) + 1
    rest = before - start - video.shape[1]
    slots = after + rest + torch.arange(L - before) % SLOT_TOKENS
    line = torch.cat((after + torch.arange(rest), slots)).expand(3, -1)
    return torch.cat((torch.arange(start).expand(3, -1), video, line), dim=1)


@lru_cache(maxsize=8)
def _mask(before: int, L: int, device: torch.device, compiled: bool) -> BlockMask | torch.Tensor:
    def sees(_b: Any, _h: Any, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        same = (q - before) // SLOT_TOKENS == (k - before) // SLOT_TOKENS
        return (k <= q) & ((k < before) | same)

    if compiled:
        return create_block_mask(sees, None, None, L, L, device=device)
    line = torch.arange(L, device=device)
    return sees(0, 0, line[:, None], line[None, :])


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square normalisation, computed in float32 and returned in the dtype of `x`."""
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    low, high = x.float().chunk(2, dim=-1)
    return (x.float() * cos + torch.cat((-high, low), dim=-1) * sin).to(x.dtype)


def vision_layer(x: torch.Tensor, w: Weights, cos: torch.Tensor, sin: torch.Tensor, heads: int) -> torch.Tensor:
    """One block of the vision tower, for grid frames [B·T, N, C]; `cos` and `sin` are [N, C / heads]."""
    F, N, C = x.shape
    h = functional.layer_norm(x, (C,), w["norm1.weight"], w["norm1.bias"], 1e-6)
    qkv = functional.linear(h, w["attn.qkv.weight"], w["attn.qkv.bias"]).reshape(F, N, 3, heads, C // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    h = functional.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
    x = x + functional.linear(h.transpose(1, 2).reshape(F, N, C), w["attn.proj.weight"], w["attn.proj.bias"])
    h = functional.layer_norm(x, (C,), w["norm2.weight"], w["norm2.bias"], 1e-6)
    h = functional.linear(h, w["mlp.fc1.weight"], w["mlp.fc1.bias"])
    return x + functional.linear(h * torch.sigmoid(1.702 * h), w["mlp.fc2.weight"], w["mlp.fc2.bias"])


def decoder_layer(
    x: torch.Tensor,
    w: Weights,
    cos: torch.Tensor,
    sin: torch.Tensor,
    mask: BlockMask | torch.Tensor,
    heads: int,
    eps: float,
) -> torch.Tensor:
    """One layer of the language model, for hidden states [B, L, C]; `cos` and `sin` are [1, L, head_dim]."""
    B, L, C = x.shape
    h = rms_norm(x, w["input_layernorm.weight"], eps)
    q, k, v = (
        functional.linear(h, w[f"self_attn.{n}_proj.weight"], w[f"self_attn.{n}_proj.bias"])
        .view(B, L, -1, C // heads)
        .transpose(1, 2)
        for n in "qkv"
    )
    q, k = _rotate(q, cos[:, None], sin[:, None]), _rotate(k, cos[:, None], sin[:, None])
    if isinstance(mask, BlockMask):
        h = flex_attention(q, k, v, block_mask=mask, enable_gqa=True)
    else:
        h = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    x = x + functional.linear(h.transpose(1, 2).reshape(B, L, C), w["self_attn.o_proj.weight"])
    h = rms_norm(x, w["post_attention_layernorm.weight"], eps)
    gate = functional.silu(functional.linear(h, w["mlp.gate_proj.weight"]))
    return x + functional.linear(gate * functional.linear(h, w["mlp.up_proj.weight"]), w["mlp.down_proj.weight"])
