"""Simulate what a video codec does to pixels: 4:2:0 chroma, and 8×8 transform coefficients rounded to a step.

The same input always gives the same output. So still parts of a clip stay equal from frame to frame, as in a real
video.
"""

import math

import torch

BLOCK = 8

# ITU-R BT.601, full range.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def degrade(clips: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Encode and decode the pixels with loss.

    Args:
        clips: float [B, T, H, W, 3], RGB from 0 to 255; H and W are multiples of 8.
        step: float [B], step of the quantiser in grey levels; 0 leaves the luma of a clip unchanged.

    Returns:
        float [B, T, H, W, 3]; values may lie slightly outside of 0..255.
    """
    to_ycc = torch.tensor(_TO_YCC, device=clips.device, dtype=clips.dtype)
    to_rgb = torch.tensor(_TO_RGB, device=clips.device, dtype=clips.dtype)
    ycc = clips @ to_ycc.T
    B, T, H, W, _ = ycc.shape
    luma = _quantise(ycc[..., 0], step)
    chroma = ycc[..., 1:].reshape(B, T, H // 2, 2, W // 2, 2, 2).mean(dim=(3, 5))
    chroma = chroma.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    return torch.cat((luma[..., None], chroma), dim=-1) @ to_rgb.T


def _quantise(luma: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """Round the 8×8 DCT coefficients of luma [B, T, H, W]; high frequencies are rounded more coarsely."""
    B, T, H, W = luma.shape
    basis = _dct_basis().to(luma)
    order = torch.arange(BLOCK, device=luma.device, dtype=luma.dtype)
    steps = step[:, None, None] * (1 + 0.35 * (order[:, None] + order[None, :]))
    steps = steps.clamp(min=1e-3)[:, None, None, None]
    blocks = luma.reshape(B, T, H // BLOCK, BLOCK, W // BLOCK, BLOCK).transpose(3, 4)
    levels = ((basis @ blocks @ basis.T) / steps).round()
    blocks = basis.T @ (levels * steps) @ basis
    return blocks.transpose(3, 4).reshape(B, T, H, W)


def _dct_basis() -> torch.Tensor:
    """float32 [8, 8]: the orthonormal DCT-II matrix, whose row k is frequency k."""
    k, n = torch.arange(BLOCK)[:, None], torch.arange(BLOCK)[None, :]
    basis = torch.cos(math.pi * (2 * n + 1) * k / (2 * BLOCK)) * math.sqrt(2 / BLOCK)
    basis[0] /= math.sqrt(2)
    return basis
