"""Modules that replace those of transformers, so that their element-wise steps take one GPU kernel instead of many.

The new modules share the weights of the old ones. On a CPU they run plain torch code, which computes what transformers
computes. On a GPU they run the Triton kernels of `sttm.models.triton_kernels`, which round at the same places.
"""

from typing import Any

import torch
from torch import Tensor, nn

from sttm.errors import ModelError
from sttm.models.fp8 import quantise_rows, quantised_silu_product
from sttm.models.fp8_linear import Fp8Linear

_RMS_NORMS = (  # class names are listed, because other RMS norms, such as Gemma's, compute something else
    *("Qwen2RMSNorm", "Qwen2VLRMSNorm", "Qwen2_5_VLRMSNorm", "Qwen3RMSNorm", "Qwen3VLTextRMSNorm"),
    *("LlamaRMSNorm", "MistralRMSNorm"),
)
_GATED_MLPS = ("Qwen2MLP", "Qwen2_5_VLMLP", "Qwen3MLP", "Qwen3VLTextMLP", "LlamaMLP", "MistralMLP")


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x) (https://github.com/hendrycks/GELUs), as in the vision towers of CLIP and Qwen2-VL."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Takes any shape and returns the same shape."""
        if hidden_states.is_cuda:
            from sttm.models import triton_kernels

            return triton_kernels.quick_gelu(hidden_states)
        return hidden_states * torch.sigmoid(1.702 * hidden_states)


class RMSNorm(nn.Module):
    """Root mean square normalisation (arXiv 1910.07467), computed in float32.

    Args:
        norm: the module of transformers, with `weight` and `variance_epsilon`.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = norm.weight, norm.variance_epsilon

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C], same shape out."""
        if hidden_states.is_cuda:
            from sttm.models import triton_kernels

            return triton_kernels.rms_norm(hidden_states, self.weight, self.variance_epsilon)
        wide = hidden_states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.to(hidden_states.dtype)


class GatedMLP(nn.Module):
    """SwiGLU (arXiv 2002.05202): down(silu(gate(x)) * up(x)).

    Args:
        mlp: the module of transformers, with linear modules `gate_proj`, `up_proj` and `down_proj`. If they multiply in
            FP8, or will do so later, the hidden states and the product are each rounded once.
    """

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj

    def forward(self, hidden_states: Tensor) -> Tensor:
        """[..., C], same shape out."""
        if all(isinstance(linear, Fp8Linear) for linear in (self.gate_proj, self.up_proj, self.down_proj)):
            rows = quantise_rows(hidden_states)
            return self.down_proj(quantised_silu_product(self.gate_proj(rows), self.up_proj(rows)))
        gate, up = self.gate_proj(hidden_states), self.up_proj(hidden_states)
        if hidden_states.is_cuda:
            from sttm.models import triton_kernels

            return self.down_proj(triton_kernels.silu_product(gate, up))
        return self.down_proj(nn.functional.silu(gate) * up)


def fuse(model: nn.Module) -> None:
    """Replace the modules of transformers by those of this file everywhere in a loaded model, for inference only.

    Raises:
        ModelError: the model is on a GPU, and this machine cannot compile kernels for the GPU.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if replacement := _fused(child):
                setattr(module, name, replacement)
    device = next(model.parameters()).device
    if device.type == "cuda":
        require_kernels(device)


def require_kernels(device: torch.device) -> None:
    """Compile and run one kernel on `device`.

    Loading a model calls this, so that a machine without a compiler fails once, and not at every video.

    Raises:
        ModelError: Triton cannot compile a kernel here.
    """
    try:
        from sttm.models import triton_kernels

        triton_kernels.quick_gelu(torch.zeros(1, device=device))
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except Exception as error:  # the errors of Triton, its compiler and the linker have no class in common
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError):
            raise  # for example a full disk, which another machine may not have
        raise ModelError(
            f"Triton cannot compile a kernel for {device}: {error}; use PyTorch's CUDA build, which contains Triton, "
            "and install a C compiler and Python's headers (Debian: gcc, libc6-dev, python3-dev)"
        ) from error


def _fused(module: Any) -> nn.Module | None:
    """The replacement of a module; None if it stays."""
    name = type(module).__name__
    if name == "QuickGELUActivation":
        return QuickGELU()
    if name in _RMS_NORMS:
        return RMSNorm(module)
    if name in _GATED_MLPS and type(module.act_fn).__name__ in ("SiLU", "SiLUActivation"):
        return GatedMLP(module)
    return None
